"""Results of the stages of an evaluation, kept in the report's folder: the work that a later run does not repeat.

    report/audio/<key>.wav                    speech, 16-bit: what the judges hear, and what the report plays
    report/stages/rank0/speech.jsonl          how each was made: frames, why it ended, seconds
    report/stages/rank0/<kind>-<judge>.jsonl  a judge's result for each

A key is a hash of everything that decides the item (model, prompt, seed, sampling), so a changed request takes what it
shares with earlier ones and makes the rest. Every rank appends to files of its own and reads those of all. A line is
written in one piece after the files it speaks of: a process killed at any moment leaves whole lines, and at most a torn
one at the end, which is cut off.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from csm.files import exclusive

Item = TypeVar("Item")


def key_of(**facts: Any) -> str:
    """24 hex digits over plain values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Share:
    """One of several processes that divide the items of an evaluation among them, without talking to each other."""

    rank: int = 0
    ranks: int = 1

    @classmethod
    def from_environment(cls) -> Share:
        """The share that torchrun (RANK, WORLD_SIZE) or a Slurm array (SLURM_ARRAY_TASK_*) gives this process."""
        values = os.environ
        if "WORLD_SIZE" in values:
            return cls(int(values.get("RANK", "0")), int(values["WORLD_SIZE"]))
        if "SLURM_ARRAY_TASK_COUNT" in values:
            first = int(values.get("SLURM_ARRAY_TASK_MIN", "0"))
            step = int(values.get("SLURM_ARRAY_TASK_STEP", "1"))
            rank = (int(values["SLURM_ARRAY_TASK_ID"]) - first) // step
            return cls(rank, int(values["SLURM_ARRAY_TASK_COUNT"]))
        return cls()

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Every `ranks`-th item."""
        return list(items[self.rank :: self.ranks])


class StageLog:
    """Records of one stage by the keys of their items: those of all ranks, and `add` for this one's."""

    def __init__(self, folder: Path, stage: str, rank: int) -> None:
        self._path = folder / f"rank{rank}" / f"{stage}.jsonl"
        self._records: dict[str, dict[str, Any]] = {}
        _cut_torn_line(self._path)
        for path in sorted(folder.glob(f"rank*/{stage}.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:  # another rank may be in the middle of its last line
                record = json.loads(line)
                self._records.setdefault(record.pop("key"), record)

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._records[key]

    def get(self, key: str) -> dict[str, Any] | None:
        return self._records.get(key)

    def add(self, key: str, **record: Any) -> None:
        """Keeps a record; the files it speaks of exist already."""
        with self._path.open("ab", buffering=0) as file:
            file.write(json.dumps({"key": key} | record, ensure_ascii=False).encode() + b"\n")
        self._records[key] = record


def _cut_torn_line(path: Path) -> None:
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


class Store:
    """The stages' folders below a report's. Use it within `with store.writing():`."""

    def __init__(self, report: Path, rank: int) -> None:
        self.audio = report / "audio"
        self._folder, self._rank = report / "stages", rank

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the place of this rank. Raises ValueError if another process evaluates there as the same rank."""
        own = self._folder / f"rank{self._rank}"
        own.mkdir(parents=True, exist_ok=True)
        self.audio.mkdir(exist_ok=True)
        try:
            with exclusive(own):
                yield
        except BlockingIOError:
            raise ValueError(
                f"{own.parent.parent}: another process evaluates into this folder; wait for it, or choose another "
                "output=DIR"
            ) from None

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Waits until no other rank is looking whether all is done: the last one to look writes the report."""
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def log(self, stage: str) -> StageLog:
        return StageLog(self._folder, stage, self._rank)
