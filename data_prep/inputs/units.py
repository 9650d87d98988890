"""Division of recordings into units, the work that a worker takes at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby

from data_prep.records import Recording

_UNITS = 64
"""Units that a set is divided into before they get as long as `plan.unit_hours`."""

_SMALLEST = 300.0
"""Seconds of audio below which a unit is not worth its bookkeeping."""


@dataclass
class Unit:
    """A row of units.parquet."""

    id: str  # hash of its recordings' rows
    source: str
    recordings: int
    seconds: float
    first_row: int  # in the file that holds its recordings


def digest_of(recording: Recording) -> str:
    """Hash of a recording's row, which tells whether the recording has changed."""
    row = json.dumps(asdict(recording), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(row.encode()).hexdigest()[:32]


def unit_seconds(total: float, limit: float) -> float:
    """Seconds of audio of a unit: `limit`, or less of a small set, so that every worker has something to do.

    It depends on the set alone, never on the number of workers, which may change while a plan lasts.
    """
    return min(limit, max(_SMALLEST, total / _UNITS))


def cut_units(
    recordings: Iterable[Recording], digests: Mapping[str, str], seconds: float
) -> Iterator[tuple[Unit, list[Recording]]]:
    """Cuts recordings, in the order (source, group, id), into units of at most `seconds` of audio.

    A longer recording is a unit of its own. A group stays in one unit unless it is longer than a unit. All recordings
    of a unit are from one source.

    digests: id -> `digest_of`
    """
    ordered = sorted(recordings, key=lambda recording: (recording.source, recording.group, recording.id))
    row = 0
    for members in _pack(ordered, seconds):
        content = hashlib.sha256("\n".join(digests[member.id] for member in members).encode()).hexdigest()[:16]
        yield (
            Unit(
                id=content,
                source=members[0].source,
                recordings=len(members),
                seconds=sum(member.seconds for member in members),
                first_row=row,
            ),
            members,
        )
        row += len(members)


def _pack(ordered: list[Recording], seconds: float) -> Iterator[list[Recording]]:
    for _, of_source in groupby(ordered, key=lambda recording: recording.source):
        unit: list[Recording] = []
        filled = 0.0
        for _, of_group in groupby(of_source, key=lambda recording: recording.group):
            group = list(of_group)
            if unit and filled + sum(member.seconds for member in group) > seconds:
                yield unit
                unit, filled = [], 0.0
            for member in group:
                if unit and filled + member.seconds > seconds:
                    yield unit
                    unit, filled = [], 0.0
                unit.append(member)
                filled += member.seconds
        if unit:
            yield unit
