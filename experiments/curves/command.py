"""The command: `python -m experiments.curves [RUN_DIR NAME]`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from csm.errors import user_errors
from csm.files import write_atomically
from experiments.curves.page import figure, page
from experiments.curves.record import record

KEPT = Path(__file__).parent / "runs"
IMAGE = Path("images/expected_curves.svg")


def main(words: Sequence[str] | None = None) -> None:
    """Entry point; `words` are the command line's, by default this process's own."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.curves",
        description="Keeps the curves of a run, and writes the page of all of them.",
    )
    parser.add_argument(
        "run", nargs="?", type=Path, metavar="RUN_DIR", help="folder of a training; none: only the page"
    )
    parser.add_argument("name", nargs="?", help="name of the run on the page: letters, digits, - and _")
    parser.add_argument("--kept", type=Path, default=KEPT, help="folder of the kept runs")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the pages")
    arguments = parser.parse_args(words)
    with user_errors():
        if arguments.run is not None:
            if not re.fullmatch(r"[\w-]+", arguments.name or ""):
                raise ValueError(f"{arguments.run}: give the run a name of letters, digits, - and _ ({arguments.name})")
            text = json.dumps(record(arguments.run), indent=1) + "\n"
            arguments.kept.mkdir(parents=True, exist_ok=True)
            kept = arguments.kept / f"{arguments.name}.json"
            write_atomically(kept, lambda file: file.write_text(text, encoding="utf-8"))
        files = sorted(arguments.kept.glob("*.json"))
        if not files:
            raise ValueError(f"{arguments.kept}: holds no run; name the folder of one")
        runs = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
        written, image = arguments.docs / "experiments/curves.md", arguments.docs / IMAGE
        write_atomically(image, lambda file: file.write_text(figure(runs), encoding="utf-8"))
        write_atomically(written, lambda file: file.write_text(page(runs, f"../{IMAGE.as_posix()}"), encoding="utf-8"))
        print(written, file=sys.stderr)
