"""Recordings of one second and small texts, from which the tests build folders in other people's layouts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from made_recordings import noise

from data_prep.config import SourceConfig
from data_prep.inputs.notes import Notes
from data_prep.inputs.sources import read_source
from data_prep.records import GivenTurn, Recording, Rejection

RATE = 8000


def wav(path: Path, seconds: float = 1.0, channels: int = 1, seed: int | None = None) -> Path:
    """Noise, of which each file has its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first = abs(hash(str(path))) % 100_000 if seed is None else seed
    tracks = [noise(seconds, RATE, first + channel) for channel in range(channels)]
    soundfile.write(path, np.stack(tracks, axis=1), RATE)
    return path


def text(path: Path, content: str | list[Any]) -> Path:
    """Writes a text, or rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content))
    return path


def jsonl(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".gz":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
        return path
    return text(path, rows)


class Source:
    """A source as `plan` lists it: `recordings` and `rejected` by id, and the reader's notes."""

    def __init__(self, path: Path | str, **options: Any) -> None:
        self.notes = Notes()
        self.recordings: dict[str, Recording] = {}
        self.rejected: dict[str, Rejection] = {}
        for entry in read_source("s", SourceConfig(input=str(path), **options), self.notes):
            if isinstance(entry, Rejection):
                self.rejected[entry.audio] = entry
            else:
                self.recordings[entry.id.removeprefix("s/")] = entry

    @property
    def said(self) -> dict[str, list[tuple[Any, ...]] | None]:
        """Recording -> (speaker, start, end, text) of its turns, with the channel if there is one."""
        return {name: said(recording.turns) for name, recording in sorted(self.recordings.items())}

    @property
    def reasons(self) -> dict[str, str]:
        return {name: str(rejection.reason) for name, rejection in sorted(self.rejected.items())}


def said(turns: list[GivenTurn] | None) -> list[tuple[Any, ...]] | None:
    if turns is None:
        return None
    rows = [(turn.speaker, turn.start, turn.end, turn.text, turn.channel) for turn in turns]
    return [row if row[4] is not None else row[:4] for row in rows]
