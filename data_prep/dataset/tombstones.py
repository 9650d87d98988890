"""takedown.jsonl: the samples that lie in a dataset's shards, but are not to be used any more.

One line for each, in the order of the shards:

    {"shard": "calls-1a2b3c4d-train-000000.tar", "key": "calls-17-...-00000", "recording": "calls/17", "group": "anna"}

The index has no row for them. Whoever reads the tars without the index must leave these keys out.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

TOMBSTONES_FILE = "takedown.jsonl"

Tombstone = dict[str, str]


def read_tombstones(folder: Path) -> list[Tombstone]:
    """Raises ValueError if the file is damaged; none are listed where there is no file."""
    path = folder / TOMBSTONES_FILE
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); restore it: what it lists must not be used") from error


def tombstones_text(tombstones: list[Tombstone]) -> str:
    return "".join(json.dumps(stone, ensure_ascii=False) + "\n" for stone in tombstones)


def keys_by_shard(tombstones: list[Tombstone]) -> dict[str, set[str]]:
    keys: dict[str, set[str]] = {}
    for stone in tombstones:
        keys.setdefault(stone["shard"], set()).add(stone["key"])
    return keys


def keep_living(table: pa.Table, taken: set[str]) -> pa.Table:
    """The rows of an index table whose keys are not `taken`."""
    return table.filter(pc.invert(pc.is_in(table["key"], pa.array(sorted(taken), pa.string()))))
