"""Commands of `csm` about model files: models, extend-vocabulary."""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import asdict
from pathlib import Path

from csm.formats.open import open_checkpoint
from csm.formats.registry import KNOWN, find
from csm.formats.vocabulary import change_tokenizer, extend_vocabulary
from csm.text import HFTokenizer


def models(arguments: argparse.Namespace) -> None:
    if arguments.name is None:
        for model in KNOWN:
            print(f"{model.name:18s} {model.address:34s} {model.size:26s} {model.licence}")
        return
    entry = {name: value for name, value in asdict(find(arguments.name)).items() if value is not None}
    for name, value in entry.items():
        text = ", ".join(value) if isinstance(value, tuple) else str(value)
        print(f"{name:10s} {textwrap.fill(text, 100, subsequent_indent=' ' * 11)}")


def extend(arguments: argparse.Namespace) -> None:
    checkpoint = open_checkpoint(arguments.model, arguments.codec, arguments.own_tokenizer)
    if arguments.tokens is not None:
        tokens = [line for line in _read_lines(arguments.tokens) if line]
        pieces, rows = extend_vocabulary(checkpoint, tokens, arguments.out, arguments.overwrite)
        done = f"{pieces} new pieces of {len(tokens)} tokens"
    else:
        tokenizer = HFTokenizer.load(arguments.tokenizer)
        kept, rows = change_tokenizer(checkpoint, tokenizer, arguments.out, arguments.overwrite)
        done = f"{kept} of {tokenizer.vocab_size} pieces keep their rows"
    print(
        f"{arguments.out}: {done}, text vocabulary {checkpoint.config.text_vocab_size} -> {rows}\n"
        f"train it on with init_from={arguments.out} tokenizer=llama3 tokenizer.path={arguments.out}/tokenizer "
        f"tokenizer.vocab_size={rows}"
    )


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--tokens {file}: cannot be read as UTF-8 text ({error})") from None


def add_parser(commands: argparse._SubParsersAction) -> None:
    known = commands.add_parser("models", help="published models of this architecture, and what was verified of each")
    known.add_argument("name", nargs="?", help="show everything about this one")
    known.set_defaults(run=models)

    longer = commands.add_parser("extend-vocabulary", help="more text tokens, or another tokenizer, to train on with")
    longer.add_argument("model", help="checkpoint in any layout, or hub id")
    source = longer.add_mutually_exclusive_group(required=True)
    source.add_argument("--tokens", type=Path, metavar="FILE", help="new pieces, one a line, spaces included")
    source.add_argument("--tokenizer", metavar="PATH", help="another tokenizer: directory, tokenizer.json or hub id")
    longer.add_argument(
        "--own-tokenizer", metavar="PATH", help="the one that the model was trained with, where it carries none"
    )
    longer.add_argument("--out", type=Path, required=True, help="directory to write, in the native layout")
    longer.add_argument("--overwrite", action="store_true", help="replace an existing model directory")
    longer.add_argument("--codec", metavar="FILE", help="Mimi weights in moshi's format, instead of the hub's")
    longer.set_defaults(run=extend)
