"""Parquet files: manifests, and audio datasets as the package `datasets` of Hugging Face stores them.

The column `audio` holds paths in a manifest, structs of `bytes` and `path` in a dataset. A manifest has the columns of
manifest.py. Of a dataset, these columns are used if present:

    audio.bytes   the file
    text          one turn over the whole recording; or another of TEXT_COLUMNS, or the option `text_column`
    speaker       the speaker, and the group if no other is given; or another of SPEAKER_COLUMNS
    turns         as in a manifest, instead of the text
    group, split  as in a manifest
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.audio.storage import open_path
from data_prep.inputs.manifest import Entry, parse_group, parse_recording, parse_split, parse_turns
from data_prep.reasons import Reason
from data_prep.records import GivenTurn, Locator, Rejection

TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence", "raw_text", "normalized_text")
SPEAKER_COLUMNS = ("speaker", "speaker_id", "client_id")
_BATCH = 1024  # rows


def read_table(path: str, name: str, text_column: str | None) -> Iterator[Entry | Rejection]:
    """Recordings of a parquet file; `name` is its path relative to the source.

    Raises ValueError if it is not a parquet file, has no column `audio`, or is a malformed manifest.
    """
    with open_path(path) as file:
        try:
            table = pq.ParquetFile(file)
        except pa.ArrowException as error:
            raise ValueError(f"{path}: not a parquet file ({error})") from error
        schema = table.schema_arrow
        if "audio" not in schema.names:
            raise ValueError(
                f"{path}: has no column 'audio' (it has {', '.join(schema.names)}), which must hold paths or structs "
                "of bytes and path"
            )
        if pa.types.is_struct(schema.field("audio").type):
            yield from _read_dataset(table, path, name, text_column)
        else:
            yield from _read_manifest(table, path)


def _read_manifest(table: pq.ParquetFile, path: str) -> Iterator[Entry]:
    for number, row in _rows(table, table.schema_arrow.names):
        yield parse_recording(row | _without_none(row), path.rpartition("/")[0], f"{path}, row {number}")


def _read_dataset(table: pq.ParquetFile, path: str, name: str, text_column: str | None) -> Iterator[Entry | Rejection]:
    names = table.schema_arrow.names
    if text_column is not None and text_column not in names:
        raise ValueError(f"{path}: has no column {text_column!r} (text_column); it has {', '.join(names)}")
    text = text_column or next((column for column in TEXT_COLUMNS if column in names), None)
    speaker = next((column for column in SPEAKER_COLUMNS if column in names), None)
    used = [column for column in ("turns", "group", "split", text, speaker) if column is not None and column in names]
    for number, row in _rows(table, ["audio.path", *used]):
        row = _without_none(row)
        file_name = PurePosixPath(row.get("audio", {}).get("path", "")).name
        audio = posixpath.join(name, f"{number:08d}", file_name).rstrip("/")
        try:
            turns = parse_turns(row, "its entry")
            if turns is None and text in row:
                spoken = str(row[text]).strip()
                turns = [GivenTurn(0, "0", 0.0, None, spoken, speaker_id=0)]
                if speaker in row:
                    turns = [GivenTurn(0, str(row[speaker]), 0.0, None, spoken)]
            group, split = parse_group(row, "its entry"), parse_split(row, "its entry")
        except ValueError as error:
            yield Rejection(audio=audio, reason=Reason.bad_annotation, message=str(error))
        else:
            who = str(row[speaker]) if speaker in row else None
            locator = Locator(path, row=number, column="audio")
            yield Entry(
                audio=audio,
                locator=locator,
                id=f"{name}/{number:08d}",
                group=group,
                default_group=who,
                split=split,
                turns=turns,
            )


def _rows(table: pq.ParquetFile, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for batch in table.iter_batches(_BATCH, columns=columns):
        for row in batch.to_pylist():
            yield number, row
            number += 1


def _without_none(value: Any) -> Any:
    """Drops keys whose value is null: parquet has a value for every column."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value
