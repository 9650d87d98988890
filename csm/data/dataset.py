"""A prepared dataset: `dataset.json`, `index.parquet` and the tar shards beside them, read by sample number.

`dataset.json` is written last and names everything else with sizes and hashes; what it does not name does not exist.
The tars are plain WebDataset shards, but training reads them by offset: one `pread` for each sample, in any order.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csm.codec.base import CodecInfo
from csm.data.sample import REMEDY, SCHEMA_VERSION, Sample, sample_from_members

DATASET_FILE = "dataset.json"
INDEX_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "recording": pa.string(),
        "split": pa.string(),
        "shard": pa.int32(),  # position in DatasetInfo.shards
        "codes_offset": pa.int64(),  # bytes into the shard, of the member's content
        "codes_size": pa.int64(),
        "json_offset": pa.int64(),
        "json_size": pa.int64(),
        "n_frames": pa.int32(),
        "n_turns": pa.int32(),
        "text_bytes": pa.int32(),  # UTF-8 bytes of all turns' texts
    }
)
"""Columns of the index: one row for each sample, in shard order."""

_MAX_OPEN_SHARDS = 256  # well below the usual limit of 1024 open files


@dataclass
class FileInfo:
    """A file of the dataset, by name within its folder."""

    name: str
    size: int  # bytes
    sha256: str


@dataclass
class ShardInfo(FileInfo):
    samples: int


@dataclass
class DatasetInfo:
    """Content of `dataset.json`."""

    schema: int
    source: str
    lang: str
    licence: str
    codec: CodecInfo
    codec_file: FileInfo | None  # weights of a codec fitted to this dataset
    audio_root: str  # folder that the samples' `audio` is relative to, where the dataset was prepared
    index: FileInfo
    shards: list[ShardInfo]
    totals: dict[str, Any]  # samples, turns, frames, hours; for each split
    rejected: dict[str, int]  # reason -> turns
    fingerprint: str  # over the shards' hashes: same fingerprint, same samples

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: str | Path) -> DatasetInfo:
        """Reads `dataset.json` of a dataset folder.

        Raises FileNotFoundError if there is none, ValueError if it cannot be read or has another schema version.
        """
        path = Path(path)
        file = path / DATASET_FILE
        if not file.is_file():
            raise FileNotFoundError(
                f"{path}: not a prepared dataset (it holds no {DATASET_FILE}); "
                f"prepare one with: python -m data_prep prepare input=MANIFEST output={path}"
            )
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            if values["schema"] != SCHEMA_VERSION:
                raise ValueError(f"schema version {values['schema']}, this program reads {SCHEMA_VERSION}")
            codec_file = values["codec_file"]
            values |= {
                "codec": CodecInfo.from_dict(values["codec"]),
                "codec_file": codec_file and FileInfo(**codec_file),
                "index": FileInfo(**values["index"]),
                "shards": [ShardInfo(**shard) for shard in values["shards"]],
            }
            return cls(**values)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: cannot be read as a dataset description ({error}); {REMEDY}") from error


def fingerprint(shards: list[ShardInfo]) -> str:
    """16 hex digits over the shards' hashes, in order."""
    return hashlib.sha256("\n".join(shard.sha256 for shard in shards).encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class ShardedDataset:
    """Random access to the samples of a prepared dataset.

    The index is held as numpy arrays, one entry for each sample: `keys`, `recordings`, `split`, `shard`, `n_frames`,
    `n_turns`, `text_bytes`. Works in DataLoader workers, forked or spawned.

    Raises:
        FileNotFoundError: no `dataset.json`, or a file that it names is missing.
        ValueError: a named file has another size (cut short) or, for the index, other content.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.info = DatasetInfo.read(self.path)
        self.codec: CodecInfo = self.info.codec
        named = [self.info.index, *self.info.shards]
        for file in [*named, self.info.codec_file] if self.info.codec_file else named:
            self._check_file(file)
        index = self._read_index()
        self.keys: np.ndarray = index["key"]
        self.recordings: np.ndarray = index["recording"]
        self.split: np.ndarray = index["split"]
        self.shard: np.ndarray = index["shard"]
        self.n_frames: np.ndarray = index["n_frames"]
        self.n_turns: np.ndarray = index["n_turns"]
        self.text_bytes: np.ndarray = index["text_bytes"]
        self._codes_range = np.stack([index["codes_offset"], index["codes_size"]], axis=1)
        self._json_range = np.stack([index["json_offset"], index["json_size"]], axis=1)
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def codec_file(self) -> Path | None:
        """Weights of the codec fitted to this dataset; None if the codec comes from elsewhere."""
        return self.path / self.info.codec_file.name if self.info.codec_file else None

    @property
    def hours(self) -> float:
        """Speech in the dataset, over all splits."""
        return float(self.n_frames.sum()) / self.codec.frame_rate / 3600

    def select(self, split: str) -> np.ndarray:
        """Numbers of the samples of a split, ascending: int64 [n]."""
        return np.flatnonzero(self.split == split).astype(np.int64)

    def read(self, i: int) -> Sample:
        """Sample number `i`. Raises ValueError naming shard and key if its bytes are not a valid sample."""
        shard = int(self.shard[i])
        where = f"{self.path / self.info.shards[shard].name}, sample {self.keys[i]}"
        codes = self._read_range(shard, *self._codes_range[i], where)
        record = self._read_range(shard, *self._json_range[i], where)
        sample = sample_from_members(codes, record, where)
        if sample.key != self.keys[i]:
            raise ValueError(f"{where}: the index points at sample {sample.key} instead; {REMEDY}")
        return sample

    def audio_path(self, sample: Sample) -> Path | None:
        """The sample's original recording, as far as it is known; it may have been moved since."""
        return Path(self.info.audio_root, sample.audio) if sample.audio else None

    def _check_file(self, file: FileInfo) -> None:
        path = self.path / file.name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing, but named in {DATASET_FILE}; restore it, or {REMEDY}")
        size = path.stat().st_size
        if size != file.size:
            problem = "cut short" if size < file.size else "longer than it was written"
            raise ValueError(f"{path}: {problem} ({size} bytes of {file.size}); restore it, or {REMEDY}")

    def _read_index(self) -> dict[str, np.ndarray]:
        path = self.path / self.info.index.name
        if sha256_of(path) != self.info.index.sha256:
            raise ValueError(f"{path}: not the file named in {DATASET_FILE} (other content); restore it, or {REMEDY}")
        table = pq.read_table(path, schema=INDEX_SCHEMA)
        return {name: table[name].to_numpy() for name in table.column_names}

    def _read_range(self, shard: int, offset: int, size: int, where: str) -> bytes:
        data = os.pread(self._file(shard).fileno(), int(size), int(offset))
        if len(data) != size:
            raise ValueError(f"{where}: the shard ends before the sample does; restore it, or {REMEDY}")
        return data

    def _file(self, shard: int) -> BinaryIO:
        if shard not in self._open:
            if len(self._open) >= _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
            self._open[shard] = (self.path / self.info.shards[shard].name).open("rb", buffering=0)
        self._open.move_to_end(shard)
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # open files stay in their process
