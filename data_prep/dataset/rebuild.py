"""Rebuilds the index and `dataset.json` of a dataset from its shards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from csm.codec import CodecInfo, check_same_codec
from csm.data.dataset import DatasetInfo, ShardInfo
from csm.data.folder import check_file
from csm.data.index import DATASET_FILE
from csm.data.sample import REMEDY
from csm.progress import track
from data_prep.dataset.index import CODEC_FILE, file_info, write_dataset_json, write_index
from data_prep.dataset.shard import index_shard
from data_prep.dataset.takedown import TOMBSTONES_FILE, keep_living, keys_by_shard, read_tombstones
from data_prep.execution.processes import ordered_map

_SHARD_NAME = re.compile(r"(.+)-[0-9a-f]{8}-[^-]+-\d+\.tar")  # see data_prep/packing/shards.py


def rebuild(folder: Path, workers: int = 0) -> DatasetInfo:
    """Rebuilds the index and `dataset.json` of a dataset from its shards.

    If `dataset.json` exists, its list of shards and its descriptive fields (`source`, `audio_root`, `rejected`) are
    kept. Otherwise all tar files of the folder are used, `source` comes from their names, and the other two fields are
    empty. Samples that were taken down stay so.

    Raises:
        FileNotFoundError: there are no shards, or one that `dataset.json` names is missing.
        ValueError: a shard differs from `dataset.json`, or holds an invalid sample.
    """
    description = folder / DATASET_FILE
    old = None
    if description.is_file():
        try:
            old = DatasetInfo.parse(description.read_text(encoding="utf-8"), str(description))
        except ValueError as error:
            raise ValueError(f"{error}; or delete it to rebuild it from the shards alone") from error
    paths = [folder / shard.name for shard in old.shards] if old else sorted(folder.glob("*.tar"))
    if not paths:
        raise FileNotFoundError(f"{folder}: holds no shards (*.tar) to index")
    for path, shard in zip(paths, old.shards if old else [], strict=False):
        check_file(path, shard.size)
    tombstones = folder / TOMBSTONES_FILE
    takedown = file_info(tombstones) if tombstones.is_file() else None
    taken = keys_by_shard(read_tombstones(folder))
    shards: list[ShardInfo] = []
    codecs: list[CodecInfo] = []

    def tables() -> Iterator[pa.Table]:
        indexed = ordered_map(index_shard, paths, workers, sum(path.stat().st_size for path in paths))
        for number, shard in enumerate(track(indexed, "Reading shards", len(paths))):
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
