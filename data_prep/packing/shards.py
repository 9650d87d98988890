"""Writes staged samples to tar shards, shuffled over the whole dataset, and indexes them.

The order depends only on the seed and the samples' keys: neighbours in a shard come from anywhere in the dataset, and
units, staging order and number of processes do not affect a single byte. An interrupted pack starts over, in a folder
that data_prep/packing/output.py clears.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from webdataset import TarWriter

from csm.data.dataset import IndexInfo, ShardInfo
from csm.data.folder import FileInfo, LocalFolder
from csm.data.sample import CODES_MEMBER, JSON_MEMBER
from csm.files import write_atomically
from csm.progress import track
from data_prep.dataset.index import write_index
from data_prep.dataset.shard import IndexedShard, index_shard
from data_prep.execution.processes import ordered_map
from data_prep.packing.conversation import slug
from data_prep.packing.staging import StagedSamples, read_staging, staged_file


@dataclass(frozen=True)
class ShardPlan:
    """A shard to write: the locations of its samples in the staging files, in order."""

    staging: Path
    path: Path
    units: list[str]
    unit: np.ndarray  # int [n], position in `units`
    offset: np.ndarray  # int64 [n]
    sizes: tuple[np.ndarray, np.ndarray, np.ndarray]  # bytes of the key, the codes and the json member after it


def write_shards(
    staging: Path, folder: Path, source: str, shard_bytes: int, seed: int, workers: int
) -> tuple[list[ShardInfo], IndexInfo]:
    """Writes all staged samples to `<source>-<content id>-<split>-<number>.tar` in `folder`, one split per shard, and
    their index next to them.

    The content id makes shard names unique among datasets, since caches of WebDataset shards are keyed by name. A shard
    is closed once it holds `shard_bytes`. workers: processes, see `ordered_map`.

    Raises ValueError if nothing is staged, or two samples have the same key.
    """
    shards = plan_shards(staging, folder, source, shard_bytes, seed)
    infos: list[ShardInfo] = []

    def tables() -> Iterator[pa.Table]:
        size = sum(path.stat().st_size for path in staging.iterdir())
        written = ordered_map(_write_shard, shards, workers, size)
        for number, shard in enumerate(track(written, "Writing shards", len(shards))):
            infos.append(shard.info)
            yield shard.numbered(number)

    index = write_index(folder, tables(), takedown=None)
    return infos, index


def plan_shards(staging: Path, folder: Path, source: str, shard_bytes: int, seed: int) -> list[ShardPlan]:
    """Assigns samples to shards, in order; arguments and errors as for `write_shards`."""
    samples = read_staging(staging, seed)
    order = np.lexsort((samples.order[:, 1], samples.order[:, 0]))
    _check_unique(samples, order)
    content = hashlib.sha256(f"{seed}/{shard_bytes}/".encode() + samples.digest[order].tobytes()).hexdigest()[:8]
    shards = []
    for split, name in enumerate(samples.splits):
        chosen = order[samples.split[order] == split]
        sizes = samples.codes_size[chosen].astype(np.int64) + samples.json_size[chosen]
        for number, part in enumerate(np.split(chosen, _ends(sizes, shard_bytes)[:-1])):
            path = folder / f"{slug(source, 20)}-{content}-{name}-{number:06d}.tar"
            used, unit = np.unique(samples.unit[part], return_inverse=True)
            units = [samples.units[i] for i in used]
            parts = tuple(column[part] for column in (samples.key_size, samples.codes_size, samples.json_size))
            shards.append(ShardPlan(staging, path, units, unit, samples.offset[part], parts))
    return shards


def _ends(sizes: np.ndarray, shard_bytes: int) -> list[int]:
    """The end of each shard, as a number of samples: the sample that brings it to `shard_bytes`, or the last."""
    total, ends = np.cumsum(sizes), [0]
    while ends[-1] < len(sizes):
        begin = int(total[ends[-1] - 1]) if ends[-1] else 0
        ends.append(min(int(np.searchsorted(total, begin + shard_bytes)) + 1, len(sizes)))
    return ends[1:]


def _check_unique(samples: StagedSamples, order: np.ndarray) -> None:
    """Equal keys have equal hashes, so they are adjacent in `order`."""
    hashes = samples.order[order]
    (twice,) = np.nonzero((hashes[1:] == hashes[:-1]).all(axis=1))
    if len(twice):
        units = sorted({samples.units[samples.unit[order[i]]] for i in (twice[0], twice[0] + 1)})
        raise ValueError(f"{len(twice)} samples have the key of another one, the first in unit {' and '.join(units)}")


def _write_shard(shard: ShardPlan) -> IndexedShard:
    write_atomically(shard.path, lambda temporary: _write_tar(shard, temporary))
    return index_shard(shard.path)


def _write_tar(shard: ShardPlan, path: Path) -> None:
    staged = LocalFolder(shard.staging)
    files = [FileInfo(staged_file(unit), 0, "") for unit in shard.units]  # read by name and offset only
    # A fixed timestamp, so that equal samples give equal shards.
    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for unit, offset, *sizes in zip(shard.unit, shard.offset, *shard.sizes, strict=True):
            key_end, codes_end, end = (int(size) for size in np.cumsum(sizes, dtype=np.int64))
            data = staged.read(files[unit], int(offset), end)
            codes, record = data[key_end:codes_end], data[codes_end:]
            tar.write({"__key__": data[:key_end].decode(), CODES_MEMBER: codes, JSON_MEMBER: record})
