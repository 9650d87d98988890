"""Removes recordings or groups from a dataset, without rewriting its shards.

Their samples are removed from the index and listed in takedown.jsonl, one per line, in the order of the shards:

    {"shard": "calls-1a2b3c4d-train-000000.tar", "key": "calls-17-...-00000", "recording": "calls/17", "group": "anna"}

Their bytes stay in the tars, where readers of the index do not see them (readers of the bare tars must skip these
keys). To remove the bytes, prepare the dataset again without these recordings. The files

    takedown.jsonl -> index-<hash>.parquet -> dataset.json

are written in this order, each atomically: `dataset.json` switches to the new index, and repeating an interrupted
takedown completes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from csm.data.dataset import DatasetInfo, ShardedDataset, ShardInfo, is_remote
from csm.files import exclusive, write_atomically
from data_prep.dataset.index import IndexRows, file_info, write_dataset_json, write_index

TOMBSTONES_FILE = "takedown.jsonl"

Tombstone = dict[str, str]

_NAMED = 10


@dataclass(frozen=True)
class Taken:
    """The result of a takedown: the dataset afterwards, and the amount removed."""

    dataset: DatasetInfo
    samples: int
    hours: float


def read_names(path: Path) -> list[str]:
    """Reads names of recordings or groups, one per line. Raises ValueError if there are none."""
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    names = [name for name in names if name]
    if not names:
        raise ValueError(f"{path}: names no recordings or groups; write one per line")
    return names


def takedown(path: str | Path, names: list[str]) -> Taken:
    """Removes all samples whose recording or group is one of `names`.

    Samples that were taken down before stay so; naming them again changes nothing.

    Raises:
        FileNotFoundError: there is no dataset.
        ValueError: a name is neither a recording nor a group of the dataset (nothing is changed then), the dataset is
            not local, or another process is changing it.
    """
    if is_remote(path):
        raise ValueError(f"{path}: a takedown changes local folders; run it where the dataset is stored")
    folder = ShardedDataset(path).local_path
    try:
        with exclusive(folder):
            return _takedown(ShardedDataset(path), names)  # reopened, now that it is locked
    except BlockingIOError as error:
        raise ValueError(f"{folder}: another process is changing this dataset; wait for it to end") from error


def _takedown(dataset: ShardedDataset, names: list[str]) -> Taken:
    folder, old = dataset.local_path, dataset.info
    rows = IndexRows(folder / old.index.name)
    tables = [(shard, dataset.samples_of(number).start) for number, shard in enumerate(old.shards)]
    before = read_tombstones(folder)
    found = {stone[field] for stone in before for field in ("recording", "group")}
    stones = {(stone["shard"], stone["key"]): stone for stone in before}
    for shard, first in tables:
        for stone in _matching(rows.rows(first, shard.samples), names, shard.name):
            stones[stone["shard"], stone["key"]] = stone
            found |= {stone["recording"], stone["group"]}
    unknown = [name for name in dict.fromkeys(names) if name not in found]
    if unknown:
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        shown = ", ".join(repr(name) for name in unknown[:_NAMED])
        raise ValueError(f"{folder}: holds no recording or group named {shown}{more}; nothing was taken down")
    path = folder / TOMBSTONES_FILE
    text = tombstones_text([stones[place] for place in sorted(stones)])
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    listed = file_info(path)
    if listed == old.takedown:
        return Taken(old, 0, 0.0)

    taken = keys_by_shard(list(stones.values()))
    shards: list[ShardInfo] = []

    def living() -> Iterator[pa.Table]:
        for shard, first in tables:
            table = keep_living(rows.rows(first, shard.samples), taken.get(shard.name, set()))
            shards.append(replace(shard, samples=len(table)))
            yield table

    index = write_index(folder, living(), listed)
    new = write_dataset_json(
        folder,
        source=old.source,
        codec=old.codec,
        codec_file=old.codec_file,
        audio_root=old.audio_root,
        index=index,
        shards=shards,
        rejected=old.rejected,
        takedown=listed,
    )
    for stale in [folder / old.index.name, *folder.glob(f"lengths-{old.fingerprint}-*")]:
        stale.unlink()
    frames = sum(split["frames"] for split in old.totals.values()) - sum(s["frames"] for s in new.totals.values())
    return Taken(new, len(dataset) - sum(shard.samples for shard in shards), frames / old.codec.frame_rate / 3600)


def _matching(table: pa.Table, names: list[str], shard: str) -> list[Tombstone]:
    """The samples of a shard to be removed."""
    wanted = pa.array(names, pa.string())
    chosen = pc.or_(pc.is_in(table["recording"], wanted), pc.is_in(table["group"], wanted))
    rows = table.select(["key", "recording", "group"]).filter(chosen).to_pylist()
    return [{"shard": shard, **row} for row in rows]


# -------------------------------------------------------------------------------------------------- takedown.jsonl


def read_tombstones(folder: Path) -> list[Tombstone]:
    """Reads takedown.jsonl; an empty list if it does not exist. Raises ValueError if it is damaged."""
    path = folder / TOMBSTONES_FILE
    if not path.is_file():
        return []
    try:
        # only line feeds end a line: U+2028 and the like may be part of a name
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); restore it: the listed samples must not be used") from error


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
