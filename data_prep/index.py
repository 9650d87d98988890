"""Shards -> index.parquet (where each sample lies) and dataset.json (what the dataset consists of)."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from csm.codec import CodecInfo
from csm.config import DataPrepConfig
from csm.data.dataset import DatasetInfo, IndexInfo, ShardInfo, fingerprint
from csm.data.folder import FileInfo, sha256_of
from csm.data.index import DATASET_FILE, INDEX_FILE, INDEX_SCHEMA, footer_sha256, write_index_file
from csm.data.sample import CODES_MEMBER, JSON_MEMBER, SCHEMA_VERSION
from csm.files import sync
from data_prep.pack import StagedSample


def member_ranges(shard: Path) -> dict[str, tuple[int, int]]:
    """Offset and size in bytes of every member's content, by member name, read from the tar's own headers."""
    with tarfile.open(shard, "r:") as tar:
        return {member.name: (member.offset_data, member.size) for member in tar}


def write_index(folder: Path, shards: list[tuple[ShardInfo, list[StagedSample]]]) -> IndexInfo:
    tables = (_index_of(folder, number, info, group) for number, (info, group) in enumerate(shards))
    path = folder / INDEX_FILE
    write_index_file(path, tables)
    sync(path)
    return IndexInfo(path.name, path.stat().st_size, sha256_of(path), footer_sha256(path))


def _index_of(folder: Path, number: int, info: ShardInfo, group: list[StagedSample]) -> pa.Table:
    """The part of the index about one shard."""
    ranges = member_ranges(folder / info.name)
    rows: dict[str, list[Any]] = {name: [] for name in INDEX_SCHEMA.names}
    for staged in group:
        codes, record = ranges[f"{staged.key}.{CODES_MEMBER}"], ranges[f"{staged.key}.{JSON_MEMBER}"]
        row = {
            "key": staged.key,
            "recording": staged.recording,
            "split": staged.split,
            "shard": number,
            "codes_offset": codes[0],
            "codes_size": codes[1],
            "json_offset": record[0],
            "json_size": record[1],
            "n_frames": staged.n_frames,
            "n_turns": staged.n_turns,
            "text_bytes": staged.text_bytes,
        }
        for name, value in row.items():
            rows[name].append(value)
    return pa.table(rows, schema=INDEX_SCHEMA)


def write_dataset_json(
    folder: Path,
    cfg: DataPrepConfig,
    audio_root: Path,
    codec: CodecInfo,
    codec_file: Path | None,
    index: IndexInfo,
    shards: list[tuple[ShardInfo, list[StagedSample]]],
    rejected: dict[str, int],
) -> DatasetInfo:
    """Writes the one file that readers start from; everything it names must be in place by then."""
    totals = {}
    for split in sorted({staged.split for _, group in shards for staged in group}):
        samples = [staged for _, group in shards for staged in group if staged.split == split]
        frames = sum(staged.n_frames for staged in samples)
        totals[split] = {
            "samples": len(samples),
            "turns": sum(staged.n_turns for staged in samples),
            "frames": frames,
            "hours": round(frames / codec.frame_rate / 3600, 6),
        }
    infos = [info for info, _ in shards]
    dataset = DatasetInfo(
        schema=SCHEMA_VERSION,
        source=cfg.source,
        lang=cfg.lang,
        licence=cfg.licence,
        codec=codec,
        codec_file=file_info(codec_file) if codec_file else None,
        audio_root=str(audio_root.resolve()),
        index=index,
        shards=infos,
        totals=totals,
        rejected=rejected,
        fingerprint=fingerprint(infos),
    )
    path = folder / DATASET_FILE
    path.write_text(dataset.to_json(), encoding="utf-8")
    sync(path)
    return dataset


def file_info(path: Path) -> FileInfo:
    return FileInfo(path.name, path.stat().st_size, sha256_of(path))
