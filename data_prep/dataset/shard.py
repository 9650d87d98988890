"""Reads and checks the samples of a shard, and derives its rows of the index. Used by `pack`, `index` and `verify`."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from csm.codec import CodecInfo, check_same_codec
from csm.data.dataset import ShardInfo
from csm.data.index import INDEX_SCHEMA
from csm.data.sample import CODES_MEMBER, JSON_MEMBER, REMEDY, Sample, sample_from_members
from csm.files import sha256_of

Members = dict[str, tuple[int, int]]
"""Name of a sample's member -> offset and size in bytes of its content."""

_BATCH_ROWS = 4096


@dataclass(frozen=True)
class IndexedShard:
    """A shard and its rows of the index, without the shard's number."""

    info: ShardInfo
    codec: CodecInfo
    table: pa.Table

    def numbered(self, number: int) -> pa.Table:
        """The rows, of INDEX_SCHEMA, for the shard at position `number`."""
        numbers = pa.repeat(pa.scalar(number, pa.int32()), len(self.table))
        return self.table.set_column(INDEX_SCHEMA.get_field_index("shard"), INDEX_SCHEMA.field("shard"), numbers)


def index_shard(path: Path) -> IndexedShard:
    """Reads and checks every sample of a shard.

    Raises ValueError, naming shard and sample, if the shard cannot be read or holds an invalid sample, or samples of
    different codecs or splits.
    """
    tables: list[pa.Table] = []
    rows: list[dict[str, Any]] = []
    first: Sample | None = None
    for key, members in samples_of_tar(path):
        where = f"{path}, sample {key}"
        sample = read_sample(path, key, members)
        first = first or sample
        check_same_codec(first.codec, sample.codec, f"{path}: samples {first.key} and {key}")
        if sample.split != first.split:
            raise ValueError(f"{where}: is of split {sample.split}, the shard of split {first.split}; {REMEDY}")
        rows.append(index_row(sample, members))
        if len(rows) == _BATCH_ROWS:
            tables.append(pa.Table.from_pylist(rows, INDEX_SCHEMA))
            rows = []
    if first is None:
        raise ValueError(f"{path}: holds no samples; {REMEDY}")
    table = pa.concat_tables([*tables, pa.Table.from_pylist(rows, INDEX_SCHEMA)])
    return IndexedShard(ShardInfo(path.name, path.stat().st_size, sha256_of(path), len(table)), first.codec, table)


def samples_of_tar(path: Path) -> Iterator[tuple[str, Members]]:
    """Keys and members of a shard's samples, in order, by the tar's own headers.

    Raises ValueError if the file is not a complete tar file.
    """
    key: str | None = None
    members: Members = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # not in typeshed; tarfile would keep every header
                found, _, name = member.name.partition(".")
                if found != key and key is not None:
                    yield key, members
                    members = {}
                key = found
                members[name] = (member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"{path}: not a readable tar file ({error}); restore it, or {REMEDY}") from error
    if key is not None:
        yield key, members


def read_sample(path: Path, key: str, members: Members) -> Sample:
    """Raises ValueError, naming shard and sample, if `members` are not the two members of a valid sample `key`."""
    where = f"{path}, sample {key}"
    if set(members) != {CODES_MEMBER, JSON_MEMBER}:
        raise ValueError(f"{where}: has the members {sorted(members)}, not {CODES_MEMBER} and {JSON_MEMBER}; {REMEDY}")
    content = {}
    with path.open("rb", buffering=0) as file:
        for name, (offset, size) in members.items():
            file.seek(offset)
            content[name] = file.read(size)
    sample = sample_from_members(content[CODES_MEMBER], content[JSON_MEMBER], where)
    if sample.key != key:
        raise ValueError(f"{where}: its json member says {sample.key}; {REMEDY}")
    return sample


def index_row(sample: Sample, members: Members) -> dict[str, Any]:
    """The index row of a sample: the columns of INDEX_SCHEMA except `shard`."""
    scored = [(turn.quality["ovrl"], turn.num_frames) for turn in sample.turns if "ovrl" in turn.quality]
    frames = sum(count for _, count in scored)
    (codes_offset, codes_size), (json_offset, json_size) = members[CODES_MEMBER], members[JSON_MEMBER]
    return {
        "key": sample.key,
        "recording": sample.recording,
        "source": sample.source,
        "lang": sample.lang,
        "licence": sample.licence,
        "group": sample.group,
        "split": sample.split,
        "codes_offset": codes_offset,
        "codes_size": codes_size,
        "json_offset": json_offset,
        "json_size": json_size,
        "n_frames": sample.num_frames,
        "n_turns": len(sample.turns),
        "n_speakers": sample.num_speakers,
        "loss_frames": sum(turn.num_frames for turn in sample.turns if turn.loss),
        "text_bytes": sum(len(turn.text.encode()) for turn in sample.turns),
        "quality": sum(ovrl * count for ovrl, count in scored) / frames if frames else None,
    }
