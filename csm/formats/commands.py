"""Commands of `csm` about model files: models."""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import asdict

from csm.formats.registry import KNOWN, find


def models(arguments: argparse.Namespace) -> None:
    if arguments.name is None:
        for model in KNOWN:
            print(f"{model.name:18s} {model.address:34s} {model.size:26s} {model.licence}")
        return
    entry = {name: value for name, value in asdict(find(arguments.name)).items() if value is not None}
    for name, value in entry.items():
        text = ", ".join(value) if isinstance(value, tuple) else str(value)
        print(f"{name:10s} {textwrap.fill(text, 100, subsequent_indent=' ' * 11)}")


def add_parser(commands: argparse._SubParsersAction) -> None:
    known = commands.add_parser("models", help="published models of this architecture, and what was verified of each")
    known.add_argument("name", nargs="?", help="one of them, in full")
    known.set_defaults(run=models)
