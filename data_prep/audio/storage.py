"""Bytes of audio files, wherever a `Locator` points: files, URLs, members of tar files, cells of parquet files."""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Callable
from typing import BinaryIO, TypeVar, cast

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csm.audio_bytes import FilePart
from csm.data.remote import is_http_failure
from data_prep.records import Locator

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_ATTEMPTS = 3
_DELAY = 0.2  # seconds; doubled after each failure

_BUFFER = 1 << 16


def open_bytes(locator: Locator) -> BinaryIO:
    """Opens a seekable binary file of exactly the audio file's bytes.

    Raises:
        FileNotFoundError: there is no such file, or the cell of the table is empty.
        OSError: the storage fails, which may be transient: the network, a disk that does not respond.
        ValueError: the URL's protocol is unknown or its package is not installed.
    """
    if locator.row is not None:
        return io.BytesIO(_cells.read(locator))
    if locator.made is not None:
        from data_prep.audio.made import open_made  # which decodes

        return open_made(locator.made)
    file = open_path(locator.path)
    if locator.offset is None:
        return file
    return cast(BinaryIO, io.BufferedReader(_Stretch(file, locator.offset, locator.size or 0), _BUFFER))


def open_path(path: str) -> BinaryIO:
    """Opens a local path or an fsspec URL for reading. Raises as `open_bytes`."""
    if not is_url(path):
        return open(path, "rb")
    try:
        return cast(BinaryIO, fsspec.open(path, "rb").open())
    except ImportError as error:
        raise ValueError(f"{path}: {error}; pip install 'csm-train[remote]'") from error
    except FileNotFoundError as error:
        if is_http_failure(error):
            raise ConnectionError(f"{path}: {error.__cause__!r}") from error
        raise


def is_url(path: str) -> bool:
    return "://" in path


def where(locator: Locator) -> str:
    """A locator in words, for messages."""
    if locator.row is not None:
        return f"{locator.path}, row {locator.row}"
    return locator.path if locator.offset is None else f"{locator.path}, byte {locator.offset}"


def retry(read: Callable[[], _T], locator: Locator) -> _T:
    """Calls `read` up to three times, again after an OSError that may be transient; raises the last one."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError as error:
            log.warning("%s: %r; retrying (%d of %d)", where(locator), error, attempt + 1, _ATTEMPTS)
            time.sleep(_DELAY * 2 ** (attempt - 1))
    return read()


class _Stretch(FilePart):
    """A part of a file that is closed with it."""

    def close(self) -> None:
        self._file.close()
        super().close()


class _Cells:
    """Reader of single cells of parquet files.

    Parquet is read by row groups, and neighboring rows are requested one after another, by several threads: the two
    row groups used last are kept (Hugging Face's have about 100 rows).
    """

    _KEPT = 2

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: dict[tuple[str, str, int], pa.ChunkedArray] = {}  # the one used last at the end
        self._starts: dict[str, np.ndarray] = {}  # first row of each row group, and the number of rows

    def read(self, locator: Locator) -> bytes:
        path, column, row = locator.path, locator.column or "", locator.row or 0
        with self._lock:
            starts = self._starts.get(path)
            if starts is None:
                with open_path(path) as file:
                    meta = pq.ParquetFile(file).metadata
                    rows = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
                starts = self._starts[path] = np.concatenate([[0], np.cumsum(rows)])
            if row >= starts[-1]:
                raise FileNotFoundError(f"{where(locator)}: the file has only {starts[-1]} rows")
            number = int(np.searchsorted(starts, row, side="right")) - 1
            key = (path, column, number)
            group = self._groups.pop(key, None)
            if group is None:
                if len(self._groups) >= self._KEPT:
                    del self._groups[next(iter(self._groups))]
                group = self._load(*key)
            self._groups[key] = group
        cell = group[row - int(starts[number])].as_py()
        if cell is None:
            raise FileNotFoundError(f"{where(locator)}: holds no audio")
        return cell

    @staticmethod
    def _load(path: str, column: str, number: int) -> pa.ChunkedArray:
        with open_path(path) as file:
            table = pq.ParquetFile(file).read_row_group(number, columns=[f"{column}.bytes"])
        (parts,) = table.flatten().columns
        return parts


_cells = _Cells()
