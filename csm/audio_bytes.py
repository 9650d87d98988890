"""The bytes of an audio file: errors of its storage, and what decoders do not tell of its headers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from enum import Enum
from itertools import pairwise
from typing import BinaryIO

_OGG_PAGE = re.compile(rb"OggS\x00(.)", re.DOTALL)  # RFC 3533, section 6: a page's version and type
_FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # RFC 9639, section 8: marker, then STREAMINFO of 34 bytes
_OVERLAP = 16  # bytes of a chunk that are searched again with the next one
_CHUNK = 1 << 22


class Fault(Enum):
    """Kinds of audio that cannot be used."""

    audio_empty = "audio_empty"
    audio_corrupt = "audio_corrupt"  # not audio, or damaged
    audio_truncated = "audio_truncated"  # decodes, but ends early


class UnreadableAudio(ValueError):
    """A file cannot be decoded, on any attempt. The message begins with its name."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class WatchedFile:
    """A file for libraries that read from C, where exceptions are lost: they are kept, and raised by `check`."""

    def __init__(self, file: BinaryIO, label: str) -> None:
        self._file = file
        self.label = label  # a `name` would be taken for the format
        self.error: OSError | None = None
        self.ended = False  # a read went beyond the end

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            self.error = error
            return b""
        self.ended = self.ended or len(data) < size
        return data

    def check(self) -> None:
        if self.error is not None:
            raise self.error


class FilePart(io.RawIOBase):
    """`size` bytes of a file from `start` on, as a file of its own; the file stays open when this one is closed."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._place = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + place)
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._start + self._place)
        data = self._file.read(max(0, min(len(buffer), self._size - self._place)))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def flac_parts(file: WatchedFile, size: int) -> list[tuple[int, int]]:
    """Start and size of each of the FLAC files that were joined, or of the only one; empty for other formats."""
    start = _after_id3(bytes_at(file, 0, 12))
    if bytes_at(file, start, 4) != b"fLaC":
        return []
    starts = [place for place, _ in _find(file, _FLAC_START, start)]
    return [(first, last - first) for first, last in pairwise([*starts, size])]


def goes_on(file: WatchedFile, size: int) -> bool:
    """Whether another MP3 or Ogg file follows: podcasts with inserted parts, recordings of radio streams.

    Raises `UnreadableAudio` for joined WAV files, of which neither library reads more than the first.
    """
    head = bytes_at(file, 0, 12)
    if head[:4] == b"RIFF":
        end = int.from_bytes(head[4:8], "little") + 8
        if end + 12 < size and bytes_at(file, end + end % 2, 4) == b"RIFF":
            message = f"{file.label}: several WAV files in one, of which only the first can be read; divide it"
            raise UnreadableAudio(Fault.audio_corrupt, message)
        return False
    start = _after_id3(head)
    magic = bytes_at(file, start, 4)
    if magic == b"OggS":  # beginnings of streams stand together; after another page, they begin a new file
        others = False
        for _, found in _find(file, _OGG_PAGE, start):
            begins = found[1][0] & 2 != 0
            if begins and others:
                return True
            others = others or not begins
        return False
    return _mp3_goes_on(file, start, size)


def _find(file: WatchedFile, pattern: re.Pattern[bytes], start: int) -> Iterator[tuple[int, re.Match[bytes]]]:
    """All matches (of at most `_OVERLAP` bytes) in a file from `start` on, each with its place; read in chunks."""
    file.seek(start)
    rest, place = b"", start
    while chunk := file.read(_CHUNK):
        data = rest + chunk
        last = len(data) if len(chunk) < _CHUNK else len(data) - _OVERLAP
        for found in pattern.finditer(data):
            if found.start() >= last:
                break
            yield place + found.start(), found
        rest, place = data[last:], place + last
    file.seek(0)
    file.ended = False


def _mp3_goes_on(file: WatchedFile, start: int, size: int) -> bool:
    """Whether frames follow those that the first frame's Xing or Info header counts the bytes of."""
    frame = bytes_at(file, start, 256)
    if not _mp3_frame_bytes(frame):
        return False
    place = max(frame.find(b"Xing"), frame.find(b"Info"))
    flags = int.from_bytes(frame[place + 4 : place + 8], "big")
    if place < 0 or not flags & 2:  # no count of bytes
        return False
    at = place + 8 + 4 * (flags & 1)
    end = start + int.from_bytes(frame[at : at + 4], "big")
    rest = bytes_at(file, end, 1 << 16) if 0 < end < size else b""
    for offset in range(len(rest) - 4):
        place = offset
        for _ in range(3):
            step = _mp3_frame_bytes(rest[place : place + 4])
            if not step:
                break
            place += step
        else:
            return True
    return False


_MP3_KBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1, layer III
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2 and 2.5
}


def _mp3_frame_bytes(header: bytes) -> int:
    """Length of the frame of MPEG layer III that begins with `header`; 0 if none does.

    https://www.codeproject.com/Articles/8295/MPEG-Audio-Frame-Header
    """
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, rate, kbits = (header[1] >> 3) & 3, (header[2] >> 2) & 3, header[2] >> 4
    if version == 1 or rate == 3 or kbits in (0, 15):
        return 0
    hertz = (44_100, 48_000, 32_000)[rate] // {3: 1, 2: 2, 0: 4}[version]
    samples = 1152 if version == 3 else 576
    return samples // 8 * _MP3_KBITS[version == 3][kbits] * 1000 // hertz + ((header[2] >> 1) & 1)


def is_mp3_of_unknown_length(file: WatchedFile) -> bool:
    """Whether a file is an MP3 without the Xing, Info or VBRI header, in its first frame, that counts its frames."""
    frame = bytes_at(file, _after_id3(bytes_at(file, 0, 10)), 256)
    return _mp3_frame_bytes(frame) > 0 and not any(sign in frame for sign in (b"Xing", b"Info", b"VBRI"))


def _after_id3(head: bytes) -> int:
    """Where the audio begins: after an ID3 tag, if any.

    https://id3.org/id3v2.3.0, section 3.1: 7 bits of its size in each byte.
    """
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum((byte & 0x7F) << (7 * (3 - place)) for place, byte in enumerate(head[6:10]))


def bytes_at(file: WatchedFile, place: int, size: int) -> bytes:
    """At most `size` bytes from `place` on; the file is at its beginning afterwards."""
    file.seek(place)
    data = file.read(size)
    file.seek(0)
    file.ended = False
    return data
