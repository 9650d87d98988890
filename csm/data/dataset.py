"""A prepared dataset: `dataset.json`, `index.parquet` and the tar shards beside them, read by sample number.

`dataset.json` is written last and names everything else with sizes and hashes; what it does not name does not exist.
The tars are plain WebDataset shards, but training reads them by offset: one `pread` for each sample, in any order.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csm.codec.base import CodecInfo
from csm.data.folder import DatasetFolder, FileInfo, LocalFolder
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
"""Of a part of a dataset: samples, turns, frames, hours."""


@dataclass
class ShardInfo(FileInfo):
    samples: int  # in the index: all of one split, without those that were taken down


@dataclass
class IndexInfo(FileInfo):
    footer_sha256: str  # see csm/data/index.py


@dataclass
class DatasetInfo:
    """Content of `dataset.json`. Totals are samples, turns, frames and hours, by name."""

    schema: int
    source: str  # the dataset's name, part of shard names; its samples may come from several sources
    codec: CodecInfo
    codec_file: FileInfo | None  # weights of a codec fitted to this dataset
    audio_root: str  # folder that the samples' `audio` is relative to, where the dataset was prepared
    index: IndexInfo
    shards: list[ShardInfo]
    takedown: FileInfo | None  # what the shards hold, but the index leaves out; see data_prep/dataset/takedown.py
    totals: dict[str, Totals]  # of each split
    sources: dict[str, Totals]
    langs: dict[str, Totals]
    licences: dict[str, Totals]
    rejected: dict[str, int]  # reason -> turns
    fingerprint: str  # see `fingerprint`: same fingerprint, same samples

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def parse(cls, text: str, where: str) -> DatasetInfo:
        """Inverse of `to_json`; messages name the file as `where`.

        Raises ValueError if it cannot be read or has another schema version.
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

    Holds per shard, not per sample, what it always needs, so that opening tens of millions of samples takes seconds.
    `keys`, `recordings`, `split`, `shard`, `n_frames`, `n_turns`, `text_bytes` and `column(name)` (numpy arrays, one
    entry for each sample) are read from the index as a whole on first use. Works in DataLoader workers, forked or
    spawned.

    Raises:
        FileNotFoundError: no `dataset.json`, or a file that it names is missing.
        ValueError: a named file has another size (cut short), or the index is damaged or another dataset's.
    """

    def __init__(
        self, path: str | Path, cache_dir: Path = DEFAULT_CACHE, cache_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        self.path: str | Path
        self.folder: DatasetFolder
        if is_remote(path):
            self.folder = RemoteFolder(str(path), cache_dir, cache_bytes)
            self.path = self.folder.url
        else:
            self.path = Path(str(path).removeprefix("file://"))
            self.folder = LocalFolder(self.path)
        description = self.folder.description(DATASET_FILE)
        if description is None:
            raise FileNotFoundError(
                f"{path}: not a prepared dataset (it holds no {DATASET_FILE}); "
                f"prepare one with: python -m data_prep input=MANIFEST output={path}"
            )
        self.info = DatasetInfo.parse(description, self.folder.where(DATASET_FILE))
        self.codec: CodecInfo = self.info.codec
        self.folder.check_shards(self.info.shards)
        codec_file = self.info.codec_file
        self.codec_file: Path | None = codec_file and self.folder.whole(codec_file)
        counts = [shard.samples for shard in self.info.shards]
        self._index = Index(self.folder.whole(self.info.index), counts, self.info.index.footer_sha256)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def hours(self) -> float:
        """Speech in the dataset, over all splits."""
        return sum(totals["frames"] for totals in self.info.totals.values()) / self.codec.frame_rate / 3600

    def shards(self, split: str) -> np.ndarray:
        """int64 [m, 2]: number of the first sample and number of samples, of each shard of a split."""
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
        """Everything about sample number `i` but its codes, as plain values."""
        location = self._index.location(i)
        where = self._where(i, location.key)
        return record_from_member(self._read_range(i, location.json_offset, location.json_size, where), where)

    def key(self, i: int) -> str:
        return self._index.location(i).key

    def audio_path(self, sample: Sample) -> Path | None:
        """The sample's original recording, as far as it is known; it may have been moved since."""
        return Path(self.info.audio_root, sample.audio) if sample.audio else None

    def column(self, name: str) -> np.ndarray:
        """A column of the index, see INDEX_SCHEMA in csm/data/index.py."""
        return self._index.column(name)

    @property
    def keys(self) -> np.ndarray:
        return self._index.column("key")

    @property
    def recordings(self) -> np.ndarray:
        return self._index.column("recording")

    @property
    def split(self) -> np.ndarray:
        return self._index.column("split")

    @property
    def shard(self) -> np.ndarray:
        return self._index.column("shard")

    @property
    def n_frames(self) -> np.ndarray:
        return self._index.column("n_frames")

    @property
    def n_turns(self) -> np.ndarray:
        return self._index.column("n_turns")

    @property
    def text_bytes(self) -> np.ndarray:
        return self._index.column("text_bytes")

    def _where(self, i: int, key: str) -> str:
        return f"{self.folder.where(self.info.shards[self._index.shard_of(i)].name)}, sample {key}"

    def _read_range(self, i: int, offset: int, length: int, where: str) -> bytes:
        shard = self.info.shards[self._index.shard_of(i)]
        if offset + length > shard.size:
            raise ValueError(f"{where}: the index points beyond the end of the shard; {REMEDY}")
        return self.folder.read(shard, offset, length)
