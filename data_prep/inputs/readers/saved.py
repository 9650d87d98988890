"""Datasets saved by Hugging Face's `save_to_disk`: Arrow files next to state.json, a folder for each split.

The bytes of an audio file lie in the Arrow file as they are, so they are read in place, by offset.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

import pyarrow as pa

from data_prep.audio.storage import is_url
from data_prep.inputs.manifest import Entry
from data_prep.inputs.parquet import Columns
from data_prep.inputs.pile import Pile
from data_prep.records import Locator, Rejection

_ABOUT = ("state.json", "dataset_info.json", "dataset_dict.json")


def read(pile: Pile) -> Iterator[Entry | Rejection]:
    """A recording for each row. Raises ValueError for an Arrow file without audio in a column `audio`."""
    tables = pile.named(".arrow")
    if not tables:
        return
    pile.take([*tables, *(name for name in pile.left if name.rpartition("/")[2] in _ABOUT)])
    for name in tables:
        if is_url(pile.path(name)):
            raise ValueError(f"{pile.path(name)}: Arrow files are read on local disks only; copy the dataset first")
        yield from _read(pile, name)


def _read(pile: Pile, name: str) -> Iterator[Entry | Rejection]:
    path = pile.path(name)
    with pa.memory_map(path) as file:
        whole = file.read_buffer(file.size())
        try:
            reader = pa.ipc.open_stream(whole)
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(whole)
        columns = Columns(path, reader.schema, pile.text_column)
        number = 0
        for batch in _batches(reader):
            audio = batch.column("audio")
            places = _places(audio, whole.address, path) if columns.has_bytes else [None] * len(audio)
            rest = batch.select(columns.used).to_pylist()
            paths = audio.field("path").to_pylist() if columns.has_path else [""] * len(audio)
            for place, row, file_name in zip(places, rest, paths, strict=True):
                shown = posixpath.join(name, f"{number:08d}", (file_name or "").rpartition("/")[2]).rstrip("/")
                locator = place or pile.find(file_name or "", name)[1]
                yield columns.entry(row, shown, locator, f"{name}/{number:08d}")
                number += 1


def _batches(reader: pa.RecordBatchStreamReader | pa.RecordBatchFileReader) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.RecordBatchFileReader):
        yield from map(reader.get_batch, range(reader.num_record_batches))
    else:
        yield from reader


def _places(audio: pa.StructArray, base: int, path: str) -> list[Locator | None]:
    """Places of the bytes of each row in the file; None for a row without."""
    cells = audio.field("bytes")
    start = cells.buffers()[2].address - base if cells.buffers()[2] is not None else 0
    wide = pa.types.is_large_binary(cells.type)
    offsets = memoryview(cells.buffers()[1]).cast("b").cast("q" if wide else "i")
    first = cells.offset
    return [
        Locator(path, start + offsets[first + n], offsets[first + n + 1] - offsets[first + n])
        if cells[n].is_valid
        else None
        for n in range(len(cells))
    ]
