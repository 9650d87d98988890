"""Command `csm voice`: makes voices of recorded turns, and lists them. `csm generate --voice` speaks with one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from csm.config import SpeakerKind
from csm.formats.open import open_checkpoint
from csm.inference.records import read_context
from csm.inference.voice import FOLDER, SUFFIX, Voice, make_voice
from csm.judges.speaker import load_embedder


def make(arguments: argparse.Namespace) -> None:
    codec = open_checkpoint(arguments.model, arguments.codec).read_codec(arguments.device)
    turns = read_context(arguments.turns, codec.sample_rate)
    embedder = None
    if arguments.choose_by is not None:
        embedder = load_embedder(SpeakerKind(arguments.choose_by), None, arguments.device)
    voice = make_voice(arguments.name, turns, codec, arguments.seconds, embedder)
    path = arguments.folder / f"{arguments.name}{SUFFIX}"
    voice.save(path)
    print(f"{path}: {_summary(voice)}, of {len(turns)} given")


def show(arguments: argparse.Namespace) -> None:
    files = sorted(arguments.folder.glob(f"*{SUFFIX}"))
    if not files:
        raise ValueError(f"no voices in {arguments.folder}; `csm voice make` makes one")
    for file in files:
        print(f"{file}: {_summary(Voice.load(file))}")


def _summary(voice: Voice) -> str:
    turns = f"{len(voice.texts)} turn{'s' if len(voice.texts) > 1 else ''}"
    return f"{turns}, {voice.seconds:.1f} s, codec {voice.codec.name} {voice.codec.weights_hash}"


def add_parser(commands: Any) -> None:
    """Adds `voice` to the subcommands of `csm`."""
    parser = commands.add_parser("voice", help="voices: reference turns that are pinned in every context")
    actions = parser.add_subparsers(dest="action", required=True)

    new = actions.add_parser("make", help="a voice from recorded turns of one speaker")
    new.add_argument("name", help="of the voice, and of its file")
    new.add_argument("--model", required=True, help="checkpoint whose codec encodes the turns")
    new.add_argument("--turns", type=Path, required=True, help="JSON Lines of candidates: speaker, text, audio")
    new.add_argument("--seconds", type=float, default=15.0, help="most audio that the voice takes (default 15)")
    new.add_argument(
        "--choose-by",
        choices=[kind.value for kind in SpeakerKind],
        help="speaker encoder that chooses the turns most like all others (default: the first turns)",
    )
    new.add_argument("--folder", type=Path, default=FOLDER, help="folder of the voices (default %(default)s)")
    new.add_argument("--codec", metavar="FILE", help="Mimi weights in moshi's format, instead of the hub's")
    new.add_argument("--device", default="cpu", help="cuda or cpu (default %(default)s)")
    new.set_defaults(run=make)

    listed = actions.add_parser("list", help="the voices of a folder")
    listed.add_argument("--folder", type=Path, default=FOLDER, help="folder of the voices (default %(default)s)")
    listed.set_defaults(run=show)
