"""A Hugging Face dataset: parquet files with the audio of each conversation, its turns and its codes.

    <to>/data/train-00000.parquet, ...   README.md, which names the splits

`datasets.load_dataset(<to>)` and `python -m data_prep input=<to>/data` read it. Times of turns count from the start of
the clip.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from csm.data.dataset import ShardedDataset
from csm.data.sample import Sample
from data_prep.export.originals import UNREADABLE, Originals, by_recording, channels_of, flac

_ROWS = 100  # of a row group
_FILE_BYTES = 500_000_000

_TURN = pa.struct(
    [
        ("speaker", pa.string()),
        ("text", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("channel", pa.int64()),
    ]
)
_SCHEMA = pa.schema(
    [
        ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("key", pa.string()),
        ("recording", pa.string()),
        ("group", pa.string()),
        ("source", pa.string()),
        ("language", pa.string()),
        ("licence", pa.string()),
        ("turns", pa.list_(_TURN)),
        ("loss", pa.list_(pa.bool_())),
        ("codec", pa.string()),
        ("codes", pa.list_(pa.list_(pa.uint16()))),
    ]
)


def export_hugging_face(dataset: ShardedDataset, work: Path, to: Path, final: Path) -> Iterator[str]:
    """Writes the dataset below `to`, wherever that is moved later.

    Yields a line for each conversation that has no audio any more.
    """
    originals = Originals(dataset, work)
    (to / "data").mkdir()
    schema = _SCHEMA.with_metadata({"huggingface": json.dumps({"info": {"features": _features()}})})
    written = []
    for split in sorted(set(dataset.column("split").tolist())):
        writer, number = None, 0
        rows: list[dict[str, Any]] = []
        size = 0
        for index in by_recording(dataset, dataset.select(split).tolist()):
            sample = dataset.read(index)
            found = originals.of(sample)
            content = None
            try:
                if found.audio is not None:
                    content = flac(found.audio, channels_of(sample), sample.start, sample.end)
            except UNREADABLE as error:
                found.message = str(error)
            if content is None:
                yield f"{sample.key}: {found.message}"
                continue
            if split not in written:
                written.append(split)
            rows.append(_row(sample, content))
            size += len(content)
            if len(rows) >= _ROWS or size >= _FILE_BYTES:
                writer = writer or pq.ParquetWriter(to / "data" / f"{split}-{number:05d}.parquet", schema)
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
            if size >= _FILE_BYTES and writer is not None:
                writer.close()
                writer, number, size = None, number + 1, 0
        if rows:
            writer = writer or pq.ParquetWriter(to / "data" / f"{split}-{number:05d}.parquet", schema)
            writer.write_table(pa.Table.from_pylist(rows, schema))
        if writer is not None:
            writer.close()
    originals.close()
    (to / "README.md").write_text(_card(written), encoding="utf-8")


def _row(sample: Sample, content: bytes) -> dict[str, Any]:
    turns = [
        {
            "speaker": str(turn.speaker),
            "text": turn.text,
            "start": round(turn.start - sample.start, 6),
            "end": round(turn.end - sample.start, 6),
            "channel": turn.channel,
        }
        for turn in sample.turns
    ]
    return {
        "audio": {"bytes": content, "path": f"{sample.key}.flac"},
        "key": sample.key,
        "recording": sample.recording,
        "group": sample.group,
        "source": sample.source,
        "language": sample.lang,
        "licence": sample.licence,
        "turns": turns,
        "loss": [turn.loss for turn in sample.turns],
        "codec": f"{sample.codec.name}-{sample.codec.weights_hash}",
        "codes": sample.codes.tolist(),
    }


def _features() -> dict[str, Any]:
    """The schema in the words of the package `datasets`, which decodes a column of type Audio."""
    return {field.name: {"_type": "Audio"} if field.name == "audio" else _feature(field.type) for field in _SCHEMA}


def _feature(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]  # a "List" is not known before datasets 4, a "Sequence" means another type
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    names = {pa.float64(): "float64", pa.int64(): "int64", pa.bool_(): "bool", pa.uint16(): "uint16"}
    return {"dtype": names.get(kind, "string"), "_type": "Value"}


def _card(splits: list[str]) -> str:
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split in splits:
        name = {"val": "validation"}.get(split, split)
        lines += [f"  - split: {name}", f"    path: data/{split}-*.parquet"]
    return "\n".join([*lines, "---", "", "Conversations exported from a dataset of codec tokens.", ""])
