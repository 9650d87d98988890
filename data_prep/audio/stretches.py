"""Stretches of files, each of which is opened once and decoded at most once, in whatever order they are read.

Lossy formats cannot be entered in the middle with the samples that decoding all would give, and joined files not at
all: what was decoded is kept, in memory or in a temporary file, for the other stretches.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections.abc import Hashable, Iterator

import numpy as np

from data_prep.audio.decode import open_audio
from data_prep.audio.storage import is_url, open_path
from data_prep.reasons import RejectedRecording

IN_MEMORY_BYTES = 64 << 20
"""Decoded audio of a file beyond this goes to a temporary file, which is gone with the process."""

_FLOAT = np.dtype(np.float32).itemsize


def read_stretch(path: str, start: float, end: float | None) -> tuple[int, np.ndarray]:
    """Rate and samples, float32 [N, C], of a file from `start` to `end` seconds, as far as there is audio.

    The samples are those of decoding all of the file, of which nothing behind `end` is read. The two files that were
    read last stay open. Raises `RejectedRecording` if the file is damaged up to `end`, and OSError.
    """
    file = _open_files.get(path)
    try:
        return file.rate, file.read(start, end)
    except RejectedRecording:
        raise
    except BaseException:  # the storage failed, or a full disk: nobody knows how far it came
        _open_files.forget(file)
        raise


class _OpenFile:
    def __init__(self, path: str) -> None:
        file = open_path(path)
        try:
            self._reader = open_audio(file, path.rpartition("/")[2])
        except BaseException:
            file.close()
            raise
        self.rate, self._channels = self._reader.header.sample_rate, self._reader.header.channels
        self._lock = threading.Lock()
        self._store = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES, prefix="csm-audio-")  # noqa: SIM115
        self._blocks: Iterator[np.ndarray] = iter(()) if self._reader.skips else self._reader.blocks()
        self._decoded = 0  # samples of each channel in the store
        self._damage: RejectedRecording | None = None
        weakref.finalize(self, _close, file, self._store)

    def read(self, start: float, end: float | None) -> np.ndarray:
        first = max(0, round(start * self.rate))
        last = None if end is None else max(first, round(end * self.rate))
        with self._lock:
            if self._reader.skips:
                return np.concatenate([np.zeros((0, self._channels), np.float32), *self._reader.blocks(first, last)])
            self._decode(last)
            last = self._decoded if last is None else min(last, self._decoded)
            self._store.seek(first * self._channels * _FLOAT)
            data = self._store.read(max(0, last - first) * self._channels * _FLOAT)
            return np.frombuffer(data, np.float32).reshape(-1, self._channels)

    def _decode(self, last: int | None) -> None:
        """Decodes up to sample `last` of each channel, or to the end."""
        self._store.seek(self._decoded * self._channels * _FLOAT)
        while last is None or self._decoded < last:
            if self._damage is not None:
                raise self._damage
            try:
                block = next(self._blocks, None)
            except RejectedRecording as error:
                self._damage = error
                raise
            if block is None:
                return
            self._store.write(np.ascontiguousarray(block).data.cast("B"))
            self._decoded += len(block)


def _close(*files: object) -> None:
    for file in files:
        file.close()  # type: ignore[attr-defined]


class _OpenFiles:
    """The files used last: two, since threads that list recordings in turn are at the end of one and in the next."""

    _KEPT = 2

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[Hashable, _OpenFile] = {}  # the one used last at the end

    def get(self, path: str) -> _OpenFile:
        key: Hashable = path
        if not is_url(path):
            status = os.stat(path)
            key = (path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        with self._lock:
            file = self._files.pop(key, None)
            if file is None:
                while len(self._files) >= self._KEPT:
                    del self._files[next(iter(self._files))]
                file = _OpenFile(path)
            self._files[key] = file
            return file

    def forget(self, file: _OpenFile) -> None:
        with self._lock:
            self._files = {key: other for key, other in self._files.items() if other is not file}


_open_files = _OpenFiles()
