"""Samples -> tar shards, shuffled over the whole dataset.

Samples arrive recording by recording. They are first set down one after another in one staging file, so that memory
holds only their places, and then written to shards in an order drawn from the seed: neighbours in a shard come from
all over the dataset, and the order depends on nothing but keys and seed.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from webdataset import TarWriter

from csm.data.dataset import ShardInfo
from csm.data.folder import sha256_of
from csm.data.sample import CODES_MEMBER, JSON_MEMBER, Sample, sample_to_members
from data_prep.conversation import slug

STAGING_FILE = "staging.bin"


@dataclass
class StagedSample:
    """A sample's place in the staging file, and what the index says about it."""

    key: str
    recording: str
    split: str
    n_frames: int
    n_turns: int
    text_bytes: int
    offset: int  # of the codes member; the json member follows it
    codes_size: int
    json_size: int


class Staging:
    """Append-only file of samples, removed on leaving the `with` block."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / STAGING_FILE
        self._file = self._path.open("w+b")
        self._digest = hashlib.sha256()
        self._end = 0
        self.samples: list[StagedSample] = []

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._path.unlink()

    @property
    def content_id(self) -> str:
        """8 hex digits over all samples so far."""
        return self._digest.hexdigest()[:8]

    def add(self, sample: Sample) -> None:
        members = sample_to_members(sample)
        codes, record = members[CODES_MEMBER], members[JSON_MEMBER]
        text_bytes = sum(len(turn.text.encode()) for turn in sample.turns)
        self.samples.append(
            StagedSample(
                sample.key,
                sample.recording,
                sample.split,
                sample.num_frames,
                len(sample.turns),
                text_bytes,
                self._end,
                len(codes),
                len(record),
            )
        )
        self._file.write(codes + record)
        self._digest.update(codes + record)
        self._end += len(codes) + len(record)

    def members(self, staged: StagedSample) -> dict[str, bytes]:
        self._file.seek(staged.offset)
        return {CODES_MEMBER: self._file.read(staged.codes_size), JSON_MEMBER: self._file.read(staged.json_size)}


def write_shards(
    staging: Staging, folder: Path, source: str, shard_bytes: int, seed: int
) -> list[tuple[ShardInfo, list[StagedSample]]]:
    """Writes every staged sample into `<source>-<content id>-<split>-<number>.tar`, each split by itself.

    The content id makes shard names unique among datasets: caches of WebDataset shards go by the name alone. A shard
    is closed once it holds `shard_bytes`. Returns each shard with its samples in the order written.
    """
    shuffled = sorted(staging.samples, key=lambda staged: hashlib.sha256(f"{seed}/{staged.key}".encode()).digest())
    shards = []
    for split in sorted({staged.split for staged in shuffled}):
        groups: list[list[StagedSample]] = []
        size = shard_bytes
        for staged in shuffled:
            if staged.split != split:
                continue
            if size >= shard_bytes:
                groups.append([])
                size = 0
            groups[-1].append(staged)
            size += staged.codes_size + staged.json_size
        for number, group in enumerate(groups):
            name = f"{slug(source, 20)}-{staging.content_id}-{split}-{number:06d}.tar"
            _write_shard(folder / name, group, staging)
            path = folder / name
            shards.append((ShardInfo(name, path.stat().st_size, sha256_of(path), len(group)), group))
    return shards


def _write_shard(path: Path, group: list[StagedSample], staging: Staging) -> None:
    with path.open("wb") as file:
        # A fixed time stamp: equal samples give equal shards.
        with TarWriter(file, encoder=False, mtime=0) as tar:
            for staged in group:
                tar.write({"__key__": staged.key, **staging.members(staged)})
        file.flush()
        os.fsync(file.fileno())
