"""Random access to the audio of a recording, which is decoded when it is first read."""

from __future__ import annotations

import hashlib
import logging
import math
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import soxr

from csm.audio import mean_of_channels, mono_channel
from csm.data.sample import Sample
from csm.decode import BLOCK
from data_prep.audio.decode import open_audio
from data_prep.audio.storage import is_url, open_bytes, where
from data_prep.reasons import Reason, RejectedRecording
from data_prep.records import Locator, Recording

log = logging.getLogger(__name__)

IN_MEMORY_BYTES = 64 << 20
"""Decoded audio beyond this goes to a temporary file: 17 minutes of one channel at 16 kHz, 3 of stereo at 48 kHz."""

_CHUNK = 1 << 20  # bytes hashed at once
_FLOAT = np.dtype(np.float32).itemsize


def recording_of(sample: Sample, path: Path) -> Recording:
    """The recording in `path` that a packed conversation was made from; what probing sets is not known."""
    return Recording(
        id=sample.recording,
        source=sample.source,
        audio=path.name,
        locator=Locator(str(path)),
        group=sample.group,
        split=sample.split,
        lang=sample.lang,
        licence=sample.licence,
    )


class RecordingAudio:
    """Random access to a recording's samples at any rate.

    The recording is decoded once, into memory or, if it is long, into an unnamed temporary file, which is gone with
    the process, however it ends. All members raise `RejectedRecording` if the audio is missing, not the planned one,
    empty, damaged, truncated or not finite, and OSError if the storage fails, which may be transient. Not thread-safe.

    scratch: folder of the temporary file, by default the system's; it should not be in memory
    """

    def __init__(self, recording: Recording, scratch: Path | None = None) -> None:
        self.recording = recording
        self._scratch = scratch
        self._decoded: _Decoded | None = None

    @property
    def rate(self) -> int:
        """Sample rate of the file, in Hz."""
        return self._audio().rate

    @property
    def num_channels(self) -> int:
        return self._audio().channels

    @property
    def num_samples(self) -> int:
        """Samples of each channel."""
        return self._audio().samples

    def blocks(self) -> Iterator[np.ndarray]:
        """All samples as they are in the file, in order: float32 [n, C], n at most `decode.BLOCK`."""
        audio = self._audio()
        return audio.read(0, audio.samples)

    def track(self, channel: int | None, rate: int, start: float = 0.0, end: float | None = None) -> np.ndarray:
        """Float32 [N] at `rate` Hz of a channel, from `start` to `end` seconds as far as there is audio.

        The stretch is cut at the file's rate, then resampled by itself: the audio around it has no influence.

        channel: from 0; None: the mean of all, or one of them if they cancel each other, see `csm.audio.mono_channel`.
        Raises `RejectedRecording` also for a channel that the file does not have.
        """
        audio = self._audio()
        if channel is not None and not 0 <= channel < audio.channels:
            raise RejectedRecording(
                Reason.channel_missing,
                f"{self.recording.audio}: there is no channel {channel}, only 0..{audio.channels - 1}",
            )
        first = min(max(0, round(start * audio.rate)), audio.samples)
        last = audio.samples if end is None else min(max(first, round(end * audio.rate)), audio.samples)
        chosen = audio.mono if channel is None else channel
        pieces = (
            mean_of_channels(block) if chosen is None else np.ascontiguousarray(block[:, chosen])
            for block in audio.read(first, last)
        )
        return _resample(pieces, last - first, audio.rate, rate)

    def close(self) -> None:
        """Frees memory and the temporary file; reading again decodes again."""
        if self._decoded is not None:
            self._decoded.store.close()
            self._decoded = None

    def _audio(self) -> _Decoded:
        if self._decoded is None:
            self._decoded = _Decoded(self.recording, self._scratch)
        return self._decoded


@contextmanager
def planned_bytes(file: BinaryIO, recording: Recording) -> Iterator[BinaryIO]:
    """The bytes of a recording, from their start, once they are known to be those that were planned.

    A remote file is copied to a temporary one, so as not to be transferred twice. `file` is closed at the end. Audio
    that is put together when it is read (`Made`) is not compared: decoders of other machines may round otherwise.

    Raises `RejectedRecording` (`audio_changed`) if their hash is another: texts and times would not be theirs.
    """
    expected = "" if recording.locator.made is not None else recording.sha256
    digest = hashlib.sha256()
    with file, ExitStack() as opened:
        readable = file
        if expected and is_url(recording.locator.path):
            readable = cast(BinaryIO, opened.enter_context(tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES)))
        while expected and (chunk := file.read(_CHUNK)):
            digest.update(chunk)
            if readable is not file:
                readable.write(chunk)
        if expected and digest.hexdigest() != expected:
            message = (
                f"{recording.audio}: its file has changed since it was planned; plan it again with plan.update=true, "
                "or restore it and run `retry`"
            )
            raise RejectedRecording(Reason.audio_changed, message)
        readable.seek(0)
        yield readable


class _Decoded:
    """All samples of a recording, float32 [N, C] in a file or in memory."""

    def __init__(self, recording: Recording, scratch: Path | None) -> None:
        try:
            file = open_bytes(recording.locator)
        except FileNotFoundError as error:
            message = f"{where(recording.locator)}: no such audio file ({error})"
            raise RejectedRecording(Reason.audio_missing, message) from error
        folder = None if scratch is None else str(scratch)
        self.store = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES, dir=folder, prefix="csm-audio-")  # noqa: SIM115
        try:
            with planned_bytes(file, recording) as planned:
                self._decode(planned, recording)
        except BaseException:
            self.store.close()
            raise

    def _decode(self, file: BinaryIO, recording: Recording) -> None:
        reader = open_audio(file, recording.audio)
        self.rate, self.channels, self.samples = reader.header.sample_rate, reader.header.channels, 0
        energies, mean_energy = np.zeros(self.channels), 0.0
        for block in reader.blocks():
            block_energies = np.einsum("nc,nc->c", block, block)
            finite = np.isfinite(block).all(axis=1) if not np.isfinite(block_energies).all() else None
            if finite is not None and not finite.all():
                place = (self.samples + int(np.argmin(finite))) / self.rate
                message = f"{recording.audio}: holds NaN or infinite samples, the first at {place:.2f} s"
                raise RejectedRecording(Reason.not_finite, message)
            energies += block_energies
            if self.channels > 1:
                mean = mean_of_channels(block)
                mean_energy += float(np.dot(mean, mean))
            self.store.write(np.ascontiguousarray(block).data.cast("B"))
            self.samples += len(block)
        if self.samples == 0:
            raise RejectedRecording(Reason.audio_empty, f"{recording.audio}: holds no audio samples")
        self.mono = mono_channel(energies, mean_energy) if self.channels > 1 else 0
        if self.channels > 1 and self.mono is not None:
            log.warning("%s: its channels cancel each other; channel %d is used alone", recording.audio, self.mono)

    def read(self, first: int, last: int) -> Iterator[np.ndarray]:
        width = self.channels * _FLOAT
        for place in range(first, last, BLOCK):
            self.store.seek(place * width)
            data = self.store.read((min(place + BLOCK, last) - place) * width)
            yield np.frombuffer(data, np.float32).reshape(-1, self.channels)


def _resample(pieces: Iterator[np.ndarray], samples: int, from_rate: int, to_rate: int) -> np.ndarray:
    """Resamples pieces as a stream, bit for bit as `csm.audio.resample` of the whole, in the memory of the result."""
    resampled = np.empty(math.ceil(samples * to_rate / from_rate) + 1, np.float32)
    stream = soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32", quality="HQ")
    done, place = 0, 0
    for piece in pieces:
        done += len(piece)
        out = piece if from_rate == to_rate else stream.resample_chunk(piece, last=done == samples)
        resampled[place : place + len(out)] = out
        place += len(out)
    return resampled[:place]
