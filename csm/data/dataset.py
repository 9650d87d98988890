"""A prepared dataset: `dataset.json`, `index.parquet` and tar shards in one folder, read by sample number.

`dataset.json` is written last and names all other files with sizes and hashes; files that it does not name are ignored.
The tars are plain WebDataset shards, but training reads them by offset, in any order.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csm.codec.base import CodecInfo
from csm.data.folder import FileInfo, LocalFolder
from csm.data.index import DATASET_FILE, Index
from csm.data.remote import RemoteFolder
from csm.data.sample import (
    READABLE,
    READABLE_SCHEMAS,
    REMEDY,
    Sample,
    Turn,
    record_from_member,
    sample_from_members,
    turns_from_member,
)

Totals = dict[str, Any]
"""Samples, turns, frames and hours, by name, of a part of a dataset."""


@dataclass
class ShardInfo(FileInfo):
    samples: int  # rows in the index, all of one split; samples that were taken down have none


@dataclass
class IndexInfo(FileInfo):
    footer_sha256: str  # see csm/data/index.py


@dataclass
class DatasetInfo:
    """Content of `dataset.json`."""

    schema: int
    source: str  # the dataset's name, part of shard names; its samples may come from several sources
    codec: CodecInfo
    codec_file: FileInfo | None  # weights of a codec fitted to this dataset
    audio_root: str  # folder that the samples' `audio` is relative to, where the dataset was prepared
    index: IndexInfo
    shards: list[ShardInfo]
    takedown: FileInfo | None  # samples in the shards that have no row in the index: data_prep/dataset/takedown.py
    totals: dict[str, Totals]  # of each split
    sources: dict[str, Totals]
    langs: dict[str, Totals]
    licences: dict[str, Totals]
    rejected: dict[str, int]  # reason -> turns
    fingerprint: str  # see `fingerprint`; equal fingerprints mean equal samples

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def parse(cls, text: str, where: str) -> DatasetInfo:
        """Inverse of `to_json`. Raises ValueError, naming the file as `where`, if the text cannot be parsed or has a
        schema version that is not supported.
        """
        try:
            values = json.loads(text)
            if values["schema"] not in READABLE_SCHEMAS:
                raise ValueError(f"schema version {values['schema']}, this program reads {READABLE}")
            codec_file, takedown = values["codec_file"], values["takedown"]
            values |= {
                "codec": CodecInfo.from_dict(values["codec"]),
                "codec_file": codec_file and FileInfo(**codec_file),
                "index": IndexInfo(**values["index"]),
                "shards": [ShardInfo(**shard) for shard in values["shards"]],
                "takedown": takedown and FileInfo(**takedown),
            }
            return cls(**values)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{where}: cannot be read as a dataset description ({error}); {REMEDY}") from error


def fingerprint(shards: list[ShardInfo], takedown: FileInfo | None) -> str:
    """16 hex digits over the hashes of the shards, in order, and of the list of samples that were taken down."""
    files = [*shards, takedown] if takedown else shards
    return hashlib.sha256("\n".join(file.sha256 for file in files).encode()).hexdigest()[:16]


DEFAULT_CACHE = Path("~/.cache/csm").expanduser()
DEFAULT_CACHE_BYTES = 100 * 10**9


def is_remote(path: str | Path) -> bool:
    """Whether a dataset's path is a URL of another file system than this machine's."""
    return "://" in str(path) and not str(path).startswith("file://")


class ShardedDataset:
    """Random access to the samples of a prepared dataset.

    path: a folder, or an fsspec URL, of which at most `cache_bytes` of shards are kept in `cache_dir`

    Memory grows with the number of shards, not of samples, so tens of millions of samples open in seconds; only
    `column` reads something for every sample. Works in DataLoader workers, forked or spawned.

    Attributes:
        path: the folder or URL as text, without a trailing slash; tools for local datasets use `local_path`
        info: content of `dataset.json`
        codec: the codec of all samples
        codec_file: local path of the codec's weights; None if they are not part of the dataset

    Raises:
        FileNotFoundError: there is no `dataset.json`, or a file that it names is missing.
        ValueError: a named file has another size, or the index is damaged or belongs to another dataset.
    """

    def __init__(
        self, path: str | Path, cache_dir: Path = DEFAULT_CACHE, cache_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        self.folder: LocalFolder | RemoteFolder
        if is_remote(path):
            self.folder = RemoteFolder(str(path), cache_dir, cache_bytes)
            self.path = self.folder.url
        else:
            self.folder = LocalFolder(Path(str(path).removeprefix("file://")))
            self.path = str(self.folder.path)
        description = self.folder.read_text(DATASET_FILE)
        if description is None:
            raise FileNotFoundError(
                f"{path}: not a prepared dataset (it holds no {DATASET_FILE}); "
                f"prepare one with: python -m data_prep input=MANIFEST output={path}"
            )
        self.info = DatasetInfo.parse(description, self.folder.where(DATASET_FILE))
        self.codec = self.info.codec
        self.folder.check_shards(self.info.shards)
        codec_file = self.info.codec_file
        self.codec_file = self.folder.local_copy(codec_file) if codec_file else None
        counts = [shard.samples for shard in self.info.shards]
        self._index = Index(self.folder.local_copy(self.info.index), counts, self.info.index.footer_sha256)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def local_path(self) -> Path:
        """The dataset's folder. Raises ValueError if the dataset is remote."""
        if not isinstance(self.folder, LocalFolder):
            raise ValueError(f"{self.path}: a remote dataset; run this where the dataset is stored")
        return self.folder.path

    @property
    def hours(self) -> float:
        """Hours of speech in all splits."""
        return sum(totals["frames"] for totals in self.info.totals.values()) / self.codec.frame_rate / 3600

    def shards(self, split: str) -> np.ndarray:
        """int64 [m, 2]: for each shard of a split, the number of its first sample and its count of samples."""
        chosen = np.array([found == split for found in self._index.split], dtype=bool)
        first = self._index.first
        return np.stack([first[:-1], np.diff(first)], axis=1)[chosen]

    def select(self, split: str) -> np.ndarray:
        """Numbers of the samples of a split, ascending: int64 [n]."""
        parts = [np.arange(first, first + count) for first, count in self.shards(split)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def samples_of(self, shard: int) -> range:
        """Numbers of the samples of a shard."""
        return range(int(self._index.first[shard]), int(self._index.first[shard + 1]))

    def read(self, i: int) -> Sample:
        """Sample number `i`. Raises ValueError naming shard and key if its bytes are not a valid sample."""
        location = self._index.location(i)
        where = self._where(i, location.key)
        codes = self._read_range(i, location.codes_offset, location.codes_size, where)
        record = self._read_range(i, location.json_offset, location.json_size, where)
        sample = sample_from_members(codes, record, where)
        if sample.key != location.key:
            raise ValueError(f"{where}: the index points at sample {sample.key} instead; {REMEDY}")
        return sample

    def read_turns(self, i: int) -> list[Turn]:
        """The turns of sample number `i`, without its codes."""
        location = self._index.location(i)
        where = self._where(i, location.key)
        return turns_from_member(self._read_range(i, location.json_offset, location.json_size, where), where)

    def read_record(self, i: int) -> dict[str, Any]:
        """The json member of sample number `i`, everything but its codes, as plain values."""
        location = self._index.location(i)
        where = self._where(i, location.key)
        return record_from_member(self._read_range(i, location.json_offset, location.json_size, where), where)

    def key(self, i: int) -> str:
        return self._index.location(i).key

    def audio_path(self, sample: Sample) -> Path | None:
        """File of the sample's original recording, which may have been moved since; None if it is not known."""
        return Path(self.info.audio_root, sample.audio) if sample.audio else None

    def column(self, name: str) -> np.ndarray:
        """A column of the index (INDEX_SCHEMA in csm/data/index.py), one entry for each sample; read on first use."""
        return self._index.column(name)

    def _where(self, i: int, key: str) -> str:
        return f"{self.folder.where(self.info.shards[self._index.shard_of(i)].name)}, sample {key}"

    def _read_range(self, i: int, offset: int, length: int, where: str) -> bytes:
        shard = self.info.shards[self._index.shard_of(i)]
        if offset + length > shard.size:
            raise ValueError(f"{where}: the index points beyond the end of the shard; {REMEDY}")
        return self.folder.read(shard, offset, length)
