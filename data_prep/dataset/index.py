"""Shards -> index.parquet (where each sample lies) and dataset.json (what the dataset consists of)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from csm.codec import CodecInfo, check_same_codec
from csm.data.dataset import DatasetInfo, IndexInfo, ShardInfo, Totals, fingerprint
from csm.data.folder import FileInfo, check_file, sha256_of
from csm.data.index import DATASET_FILE, INDEX_FILE, INDEX_SCHEMA, footer_sha256, write_index_file
from csm.data.sample import REMEDY, SCHEMA_VERSION
from csm.files import write_atomically
from data_prep.dataset.shard import index_shard
from data_prep.dataset.tombstones import TOMBSTONES_FILE, keep_living, keys_by_shard, read_tombstones
from data_prep.processes import ordered_map

CODEC_FILE = "codec.safetensors"

_SHARD_NAME = re.compile(r"(.+)-[0-9a-f]{8}-[^-]+-\d+\.tar")  # see data_prep/packing/pack.py
_GROUPS = {"totals": "split", "sources": "source", "langs": "lang", "licences": "licence"}  # field -> column
_SUMS = {"samples": ("n_frames", "count"), "turns": ("n_turns", "sum"), "frames": ("n_frames", "sum")}
_BATCH_ROWS = 1 << 18


def write_index(folder: Path, tables: Iterable[pa.Table], takedown: FileInfo | None) -> IndexInfo:
    """Writes the index from one table for each shard, in order.

    After a takedown it has a name of its own, so that `dataset.json`, which names it, changes everything at once.
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
    """Writes the one file that readers start from; everything it names must be in place by then."""
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
    """Reads an index's rows by shard, for tools; training reads through csm/data/index.py."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path, page_checksum_verification=True)
        metadata = self._file.metadata
        counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._group: tuple[int, pa.Table] | None = None  # the last one read: small shards share groups

    def rows(self, first: int, count: int) -> pa.Table:
        """`count` rows from row `first` on, of INDEX_SCHEMA."""
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
    """The totals in `DatasetInfo`, by its fields' names, counted from the index."""
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


def rebuild(folder: Path, workers: int = 0) -> DatasetInfo:
    """Makes the index and `dataset.json` of a dataset again from its shards.

    If there is a `dataset.json`, its shards and descriptive fields (`source`, `audio_root`, `rejected`) are kept;
    without it, all tar files of the folder are taken, `source` comes from their names, and the other two stay empty.
    What was taken down stays so.

    Raises:
        FileNotFoundError: there are no shards, or one that `dataset.json` names is missing.
        ValueError: a shard is not as `dataset.json` says, or holds something that is not a valid sample.
    """
    description = folder / DATASET_FILE
    old = None
    if description.is_file():
        try:
            old = DatasetInfo.parse(description.read_text(encoding="utf-8"), str(description))
        except ValueError as error:
            raise ValueError(f"{error}; or delete it, and it is made from the shards alone") from error
    paths = [folder / shard.name for shard in old.shards] if old else sorted(folder.glob("*.tar"))
    if not paths:
        raise FileNotFoundError(f"{folder}: holds no shards (*.tar) to make an index of")
    for path, shard in zip(paths, old.shards if old else [], strict=False):
        check_file(path, shard.size)
    tombstones = folder / TOMBSTONES_FILE
    takedown = file_info(tombstones) if tombstones.is_file() else None
    taken = keys_by_shard(read_tombstones(folder))
    shards: list[ShardInfo] = []
    codecs: list[CodecInfo] = []

    def tables() -> Iterator[pa.Table]:
        indexed = ordered_map(index_shard, paths, workers, sum(path.stat().st_size for path in paths))
        for number, shard in enumerate(track(indexed, "Reading shards", len(paths), console=Console(stderr=True))):
            if old and shard.info.sha256 != old.shards[number].sha256:
                where = folder / shard.info.name
                raise ValueError(f"{where}: content differs from its hash in {DATASET_FILE}; restore it, or {REMEDY}")
            codecs.append(shard.codec)
            check_same_codec(codecs[0], shard.codec, f"{paths[0]} and {shard.info.name}")
            table = keep_living(shard.numbered(number), taken.get(shard.info.name, set()))
            shard.info.samples = len(table)
            shards.append(shard.info)
            yield table

    index = write_index(folder, tables(), takedown)
    codec_file = folder / CODEC_FILE
    name = _SHARD_NAME.fullmatch(paths[0].name)
    return write_dataset_json(
        folder,
        source=old.source if old else name[1] if name else folder.name,
        codec=codecs[0],
        codec_file=file_info(codec_file) if codec_file.is_file() else None,
        audio_root=old.audio_root if old else "",
        index=index,
        shards=shards,
        rejected=old.rejected if old else {},
        takedown=takedown,
    )
