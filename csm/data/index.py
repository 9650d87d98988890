"""`index.parquet`: location and contents of each sample, read one row group at a time.

Opening reads only the two columns that assign samples to shards and splits (a few bytes a shard, as encoded). The whole
file is never hashed: every page has a checksum, verified when it is read, and `dataset.json` holds the hash of the
footer, which locates the pages. Samples that were taken down (data_prep/dataset/takedown.py) have no row, although the
shard still holds them.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csm.data.sample import REMEDY

DATASET_FILE = "dataset.json"
INDEX_FILE = "index.parquet"
INDEX_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "recording": pa.string(),
        "source": pa.string(),
        "lang": pa.string(),
        "licence": pa.string(),
        "group": pa.string(),
        "split": pa.string(),
        "shard": pa.int32(),  # position in DatasetInfo.shards
        "codes_offset": pa.int64(),  # of the member's content, in bytes from the start of the shard
        "codes_size": pa.int64(),
        "json_offset": pa.int64(),
        "json_size": pa.int64(),
        "n_frames": pa.int32(),
        "n_turns": pa.int32(),
        "n_speakers": pa.int32(),
        "loss_frames": pa.int32(),  # frames of the turns that are predicted
        "text_bytes": pa.int32(),  # UTF-8 bytes of all turns' texts
        "quality": pa.float32(),  # DNSMOS OVRL, mean over the frames of the turns that have it; null: no turn has it
    }
)
"""Columns of the index. One row for each sample, in shard order; the samples of a shard all have the same split."""

_ROW_GROUP = 4096  # rows of a group, at least: small shards share one
_LARGEST_ROW_GROUP = 1 << 16
_CACHED_ROWS = 1 << 20  # in cached groups; a window of 16 shards of 512 MB has 60,000 to 100,000
_BATCH_ROWS = 1 << 20
_LOCATION = ["key", "codes_offset", "codes_size", "json_offset", "json_size"]


def write_index_file(path: Path, tables: Iterable[pa.Table]) -> None:
    """Writes tables of INDEX_SCHEMA, one for each shard in order. Equal rows give equal bytes."""
    with pq.ParquetWriter(path, INDEX_SCHEMA, write_page_checksum=True, write_statistics=False) as writer:

        def write(parts: list[pa.Table]) -> None:
            writer.write_table(pa.concat_tables(parts).combine_chunks(), row_group_size=_LARGEST_ROW_GROUP)

        waiting: list[pa.Table] = []
        for table in tables:
            waiting.append(table)
            if sum(len(table) for table in waiting) >= _ROW_GROUP:
                write(waiting)
                waiting = []
        if waiting:
            write(waiting)


def footer_sha256(path: Path) -> str:
    """Hash of a parquet file's footer, which holds the places and encodings of all pages."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 8))
        length = int.from_bytes(file.read(4), "little") + 8  # then 4 bytes "PAR1"
        file.seek(max(0, end - length))
        return hashlib.sha256(file.read()).hexdigest()


def interval_of(starts: np.ndarray, number: int) -> int:
    """The i with `starts[i] <= number < starts[i + 1]`, where `starts` ascends."""
    return int(np.searchsorted(starts, number, side="right")) - 1


@dataclass(frozen=True)
class Location:
    """Byte ranges of a sample's two members in its shard."""

    key: str
    codes_offset: int
    codes_size: int
    json_offset: int
    json_size: int


class Index:
    """An opened index. Can be forked and pickled.

    sha256: hash of the footer, see `footer_sha256`

    Attributes:
        first: int64 [shards + 1], number of each shard's first sample; the last entry is the number of samples
        split: the split of each shard; "" for a shard without samples

    Raises ValueError if the file is damaged, its footer has another hash, or its shards do not have
    `samples_per_shard` samples.
    """

    def __init__(self, path: Path, samples_per_shard: list[int], sha256: str) -> None:
        self.path = path
        self._opened: pq.ParquetFile | None = None
        self._groups: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._columns: dict[str, np.ndarray] = {}
        self.first = np.concatenate([[0], np.cumsum(samples_per_shard, dtype=np.int64)])
        if footer_sha256(path) != sha256:
            raise ValueError(
                f"{path}: damaged, or not the index that {DATASET_FILE} describes; restore it, or {REMEDY}"
            )
        with self._readable():
            metadata = self._file.metadata
            counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            self._group_first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
            self.split = self._splits(len(samples_per_shard))

    def __len__(self) -> int:
        return int(self.first[-1])

    def shard_of(self, sample: int) -> int:
        return interval_of(self.first, sample)

    def location(self, sample: int) -> Location:
        group = interval_of(self._group_first, sample)
        row = sample - int(self._group_first[group])
        columns = self._group(group)
        return Location(columns["key"][row].as_py(), *(int(columns[name][row]) for name in _LOCATION[1:]))

    def column(self, name: str) -> np.ndarray:
        """A whole column, decoded on first use; null is NaN. For tools that read all samples, not for training."""
        if name not in self._columns:
            with self._readable():
                column = self._file.read([name], use_threads=False)[name]
                self._columns[name] = column.cast(INDEX_SCHEMA.field(name).type).to_numpy()
        return self._columns[name]

    @property
    def _file(self) -> pq.ParquetFile:
        if self._opened is None:
            # Memory-mapped, because forked workers would share the position of an open file.
            self._opened = pq.ParquetFile(
                self.path, memory_map=True, page_checksum_verification=True, read_dictionary=["split"]
            )
        return self._opened

    def _group(self, group: int) -> dict[str, Any]:
        if group not in self._groups:
            with self._readable():
                table = self._file.read_row_group(group, _LOCATION, use_threads=False)
            self._groups[group] = {
                name: table[name].combine_chunks() if name == "key" else table[name].to_numpy() for name in _LOCATION
            }
            while len(self._groups) > 1 and sum(len(kept["key"]) for kept in self._groups.values()) > _CACHED_ROWS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(group)
        return self._groups[group]

    def _splits(self, num_shards: int) -> list[str]:
        """The split of each shard. Checks that the samples of each shard are those in `first`, and of one split."""
        split = [""] * num_shards
        start = 0
        for batch in self._file.iter_batches(_BATCH_ROWS, columns=["shard", "split"], use_threads=False):
            end = start + len(batch)
            if end > len(self):
                break
            first, last = self.shard_of(start), self.shard_of(end - 1)
            edges = np.clip(self.first[first : last + 2], start, end)
            if not np.array_equal(batch["shard"], np.repeat(np.arange(first, last + 1), np.diff(edges))):
                raise ValueError(f"samples {start}..{end - 1} are not in the shards that {DATASET_FILE} says")
            kinds = batch["split"].indices.to_numpy()
            for shard, low, high in zip(range(first, last + 1), edges[:-1] - start, edges[1:] - start, strict=True):
                if low == high:
                    continue
                name = batch["split"].dictionary[int(kinds[low])].as_py()
                if (kinds[low:high] != kinds[low]).any() or split[shard] not in ("", name):
                    raise ValueError(f"shard {shard} holds samples of more than one split")
                split[shard] = name
            start = end
        if start != len(self):
            raise ValueError(f"{DATASET_FILE} says {len(self)} samples, it has {self._file.metadata.num_rows}")
        return split

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, ValueError) as error:
            problem = " ".join(str(error).split())
            raise ValueError(f"{self.path}: cannot be read ({problem}); restore it, or {REMEDY}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_groups": OrderedDict(), "_columns": {}}
