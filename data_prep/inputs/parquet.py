"""Parquet files: manifests, and audio datasets as the package `datasets` of Hugging Face stores them.

The column `audio` holds paths in a manifest, structs of `bytes` and `path` in a dataset. A manifest has the columns of
manifest.py. Of a dataset, these columns are used if present:

    audio.bytes   the file; if all are null, audio.path names files beside the table
    text          one turn over the whole recording; or another of TEXT_COLUMNS, or the option `text_column`
    speaker       the speaker, and the group if no other is given; or another of SPEAKER_COLUMNS
    turns         as in a manifest, instead of the text
    group, split  as in a manifest
    language      of the recording; or another of LANGUAGE_KEYS
    dnsmos        quality, for the option `min_dnsmos`
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.audio.storage import is_url, open_path
from data_prep.inputs.manifest import Entry, parse_group, parse_recording, parse_split, parse_turns
from data_prep.inputs.transcripts.json_text import LANGUAGE_KEYS, language
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
        if "audio" not in schema.names or pa.types.is_struct(schema.field("audio").type):
            yield from _read_dataset(table, path, name, text_column)
        else:
            yield from _read_manifest(table, path)


def _read_manifest(table: pq.ParquetFile, path: str) -> Iterator[Entry]:
    for number, row in _rows(table, table.schema_arrow.names):
        yield parse_recording(row | _without_none(row), path.rpartition("/")[0], f"{path}, row {number}")


class Columns:
    """The columns of an audio dataset of Hugging Face that are used, in parquet and in Arrow files."""

    def __init__(self, path: str, schema: pa.Schema, text_column: str | None) -> None:
        """Raises ValueError, beginning with `path`, if there is no audio, or no column `text_column`."""
        names = schema.names
        if "audio" not in names:
            raise ValueError(
                f"{path}: has no column 'audio' (it has {', '.join(names)}), which must hold paths or structs of bytes "
                "and path"
            )
        if text_column is not None and text_column not in names:
            raise ValueError(f"{path}: has no column {text_column!r} (text_column); it has {', '.join(names)}")
        audio = schema.field("audio").type
        fields = [field.name for field in audio] if pa.types.is_struct(audio) else []
        self.has_bytes, self.has_path = "bytes" in fields, "path" in fields
        if not self.has_bytes and not self.has_path:
            raise ValueError(
                f"{path}: its column 'audio' holds {', '.join(fields) or audio} instead of bytes and path; decoded "
                "arrays are not read: save the dataset with its Audio feature, not decoded"
            )
        self.text = text_column or next((name for name in TEXT_COLUMNS if name in names), None)
        self.speaker = next((name for name in SPEAKER_COLUMNS if name in names), None)
        wanted = ("turns", "group", "split", "dnsmos", self.text, self.speaker, *LANGUAGE_KEYS)
        self.used = [name for name in wanted if name is not None and name in names]

    def entry(self, row: dict[str, Any], audio: str, locator: Locator, name: str) -> Entry | Rejection:
        """A row, without its audio, as the recording `name`."""
        row = _without_none(row)
        who = str(row[self.speaker]) if self.speaker in row else None
        try:
            turns = parse_turns(row, "its entry")
            if turns is None and self.text in row:
                spoken = str(row[self.text]).strip()
                turns = [GivenTurn(0, who or "0", 0.0, None, spoken, speaker_id=0 if who is None else None)]
            group, split = parse_group(row, "its entry"), parse_split(row, "its entry")
        except ValueError as error:
            return Rejection(audio=audio, reason=Reason.bad_annotation, message=str(error))
        return Entry(
            audio=audio,
            locator=locator,
            id=name,
            group=group,
            default_group=who,
            split=split,
            turns=turns,
            lang=language(row),
            dnsmos=row.get("dnsmos") if isinstance(row.get("dnsmos"), float) else None,
        )


def _read_dataset(table: pq.ParquetFile, path: str, name: str, text_column: str | None) -> Iterator[Entry | Rejection]:
    columns = Columns(path, table.schema_arrow, text_column)
    inside = columns.has_bytes and not _all_null(table, "audio.bytes")
    paths = ["audio.path"] if columns.has_path else []
    for number, row in _rows(table, [*paths, *columns.used]):
        file = (row.pop("audio", None) or {}).get("path") or ""
        audio = posixpath.join(name, f"{number:08d}", PurePosixPath(file).name).rstrip("/")
        locator = Locator(path, row=number, column="audio")
        if not inside:  # the files lie beside the table
            locator = Locator(file if is_url(file) else posixpath.join(path.rpartition("/")[0], file))
        yield columns.entry(row, audio, locator, f"{name}/{number:08d}")


def _all_null(table: pq.ParquetFile, column: str) -> bool:
    """Whether a column holds nothing, as far as the file's statistics tell."""
    meta = table.metadata
    (place,) = (n for n in range(meta.num_columns) if meta.schema.column(n).path == column)
    groups = [meta.row_group(n).column(place) for n in range(meta.num_row_groups)]
    return bool(groups) and all(
        group.statistics is not None and group.statistics.null_count == group.num_values for group in groups
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
