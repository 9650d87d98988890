"""Writes index.parquet (the location of each sample) and dataset.json (the description of the dataset)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csm.codec import CodecInfo
from csm.data.dataset import DatasetInfo, IndexInfo, ShardInfo, Totals, fingerprint
from csm.data.folder import FileInfo
from csm.data.index import DATASET_FILE, INDEX_FILE, INDEX_SCHEMA, footer_sha256, write_index_file
from csm.data.sample import SCHEMA_VERSION
from csm.files import sha256_of, write_atomically

CODEC_FILE = "codec.safetensors"

_GROUPS = {"totals": "split", "sources": "source", "langs": "lang", "licences": "licence"}  # field -> column
_SUMS = {"samples": ("n_frames", "count"), "turns": ("n_turns", "sum"), "frames": ("n_frames", "sum")}
_BATCH_ROWS = 1 << 18


def write_index(folder: Path, tables: Iterable[pa.Table], takedown: FileInfo | None) -> IndexInfo:
    """Writes the index from one table per shard, in order.

    After a takedown it gets a new name, so that replacing `dataset.json`, which names it, switches atomically.
    """
    name = f"index-{takedown.sha256[:16]}.parquet" if takedown else INDEX_FILE
    path = folder / name
    write_atomically(path, lambda temporary: write_index_file(temporary, tables))
    return IndexInfo(name, path.stat().st_size, sha256_of(path), footer_sha256(path))


def write_dataset_json(
    folder: Path,
    *,
    source: str,
    codec: CodecInfo,
    codec_file: FileInfo | None,
    audio_root: str,
    index: IndexInfo,
    shards: list[ShardInfo],
    rejected: dict[str, int],
    takedown: FileInfo | None = None,
) -> DatasetInfo:
    """Writes dataset.json, the entry point of readers; all files that it names must exist."""
    dataset = DatasetInfo(
        schema=SCHEMA_VERSION,
        source=source,
        codec=codec,
        codec_file=codec_file,
        audio_root=audio_root,
        index=index,
        shards=shards,
        takedown=takedown,
        **totals_of(folder / index.name, codec.frame_rate),
        rejected=rejected,
        fingerprint=fingerprint(shards, takedown),
    )
    write_atomically(folder / DATASET_FILE, lambda path: path.write_text(dataset.to_json(), encoding="utf-8"))
    return dataset


class IndexRows:
    """Reads rows of an index by shard, for tools; training reads through csm/data/index.py."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path, page_checksum_verification=True)
        metadata = self._file.metadata
        counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._group: tuple[int, pa.Table] | None = None  # the last one read, since small shards share row groups

    def rows(self, first: int, count: int) -> pa.Table:
        """Rows `first` to `first + count`, of INDEX_SCHEMA."""
        parts, end = [INDEX_SCHEMA.empty_table()], first + count
        while first < end:
            group = int(np.searchsorted(self._first, first, side="right")) - 1
            low, high = int(self._first[group]), min(int(self._first[group + 1]), end)
            parts.append(self._read(group).slice(first - low, high - first))
            first = high
        return pa.concat_tables(parts)

    def _read(self, group: int) -> pa.Table:
        if self._group is None or self._group[0] != group:
            self._group = group, self._file.read_row_group(group, use_threads=False)
        return self._group[1]


def totals_of(index: Path, frame_rate: float) -> dict[str, dict[str, Totals]]:
    """The totals of `DatasetInfo`, by field name, counted from the index."""
    columns = list(_GROUPS.values())
    rows = []
    with pq.ParquetFile(index, read_dictionary=columns) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=[*columns, "n_frames", "n_turns"], use_threads=False):
            grouped = pa.Table.from_batches([batch]).group_by(columns, use_threads=False)
            rows += grouped.aggregate(list(_SUMS.values())).to_pylist()
    totals: dict[str, dict[str, Totals]] = {field: {} for field in _GROUPS}
    for row in rows:
        for field, column in _GROUPS.items():
            entry = totals[field].setdefault(row[column], dict.fromkeys(_SUMS, 0))
            for name, (value, how) in _SUMS.items():
                entry[name] += row[f"{value}_{how}"]
    for group in totals.values():
        for entry in group.values():
            entry["hours"] = round(entry["frames"] / frame_rate / 3600, 6)
    return {field: dict(sorted(group.items())) for field, group in totals.items()}


def file_info(path: Path) -> FileInfo:
    return FileInfo(path.name, path.stat().st_size, sha256_of(path))
