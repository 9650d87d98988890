"""The list of a dataset of moshi-finetune: JSON lines of path and duration, beside each file its alignment as .json."""

from __future__ import annotations

import json
import os.path
from collections.abc import Iterator
from dataclasses import replace

from data_prep.audio.storage import is_url
from data_prep.inputs.folders import pair_files
from data_prep.inputs.manifest import Entry
from data_prep.inputs.pile import Pile
from data_prep.records import Locator, Rejection

_KEYS = {"path", "duration"}


def read(pile: Pile) -> Iterator[Entry | Rejection]:
    """A recording for each line, with its alignment. Raises ValueError for a line that names no file."""
    for name in [name for name in pile.named(".jsonl") if is_list(pile, name)]:
        pile.take([name])
        for number, line in enumerate(pile.text(name).split("\n"), start=1):
            if line.strip():
                audio, locator = pile.find(_path(line, f"{pile.path(name)}, line {number}"), name)
                files = {audio: locator, **_alignment(pile, audio, locator)}
                pile.take(files)
                for entry in pair_files(files, pile.notes):
                    yield replace(entry, table=name) if isinstance(entry, Entry) else entry


def is_list(pile: Pile, name: str) -> bool:
    return pile.kind(name, "moshi", _kind) is not None


def _kind(head: str) -> str | None:
    try:
        row = json.loads(head.strip().partition("\n")[0])
    except ValueError:
        return None
    return "list" if isinstance(row, dict) and row.keys() == _KEYS else None


def _path(line: str, at: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{at}: not valid JSON ({error})") from error
    path = row.get("path") if isinstance(row, dict) else None
    if not isinstance(path, str) or not path:
        raise ValueError(f"{at}: names no audio file in 'path'")
    return path


def _alignment(pile: Pile, audio: str, locator: Locator) -> dict[str, Locator]:
    """The file beside an audio file that has its name, as `pair_files` takes it; empty if there is none."""
    name, path = (f"{os.path.splitext(of)[0]}.json" for of in (audio, locator.path))
    there = name in pile.left or (not is_url(path) and os.path.isfile(path))
    return {name: Locator(path)} if there else {}
