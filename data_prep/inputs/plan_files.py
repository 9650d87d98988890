"""The plan in the work folder. Written tables never change; an update adds a part to the plan, in files of its own.

recordings.parquet, recordings-1.parquet, ...   all recordings, unit by unit; one file for each part
units.parquet, units-1.parquet, ...
rejects.parquet, rejects-1.parquet, ...         rejected recordings; only the last one counts
plan.json                                       names all of them; written last, so without it there is no plan
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from csm.files import write_atomically
from data_prep.inputs.understood import Understood
from data_prep.inputs.units import Unit, digest_of
from data_prep.records import Recording, Rejection
from data_prep.tables import from_dict, read_rows, schema_of, write_rows

PLAN_FILE = "plan.json"
VERSION = 1
_ROWS = 1000
"""Minimum rows of a row group, which ends with a unit. To read a unit, the row groups that hold it are read."""


@dataclass
class Part:
    """Files written together; names relative to the work folder."""

    recordings: str
    units: str


class Plan:
    """A written plan. Units are held in memory, recordings are read on demand."""

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        self.folder = folder
        self.hash: str = description["hash"]
        self.options: dict[str, Any] = description["options"]
        self.parts = [Part(**part) for part in description["parts"]]
        self.rejects_file: str = description["rejects"]
        self.replaced: set[str] = set(description.get("replaced", ()))  # units whose recordings later parts hold
        self.understood: list[Understood] = []  # set by `make_plan`, for the terminal
        self.corrected: list[str] = []
        self.units: list[Unit] = []
        self.written: list[Unit] = []  # with those that were replaced
        self._file_of: dict[str, tuple[str, Unit]] = {}
        for part in self.parts:
            for unit in read_rows(folder / part.units, Unit):
                self.written.append(unit)
                if unit.id not in self.replaced:
                    self.units.append(unit)
                self._file_of[unit.id] = (part.recordings, unit)

    def recordings(self, unit: str) -> list[Recording]:
        """The recordings of a unit, by group and id. Raises KeyError for a unit that is not in the plan."""
        name, found = self._file_of[unit]
        first, last = found.first_row, found.first_row + found.recordings
        row, rows = 0, []
        with pq.ParquetFile(self.folder / name) as file:
            for number in range(file.metadata.num_row_groups):
                count = file.metadata.row_group(number).num_rows
                if row < last and row + count > first:
                    table = file.read_row_group(number)
                    skipped = max(0, first - row)
                    rows += table.slice(skipped, min(count, last - row) - skipped).to_pylist()
                row += count
        return [from_dict(Recording, values) for values in rows]

    def recording(self, name: str) -> Recording:
        """One recording by its id. Raises KeyError if it is not in the plan."""
        for part in self.parts:
            rows = pq.read_table(self.folder / part.recordings, filters=[("id", "==", name)]).to_pylist()
            rows = [row for row in rows if row["unit"] not in self.replaced]
            if rows:
                return from_dict(Recording, rows[0])
        raise KeyError(name)

    def first_units(self) -> list[Unit]:
        """The units planned before any update."""
        return read_rows(self.folder / self.parts[0].units, Unit)

    def first_splits(self) -> Iterator[tuple[str, str, str | None]]:
        """Id, group and given split of every recording planned before any update."""
        table = pq.read_table(self.folder / self.parts[0].recordings, columns=["id", "group", "split"])
        for row in table.to_pylist():
            yield row["id"], row["group"], row["split"]

    def columns(self, *names: str) -> Iterator[dict[str, Any]]:
        """Some columns of recordings.parquet: those of `Recording`, `unit` and `digest`."""
        for part in self.parts:
            with pq.ParquetFile(self.folder / part.recordings) as file:
                for batch in file.iter_batches(columns=[*names, *(() if "unit" in names else ("unit",))]):
                    yield from (row for row in batch.to_pylist() if row["unit"] not in self.replaced)

    @cached_property
    def rejections(self) -> list[Rejection]:
        """The recordings that are not in the plan."""
        return read_rows(self.folder / self.rejects_file, Rejection)


def load_plan(work: Path) -> Plan:
    """Reads the plan of a work folder.

    Raises FileNotFoundError if there is none, ValueError if it was written by another version or is damaged.
    """
    file = work / PLAN_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{work}: nothing is planned there; start with: python -m data_prep plan")
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        version = description["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: cannot be read as a plan ({error!r}); use another work=...") from error
    if version != VERSION:
        raise ValueError(f"{file}: has version {version}, this program reads {VERSION}; use another work=...")
    return Plan(work, description)


def write_plan(
    work: Path,
    units: list[tuple[Unit, list[Recording]]],
    rejections: list[Rejection],
    options: dict[str, Any],
    before: Plan | None = None,
    replaced: Iterable[str] = (),
) -> Plan:
    """Writes a plan, or adds `units` to the plan `before`. If interrupted, the old plan remains.

    replaced: ids of units of the old plan whose recordings are in `units`, as they are now
    """
    gone = {*(before.replaced if before else ()), *replaced}
    restored = gone & {unit.id for unit, _ in units}  # an annotation is as it was in an earlier part again
    gone -= restored
    units = _numbered([(unit, members) for unit, members in units if unit.id not in restored])
    parts = list(before.parts) if before else []
    number = 1 + _number(before.rejects_file) if before else 0
    suffix = f"-{number}" if number else ""
    if units:
        part = Part(f"recordings{suffix}.parquet", f"units{suffix}.parquet")
        write_atomically(work / part.recordings, lambda temporary: _write_recordings(temporary, units))
        write_rows(work / part.units, [unit for unit, _ in units], Unit)
        parts.append(part)
    rejects_file = f"rejects{suffix}.parquet"
    write_rows(work / rejects_file, rejections, Rejection)
    all_units = [unit for unit in before.written if unit.id not in gone] if before else []
    all_units += [unit for unit, _ in units]
    description = {
        "version": VERSION,
        "hash": _hash(options, all_units, rejections),
        "options": options,
        "recordings": sum(unit.recordings for unit in all_units),
        "units": len(all_units),
        "seconds": sum(unit.seconds for unit in all_units),
        "rejected": len(rejections),
        "parts": [asdict(part) for part in parts],
        "rejects": rejects_file,
        "replaced": sorted(gone),
    }
    text = json.dumps(description, indent=1, ensure_ascii=False)
    write_atomically(work / PLAN_FILE, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return load_plan(work)


def _numbered(units: list[tuple[Unit, list[Recording]]]) -> list[tuple[Unit, list[Recording]]]:
    """Units with the rows at which they begin, if they are written one after another."""
    firsts = accumulate((len(members) for _, members in units), initial=0)
    return [(replace(unit, first_row=first), members) for (unit, members), first in zip(units, firsts, strict=False)]


def _number(name: str) -> int:
    _, _, number = name.removesuffix(".parquet").partition("-")
    return int(number or 0)


def _hash(options: dict[str, Any], units: list[Unit], rejections: list[Rejection]) -> str:
    content = [
        options,
        [unit.id for unit in units],
        [[rejection.recording, rejection.reason] for rejection in rejections],
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def _write_recordings(path: Path, units: Iterable[tuple[Unit, list[Recording]]]) -> None:
    schema = schema_of(Recording).append(pa.field("unit", pa.string())).append(pa.field("digest", pa.string()))
    rows: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for unit, members in units:
            rows += [asdict(member) | {"unit": unit.id, "digest": digest_of(member)} for member in members]
            if len(rows) >= _ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
