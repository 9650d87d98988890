"""Decoding of recordings: `csm.decode`, whose errors are reasons of rejection here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np

from csm.audio_bytes import UnreadableAudio
from csm.decode import AudioReader
from csm.decode import open_audio as open_any
from data_prep.reasons import Reason, RejectedRecording


def open_audio(file: BinaryIO, name: str) -> AudioReader:
    """`csm.decode.open_audio`; it and the reader's methods raise `RejectedRecording` instead of `UnreadableAudio`."""
    with rejected():
        return _Reader(open_any(file, name))


class _Reader:
    def __init__(self, reader: AudioReader) -> None:
        self._reader = reader
        self.header, self.skips = reader.header, reader.skips

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        with rejected():
            yield from self._reader.blocks(start, stop)

    def count(self) -> int:
        with rejected():
            return self._reader.count()


@contextmanager
def rejected() -> Iterator[None]:
    try:
        yield
    except UnreadableAudio as error:
        raise RejectedRecording(Reason(error.fault.value), str(error)) from error
