"""Decoding of audio files of any common format: libsndfile where it is reliable, FFmpeg otherwise.

The only decoder of the project: `csm.audio` reads whole files with it, data preparation streams. What comes out is what
was recorded, at the times at which it was recorded: files that were joined are read to their end, stretches of another
sample rate are resampled to the first one's, and pauses in a container's time stamps are silence.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import PurePosixPath
from typing import BinaryIO, cast

import av
import numpy as np
import soundfile

from csm.audio_bytes import (
    Fault,
    FilePart,
    UnreadableAudio,
    WatchedFile,
    bytes_at,
    flac_parts,
    goes_on,
    is_mp3_of_unknown_length,
)
from csm.audio_reader import AudioReader, Header, JoinedReader, Part, between

BLOCK = 1 << 16
"""Most samples of each channel that are decoded at once."""

TRUNCATED_SECONDS = 0.5
"""A file that ends this much before its header says is truncated; the padding of encoders is below 0.1 s."""

PAUSE_SECONDS = 0.1
"""A shorter difference between time stamps and samples is jitter of the container; a larger one is a pause."""
MAX_PAUSE_SECONDS = 3600.0
"""A larger jump of time stamps is damage."""

HEADERLESS = {".g722": ("g722", 16_000, 2), ".al": ("alaw", 8_000, 1), ".ul": ("mulaw", 8_000, 1)}
"""Suffixes of headerless telephone audio, mono: FFmpeg's format, sample rate, samples in a byte."""
UNKNOWN_HEADERLESS = (".raw", ".pcm")  # of which decoders would guess something

_UNKNOWN_FRAMES = 1 << 62  # libsndfile reports the largest integer
_STREAMED_BYTES = 0x7FFFF000  # sizes from here on mean "unknown" in headers written to a pipe (sox, FFmpeg)
_CLAIMED_SIZE = re.compile(r"(?:data|SSND|riff)\s*: (\d+) \(should be (\d+)\)")
_CUT_OGG = ("Last page lacks an end-of-stream bit", "Junk after the last page")
_EXACT_SEEK = (
    "PCM_S8",
    "PCM_U8",
    "PCM_16",
    "PCM_24",
    "PCM_32",
    "FLOAT",
    "DOUBLE",
    "ULAW",
    "ALAW",
)  # libsndfile's names
_FFMPEG_KNOWS_LENGTH = ("mov", "matroska", "flac", "wav", "asf")  # of the audio, from headers; not from a bit rate
_FFMPEG_HAS_CLOCK = ("mov", "matroska", "asf", "mpegts", "flv", "mpeg")  # frames are stamped with their times


def open_audio(file: BinaryIO, name: str) -> AudioReader:
    """Opens seekable audio of any format; `name` is for messages, and its suffix identifies headerless audio.

    Raises:
        UnreadableAudio: the file is empty, or not audio.
        OSError: the storage fails.
    """
    watched = WatchedFile(file, name)
    size = watched.seek(0, io.SEEK_END)
    watched.seek(0)
    if size == 0:
        raise UnreadableAudio(Fault.audio_empty, f"{name}: the file is empty")
    with _translated(watched, "cannot be decoded as audio"):
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in HEADERLESS:
            return _Headerless(watched, size, *HEADERLESS[suffix])
        if suffix in UNKNOWN_HEADERLESS and bytes_at(watched, 0, 4) != b"RIFF":
            message = f"{name}: headerless audio of unknown rate and format; convert it to WAV"
            raise UnreadableAudio(Fault.audio_corrupt, message)
        if is_mp3_of_unknown_length(watched):  # libsndfile guesses the length, and reads no further
            return _FfmpegReader(watched)
        parts = flac_parts(watched, size)
        if len(parts) > 1:  # FFmpeg may miss the frame with which one begins
            return _open_joined(file, name, parts)
        if not parts and goes_on(watched, size):  # libsndfile reads the first part only
            return _FfmpegReader(watched, joined=True)
        return _open_single(watched)


def _open_joined(file: BinaryIO, name: str, parts: list[tuple[int, int]]) -> JoinedReader:
    readers: list[Part] = []
    for part in parts:
        watched = WatchedFile(cast(BinaryIO, FilePart(file, *part)), name)
        try:
            readers.append(_open_single(watched))
        except (soundfile.LibsndfileError, av.FFmpegError, EOFError, ValueError):
            watched.check()
            if part != parts[-1]:
                raise
    return JoinedReader(name, readers, cut=len(readers) < len(parts))


def _open_single(file: WatchedFile) -> Part:
    try:
        reader = _SoundfileReader(file)
    except soundfile.LibsndfileError:
        reader = None
    if reader is not None and reader.header.samples:
        return reader
    # without a length, or with one of zero as a recorder leaves it that was not stopped
    file.check()
    file.seek(0)
    return _FfmpegReader(file)


@contextmanager
def _translated(file: WatchedFile, problem: str) -> Iterator[None]:
    """Raises errors of the libraries as `UnreadableAudio`, or the storage's error if that failed."""
    try:
        yield
        file.check()
    except UnreadableAudio:
        raise
    except (soundfile.LibsndfileError, av.FFmpegError, EOFError, ValueError) as error:
        file.check()
        raise UnreadableAudio(Fault.audio_corrupt, f"{file.label}: {problem} ({error})") from error


class _SoundfileReader:
    before = 0.0

    def __init__(self, file: WatchedFile) -> None:
        self._file = file
        self._sound = sound = soundfile.SoundFile(file)
        log = sound.extra_info
        self._promised = sound.frames
        claimed = _CLAIMED_SIZE.search(log)
        if claimed and int(claimed[2]) < int(claimed[1]) < _STREAMED_BYTES:
            self._promised = round(sound.frames * int(claimed[1]) / max(1, int(claimed[2])))
        self._cut = all(sign in log for sign in _CUT_OGG)
        known = 0 <= sound.frames < _UNKNOWN_FRAMES
        codec = sound.subtype.lower()
        kind = "mp3" if codec.startswith("mpeg") else f"{sound.format.lower()}/{codec}"
        self.header = Header(sound.samplerate, sound.channels, kind, sound.frames if known else None)
        self.skips = sound.seekable() and sound.subtype in _EXACT_SEEK

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        decoded = min(start, self._sound.frames) if self.skips else 0
        rate = self.header.sample_rate
        if self._sound.seekable():  # GSM and ADPCM are not
            try:
                self._sound.seek(decoded)  # without it, libsndfile 1.2.2 returns an Opus file's priming samples first
            except soundfile.LibsndfileError as error:
                self._file.check()
                fault = Fault.audio_truncated if self._file.ended else Fault.audio_corrupt
                place = self.before + decoded / rate
                message = f"{self._file.label}: cannot be read from {place:.2f} s on ({error})"
                raise UnreadableAudio(fault, message) from error
        while stop is None or decoded < stop:
            try:
                wanted = BLOCK if stop is None else min(BLOCK, stop - decoded)
                block = self._sound.read(wanted, dtype="float32", always_2d=True)
                self._file.check()
            except soundfile.LibsndfileError as error:
                self._file.check()
                if self._file.ended:
                    raise _truncated(self._file.label, decoded, self._promised, rate, self.before) from error
                place = self.before + decoded / rate
                raise UnreadableAudio(
                    Fault.audio_corrupt, f"{self._file.label}: damaged after {place:.2f} s ({error})"
                ) from error
            if not len(block):
                break
            decoded += len(block)
            if decoded > start:
                yield block[max(0, len(block) - (decoded - start)) :]
        if stop is not None and decoded >= stop:
            return
        if self._cut or decoded < self._promised - TRUNCATED_SECONDS * rate:
            promised = None if self._cut else self._promised
            raise _truncated(self._file.label, decoded, promised, rate, self.before)

    def count(self) -> int:
        assert self.header.samples is not None  # see `open_audio`
        return self.header.samples


class Clock:
    """The times of a container's frames against the samples before them; `label` is for messages."""

    def __init__(self, label: str, container: av.container.InputContainer) -> None:
        self._label = label
        # of the video, too; a stream may start before 0 with what the decoder drops
        self._start = max(Fraction(0), Fraction(container.start_time or 0, av.time_base))

    def pause(self, stamp: Fraction, place: Fraction) -> Fraction:
        """Seconds of silence between `place`, seconds into the audio, and a frame of time stamp `stamp`.

        Raises `UnreadableAudio` if it is longer than an hour.
        """
        pause = stamp - self._start - place
        if pause > MAX_PAUSE_SECONDS:
            message = f"{self._label}: its time stamps jump by {float(pause):.0f} s at {float(place):.2f} s"
            raise UnreadableAudio(Fault.audio_corrupt, message)
        if pause < -PAUSE_SECONDS:  # the clock was set back: from here on, it counts from there
            self._start += pause
        return pause if pause > PAUSE_SECONDS else Fraction(0)


class _FfmpegReader:
    skips = False
    before = 0.0

    def __init__(
        self,
        file: WatchedFile,
        container_format: str | None = None,
        options: dict[str, str] | None = None,
        joined: bool = False,
    ) -> None:
        self._file, self._joined = file, joined
        file.seek(0)
        self._container = av.open(file, "r", format=container_format, options=options or {})
        if not self._container.streams.audio:
            raise EOFError("it has no audio stream")
        self._stream = stream = self._container.streams.audio[0]
        kind, codec = self._container.format.name.split(",")[0], stream.codec_context.name
        rate, channels = stream.rate, stream.codec_context.channels
        if not rate or not channels:
            raise EOFError("it gives neither sample rate nor channels")
        samples = None
        if kind in _FFMPEG_KNOWS_LENGTH and not self._container.streams.video and not joined:
            if stream.duration and stream.time_base:
                samples = round(stream.duration * stream.time_base * rate)
            elif self._container.duration and (self._container.start_time or 0) < PAUSE_SECONDS * av.time_base:
                # one that starts later counts its length from 0, or from there: nobody knows
                samples = round(self._container.duration * rate / av.time_base)
        name = kind if codec.startswith(kind) else f"{kind}/{codec}"
        self.header = Header(rate, channels, name, samples)
        self._clock = Clock(file.label, self._container) if kind in _FFMPEG_HAS_CLOCK and not joined else None

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        return between(self._blocks(), start, stop)

    def _blocks(self) -> Iterator[np.ndarray]:
        decoded = 0
        convert, kind = None, None
        frames = self._container.decode(self._stream)
        while True:
            place = Fraction(decoded, self.header.sample_rate)
            with _translated(self._file, f"damaged after {self.before + float(place):.2f} s"):
                frame = next(frames, None)
                converted: list[np.ndarray] = []
                found = None if frame is None else (frame.format.name, frame.layout.name, frame.sample_rate)
                if convert is not None and found != kind:  # the end, or what follows is sampled in another way
                    converted += map(_interleaved, convert.resample(None))
                if frame is not None:
                    if convert is None or found != kind:
                        convert, kind = av.AudioResampler(format="flt", rate=self.header.sample_rate), found
                    if self._clock is not None and frame.pts is not None and frame.time_base is not None:
                        pause = self._clock.pause(frame.pts * frame.time_base, place)
                        yield from _silence(round(pause * self.header.sample_rate), self.header.channels)
                        decoded += round(pause * self.header.sample_rate)
                    converted += map(_interleaved, convert.resample(frame))
            for samples in converted:
                if samples.shape[1] != self.header.channels:
                    raise UnreadableAudio(
                        Fault.audio_corrupt,
                        f"{self._file.label}: from {self.before + float(place):.2f} s on it has {samples.shape[1]} "
                        f"channels instead of {self.header.channels}",
                    )
                decoded += len(samples)
                if len(samples):
                    yield samples
            if frame is None:
                break
        promised = self.header.samples
        if promised is not None and decoded < promised - TRUNCATED_SECONDS * self.header.sample_rate:
            raise _truncated(self._file.label, decoded, promised, self.header.sample_rate, self.before)

    def count(self) -> int:
        if self.header.samples is not None:
            return self.header.samples
        if self._joined:  # durations of packets are wrong where the next file begins
            return sum(len(block) for block in self.blocks())
        seconds = Fraction(0)
        with _translated(self._file, "cannot be decoded as audio"):
            for packet in self._container.demux(self._stream):
                if self._clock is not None and packet.pts is not None and packet.time_base is not None:
                    seconds += self._clock.pause(packet.pts * packet.time_base, seconds)
                seconds += (packet.duration or 0) * (packet.time_base or 0)
        return round(seconds * self.header.sample_rate)


class _Headerless(_FfmpegReader):
    def __init__(self, file: WatchedFile, size: int, container_format: str, rate: int, samples_in_byte: int) -> None:
        super().__init__(file, container_format, {} if container_format == "g722" else {"sample_rate": str(rate)})
        self.header = Header(rate, self.header.channels, container_format, samples_in_byte * size)


def _interleaved(frame: av.AudioFrame) -> np.ndarray:
    """Samples of a packed frame, [n, C]; of planar frames with eight channels, PyAV reads a ninth from anywhere."""
    return frame.to_ndarray().reshape(-1, frame.layout.nb_channels)


def _silence(samples: int, channels: int) -> Iterator[np.ndarray]:
    for first in range(0, samples, BLOCK):
        yield np.zeros((min(BLOCK, samples - first), channels), np.float32)


def _truncated(name: str, decoded: int, promised: int | None, rate: int, before: float) -> UnreadableAudio:
    """An error with times of the whole file, of which `before` seconds precede this part."""
    expected = f" of the {before + promised / rate:.2f} s in its header" if promised is not None else ", within a page"
    message = f"{name}: the file is cut off after {before + decoded / rate:.2f} s{expected}"
    return UnreadableAudio(Fault.audio_truncated, message)
