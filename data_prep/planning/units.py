"""Cuts recordings into units, the parts of work that a worker takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby

from data_prep.records import Recording


@dataclass
class Unit:
    """A row of units.parquet."""

    id: str  # hash over its recordings' rows
    source: str
    recordings: int
    seconds: float
    first_row: int  # in the file of recordings that it is written to


@dataclass
class Planned:
    """A recording and the hash over its row."""

    recording: Recording
    digest: str


def planned(recording: Recording) -> Planned:
    row = json.dumps(asdict(recording), sort_keys=True, ensure_ascii=False)
    return Planned(recording, hashlib.sha256(row.encode()).hexdigest()[:32])


def cut_units(recordings: Iterable[Planned], seconds: float) -> Iterator[tuple[Unit, list[Planned]]]:
    """Units of at most `seconds` of audio, or of one recording that is longer, in the order (source, group, id).

    A group stays in one unit unless it is longer than that; a unit holds recordings of one source.
    """
    ordered = sorted(recordings, key=lambda p: (p.recording.source, p.recording.group, p.recording.id))
    row = 0
    for members in _pack(ordered, seconds):
        total = sum(member.recording.seconds for member in members)
        content = hashlib.sha256("\n".join(member.digest for member in members).encode()).hexdigest()[:16]
        yield Unit(content, members[0].recording.source, len(members), total, row), members
        row += len(members)


def _pack(ordered: list[Planned], seconds: float) -> Iterator[list[Planned]]:
    for _, of_source in groupby(ordered, key=lambda p: p.recording.source):
        unit: list[Planned] = []
        filled = 0.0
        for _, of_group in groupby(of_source, key=lambda p: p.recording.group):
            group = list(of_group)
            if unit and filled + sum(member.recording.seconds for member in group) > seconds:
                yield unit
                unit, filled = [], 0.0
            for member in group:
                if unit and filled + member.recording.seconds > seconds:
                    yield unit
                    unit, filled = [], 0.0
                unit.append(member)
                filled += member.recording.seconds
        if unit:
            yield unit
