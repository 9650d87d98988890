"""Probes of audio files: their hashes, and the properties in their headers."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import fsspec

from data_prep.audio.decode import open_audio
from data_prep.audio.storage import is_url, open_bytes, retry, where
from data_prep.inputs.files import is_special
from data_prep.reasons import Reason, RejectedRecording
from data_prep.records import Locator
from data_prep.tables import read_rows, write_rows

_CHUNK = 1 << 20  # bytes hashed at once
_NO_STAMP = ("http://", "https://")  # where fsspec cannot tell whether a file has changed


@dataclass
class Probe:
    """Result of probing a file. A row of the tables in `probed/`."""

    key: str  # see `Stamps`
    sha256: str  # "": not read
    seconds: float
    sample_rate: int
    channels: int
    codec_format: str
    reason: Reason | None  # why it cannot be used
    message: str | None


def probe(locator: Locator, name: str, key: str = "") -> Probe:
    """Hashes a file and reads its header; samples are counted only if the header does not give their number.

    The result for an unusable file has a reason, as has that for a file whose storage failed three times (`failed`).
    Damage beyond the header is found when the file is decoded.
    """
    found = Probe(key, "", 0.0, 0, 0, "", None, None)
    try:
        retry(lambda: _probe(locator, name, found), locator)
    except RejectedRecording as rejected:
        found.reason, found.message = rejected.reason, rejected.message
    except FileNotFoundError as error:
        found.reason, found.message = Reason.audio_missing, f"{where(locator)}: no such audio file ({error})"
    except OSError as error:
        found.reason, found.message = Reason.failed, f"{where(locator)}: {error}"
    return found


def channels_of(locator: Locator, name: str) -> int | None:
    """Channels of an audio file, from its header; None if it cannot be read, which `probe` finds out why."""
    if not is_url(locator.path) and is_special(locator.path):
        return None
    try:
        with open_bytes(locator) as file:
            return open_audio(file, name).header.channels
    except (RejectedRecording, OSError):
        return None


def _probe(locator: Locator, name: str, found: Probe) -> None:
    if not is_url(locator.path) and is_special(locator.path):  # opening a FIFO would wait for its other end
        raise RejectedRecording(Reason.audio_corrupt, f"{name}: not a file, but a FIFO, a socket or a device")
    with open_bytes(locator) as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        found.sha256 = digest.hexdigest()
        file.seek(0)
        reader = open_audio(file, name)
        header, samples = reader.header, reader.count()
    if samples == 0:
        raise RejectedRecording(Reason.audio_empty, f"{name}: holds no audio samples")
    found.seconds = samples / header.sample_rate
    found.sample_rate, found.channels, found.codec_format = header.sample_rate, header.channels, header.codec_format


class ProbeCache:
    """Probes kept on disk, so that an interrupted `plan` resumes, and planning the same input again is quick.

    A file is probed again if its size or times have changed. Stored in parts `<folder>/00000.parquet`.
    """

    _PART = 2000  # files

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts = sorted(folder.glob("*.parquet"))
        self._known = {row.key: row for part in self._parts for row in read_rows(part, Probe)}
        self._new: list[Probe] = []

    def get(self, key: str) -> Probe | None:
        return self._known.get(key)

    def add(self, found: Probe) -> None:
        """Keeps a result, unless the next probe may find otherwise (a missing file, failing storage)."""
        if found.key and found.reason not in (Reason.failed, Reason.audio_missing):
            self._known[found.key] = found
            self._new.append(found)
            if len(self._new) >= self._PART:
                self.flush()

    def flush(self) -> None:
        if self._new:
            number = int(self._parts[-1].stem) + 1 if self._parts else 0
            part = self._folder / f"{number:05d}.parquet"
            write_rows(part, self._new, Probe)
            self._parts.append(part)
            self._new = []


class Stamps:
    """Keys of files for `ProbeCache`: hashes of location, size, and times of modification and status change."""

    def __init__(self) -> None:
        self._stamp = lru_cache(maxsize=16)(_stamp)  # a tar or parquet file holds many recordings

    def key(self, locator: Locator, name: str) -> str:
        """The key of a file; "" if it does not exist, or the storage cannot tell whether it has changed."""
        stamp = self._stamp(locator.path)
        if stamp is None:
            return ""
        place = [_DECODER, locator.path, locator.offset, locator.size, locator.row, locator.column, name, *stamp]
        if locator.made is not None:
            place += [asdict(locator.made), *(self._stamp(path) for path in locator.made.files)]
        return hashlib.sha256(json.dumps(place).encode()).hexdigest()[:32]


_DECODER = 4  # incremented when the decoder finds other lengths than before


def _stamp(path: str) -> list[object] | None:
    try:
        if not is_url(path):
            status = os.stat(path)
            # copies may keep the time of modification; that of the change of status is set by every write and rename
            return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        if path.startswith(_NO_STAMP):
            return None
        fs, inside = fsspec.core.url_to_fs(path)
        return [fs.ukey(inside)]
    except (OSError, ImportError):
        return None
