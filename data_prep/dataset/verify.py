"""Reads a finished dataset in full and lists all problems."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from csm.codec import CodecInfo
from csm.data.dataset import DATASET_FILE, DatasetInfo, ShardedDataset, ShardInfo, fingerprint, is_remote
from csm.files import sha256_of
from csm.progress import track
from data_prep.dataset.index import IndexRows, totals_of
from data_prep.dataset.shard import index_row, read_sample, samples_of_tar
from data_prep.dataset.takedown import TOMBSTONES_FILE, keys_by_shard, read_tombstones
from data_prep.execution.processes import ordered_map

_NAMED = 20  # problems of one kind that are listed individually


@dataclass(frozen=True)
class _Shard:
    """A shard to verify."""

    number: int
    info: ShardInfo
    first: int  # number of its first sample
    taken: set[str]  # keys that were taken down


@dataclass(frozen=True)
class _Found:
    """The result for one shard.

    links: uint64 [2, n], hashes (see `_link`) of the links from each sample to the next and the previous conversation
    """

    problems: list[str]
    links: np.ndarray


def verify(path: str | Path, workers: int = 0) -> list[str]:
    """Problems of a dataset, one sentence each; an empty list if there are none.

    Hashes every file that `dataset.json` names, reads and checks every sample, and compares it with its row in the
    index; then checks properties of the whole dataset: keys, links between conversations, groups, totals.
    workers: processes, see `ordered_map`.

    Raises FileNotFoundError or ValueError if the dataset cannot be opened.
    """
    if is_remote(path):
        raise ValueError(f"{path}: verify reads local folders; run it where the dataset is stored")
    dataset = ShardedDataset(path)
    folder, info = dataset.local_path, dataset.info
    index = folder / info.index.name
    if sha256_of(index) != info.index.sha256:
        remedy = f"rebuild it (python -m data_prep index output={folder}), then verify again"
        return [f"{index}: content differs from its hash in {DATASET_FILE}; {remedy}"]
    problems: list[str] = []
    if info.codec_file and sha256_of(folder / info.codec_file.name) != info.codec_file.sha256:
        problems.append(f"{folder / info.codec_file.name}: content differs from its hash in {DATASET_FILE}")
    if info.fingerprint != fingerprint(info.shards, info.takedown):
        problems.append(f"{folder / DATASET_FILE}: the fingerprint does not match the shards that it names")
    problems += _verify_takedown(folder, info)
    taken = keys_by_shard(read_tombstones(folder)) if info.takedown else {}
    shards = [
        _Shard(number, shard, dataset.samples_of(number).start, taken.get(shard.name, set()))
        for number, shard in enumerate(info.shards)
    ]
    size = sum(shard.size for shard in info.shards)
    found = ordered_map(partial(_verify_shard, folder, index, info.codec), shards, workers, size)
    links = []
    for shard in track(found, "Verifying shards", len(shards)):
        problems += shard.problems
        links.append(shard.links)
    return problems + _verify_whole(dataset, np.concatenate(links, axis=1))


def _verify_takedown(folder: Path, info: DatasetInfo) -> list[str]:
    path = folder / TOMBSTONES_FILE
    if not path.is_file():
        return [f"{path}: missing, but named in {DATASET_FILE}; restore it"] if info.takedown else []
    if info.takedown is None or sha256_of(path) != info.takedown.sha256:
        return [f"{path}: lists other samples than {DATASET_FILE} says; repeat the takedown that was interrupted"]
    return []


# ------------------------------------------------------------------------------------------------- one shard


def _verify_shard(folder: Path, index: Path, codec: CodecInfo, shard: _Shard) -> _Found:
    path = folder / shard.info.name
    problems = []
    if sha256_of(path) != shard.info.sha256:
        problems.append(f"{path}: content differs from its hash in {DATASET_FILE}")
    rows = IndexRows(index).rows(shard.first, shard.info.samples).to_pylist()
    expected = {row["key"]: row for row in rows}
    links = []
    for key in sorted(expected.keys() & shard.taken):
        problems.append(f"{path}, sample {key}: was taken down, but is in the index")
    try:
        for key, members in samples_of_tar(path):
            row = expected.pop(key, None)
            if row is None:
                if key not in shard.taken:
                    problems.append(f"{path}, sample {key}: not in the index, or a duplicate")
                continue
            try:
                sample = read_sample(path, key, members)
            except ValueError as error:
                problems.append(str(error))
                continue
            links.append((_link(key, sample.next), _link(sample.prev, key)))
            if sample.codec != codec:
                problems.append(f"{path}, sample {key}: made with another codec than the one in {DATASET_FILE}")
            different = _differences(row, index_row(sample, members) | {"shard": shard.number})
            if different:
                problems.append(f"{path}, sample {key}: the index has another {', '.join(different)}")
    except ValueError as error:  # of the tar file, whose other members cannot be located
        return _Found([*problems, str(error)], _array(links))
    problems += [f"{path}, sample {key}: missing from the tar" for key in expected]
    return _Found(problems, _array(links))


def _differences(row: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Columns in which a row of the index differs from the shard."""
    quality = found["quality"]
    found["quality"] = None if quality is None else float(np.float32(quality))
    return [name for name, value in row.items() if found[name] != value]


def _link(earlier: str | None, later: str | None) -> int:
    """A 64-bit hash of two keys; 0 if there is no link."""
    if earlier is None or later is None:
        return 0
    return int.from_bytes(hashlib.blake2b(f"{earlier} {later}".encode(), digest_size=8).digest(), "big")


def _array(links: list[tuple[int, int]]) -> np.ndarray:
    return np.array(links, dtype=np.uint64).reshape(-1, 2).T


# ------------------------------------------------------------------------------------------ the whole dataset


def _verify_whole(dataset: ShardedDataset, links: np.ndarray) -> list[str]:
    folder, info = dataset.local_path, dataset.info
    index = folder / info.index.name
    problems = _named(_repeated_keys(index), lambda key: f"{index}: key {key} occurs more than once")
    problems += _named(
        _groups_on_both_sides(index), lambda group: f"{index}: group {group!r} is in more than one split"
    )
    if links.shape[1] == len(dataset):  # else some samples could not be read, which has to be fixed first
        lonely = np.flatnonzero(~(_answered(links[0], links[1]) & _answered(links[1], links[0])))
        problems += _named(
            lonely.tolist(),
            lambda i: (
                f"{index}: sample {dataset.key(i)} links to a previous or next conversation that is missing, "
                "or that does not link back"
            ),
        )
    return problems + _verify_totals(folder, info)


def _answered(links: np.ndarray, others: np.ndarray) -> np.ndarray:
    return (links == 0) | np.isin(links, others)


def _repeated_keys(index: Path) -> list[str]:
    counts = pc.value_counts(pq.read_table(index, columns=["key"])["key"])
    return counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()


def _groups_on_both_sides(index: Path) -> list[str]:
    table = pq.read_table(index, columns=["group", "split"])
    splits = table.group_by("group").aggregate([("split", "count_distinct")])
    return sorted(splits.filter(pc.greater(splits["split_count_distinct"], 1))["group"].to_pylist())


def _verify_totals(folder: Path, info: DatasetInfo) -> list[str]:
    problems = []
    for field, counted in totals_of(folder / info.index.name, info.codec.frame_rate).items():
        said = getattr(info, field)
        for name in sorted(said.keys() | counted.keys()):
            for what in ("samples", "turns", "frames"):
                a, b = said.get(name, {}).get(what, 0), counted.get(name, {}).get(what, 0)
                if a != b:
                    kind = {"totals": "split"}.get(field, field.removesuffix("s"))
                    problems.append(f"{folder / DATASET_FILE}: says {a} {what} in {kind} {name}, the index {b}")
    return problems


def _named(found: list[Any], sentence: Callable[[Any], str]) -> list[str]:
    more = [f"... and {len(found) - _NAMED} more like this"] if len(found) > _NAMED else []
    return [sentence(entry) for entry in found[:_NAMED]] + more
