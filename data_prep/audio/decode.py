"""Decoding of audio files of any common format: libsndfile where it is reliable, FFmpeg otherwise."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import PurePosixPath
from typing import BinaryIO, Protocol

import av
import numpy as np
import soundfile

from csm.audio import RAW_G722
from data_prep.reasons import Reason, RejectedRecording

BLOCK = 1 << 16
"""Most samples of each channel that are decoded at once."""

TRUNCATED_SECONDS = 0.5
"""A file that ends this much before its header says is truncated; the padding of encoders is below 0.1 s."""

_UNKNOWN_FRAMES = 1 << 62  # libsndfile reports the largest integer
_STREAMED_BYTES = 0x7FFFF000  # sizes from here on mean "unknown" in headers written to a pipe (sox, FFmpeg)
_CLAIMED_SIZE = re.compile(r"(?:data|SSND|riff)\s*: (\d+) \(should be (\d+)\)")
_CUT_OGG = ("Last page lacks an end-of-stream bit", "Junk after the last page")
_FFMPEG_KNOWS_LENGTH = ("mov", "matroska", "flac", "wav", "asf")  # of the audio, from headers; not from a bit rate


@dataclass
class Header:
    """Properties of an audio file, as its header gives them."""

    sample_rate: int
    channels: int
    codec_format: str  # container/codec: "wav/pcm_16", "mov/aac"; "mp3"
    samples: int | None  # of each channel; None: not in the header, or unreliable


class AudioReader(Protocol):
    """An open audio file. Both methods raise `RejectedRecording` for damaged audio, OSError for failing storage."""

    header: Header

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields all samples in order, in blocks of float32 [n, C] with n > 0; can be iterated once.

        There may be fewer or more samples than the header says. A file that ends too early raises `RejectedRecording`
        only after its last block.
        """
        ...

    def count(self) -> int:
        """Samples of each channel, from the header or else from the headers of all packets.

        Decodes nothing; to be called instead of `blocks`.
        """
        ...


def open_audio(file: BinaryIO, name: str) -> AudioReader:
    """Opens seekable audio of any format; `name` is for messages, and its suffix identifies headerless audio (G.722).

    Raises:
        RejectedRecording: the file is empty, or not audio.
        OSError: the storage fails.
    """
    watched = _Watched(file, name)
    size = watched.seek(0, io.SEEK_END)
    watched.seek(0)
    if size == 0:
        raise RejectedRecording(Reason.audio_empty, f"{name}: the file is empty")
    with _translated(watched, "cannot be decoded as audio"):
        if PurePosixPath(name).suffix.lower() == RAW_G722:
            return _G722(watched, size)
        if _is_mp3_of_unknown_length(watched):  # libsndfile guesses the length, and reads no further
            return _FfmpegReader(watched)
        try:
            reader = _SoundfileReader(watched)
        except soundfile.LibsndfileError:
            reader = None
        if reader is not None and reader.header.samples is not None:
            return reader
        watched.check()
        watched.seek(0)
        return _FfmpegReader(watched)


class _Watched:
    """A file for libraries that read from C, where exceptions are lost: they are kept, and raised by `check`."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self.name = file, name
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


@contextmanager
def _translated(file: _Watched, problem: str) -> Iterator[None]:
    """Raises errors of the libraries as `RejectedRecording`, or the storage's error if that failed."""
    try:
        yield
        file.check()
    except (soundfile.LibsndfileError, av.FFmpegError, EOFError, ValueError) as error:
        file.check()
        raise RejectedRecording(Reason.audio_corrupt, f"{file.name}: {problem} ({error})") from error


class _SoundfileReader:
    def __init__(self, file: _Watched) -> None:
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

    def blocks(self) -> Iterator[np.ndarray]:
        decoded = 0
        self._sound.seek(0)  # without it, libsndfile 1.2.2 returns an Opus file's priming samples first
        while True:
            try:
                block = self._sound.read(BLOCK, dtype="float32", always_2d=True)
                self._file.check()
            except soundfile.LibsndfileError as error:
                self._file.check()
                if self._file.ended:
                    raise _truncated(self._file.name, decoded, self._promised, self.header.sample_rate) from error
                place = decoded / self.header.sample_rate
                raise RejectedRecording(
                    Reason.audio_corrupt, f"{self._file.name}: damaged after {place:.2f} s ({error})"
                ) from error
            if not len(block):
                break
            decoded += len(block)
            yield block
        if self._cut or decoded < self._promised - TRUNCATED_SECONDS * self.header.sample_rate:
            raise _truncated(self._file.name, decoded, None if self._cut else self._promised, self.header.sample_rate)

    def count(self) -> int:
        assert self.header.samples is not None  # see `open_audio`
        return self.header.samples


class _FfmpegReader:
    def __init__(self, file: _Watched, container_format: str | None = None) -> None:
        self._file = file
        self._container = av.open(file, "r", format=container_format)
        if not self._container.streams.audio:
            raise EOFError("it has no audio stream")
        self._stream = stream = self._container.streams.audio[0]
        kind, codec = self._container.format.name.split(",")[0], stream.codec_context.name
        rate, channels = stream.rate, stream.codec_context.channels
        if not rate or not channels:
            raise EOFError("it gives neither sample rate nor channels")
        samples = None
        if kind in _FFMPEG_KNOWS_LENGTH and not self._container.streams.video:
            if stream.duration and stream.time_base:
                samples = round(stream.duration * stream.time_base * rate)
            elif self._container.duration:
                samples = round(self._container.duration * rate / av.time_base)
        name = kind if codec.startswith(kind) else f"{kind}/{codec}"
        self.header = Header(rate, channels, name, samples)

    def blocks(self) -> Iterator[np.ndarray]:
        decoded = 0
        to_float = av.AudioResampler(format="fltp")  # converts the sample format only, rate and layout stay
        frames = self._container.decode(self._stream)
        while True:
            place = decoded / self.header.sample_rate
            with _translated(self._file, f"damaged after {place:.2f} s"):
                frame = next(frames, None)
                converted = [] if frame is None else [out.to_ndarray() for out in to_float.resample(frame)]
            if frame is None:
                break
            for samples in converted:
                if samples.shape[0] != self.header.channels:
                    raise RejectedRecording(
                        Reason.audio_corrupt,
                        f"{self._file.name}: from {place:.2f} s on it has {samples.shape[0]} channels instead of "
                        f"{self.header.channels}",
                    )
                decoded += samples.shape[1]
                if samples.shape[1]:
                    yield np.ascontiguousarray(samples.T)
        promised = self.header.samples
        if promised is not None and decoded < promised - TRUNCATED_SECONDS * self.header.sample_rate:
            raise _truncated(self._file.name, decoded, promised, self.header.sample_rate)

    def count(self) -> int:
        if self.header.samples is not None:
            return self.header.samples
        seconds = Fraction(0)
        with _translated(self._file, "cannot be decoded as audio"):
            for packet in self._container.demux(self._stream):
                seconds += (packet.duration or 0) * (packet.time_base or 0)
        return round(seconds * self.header.sample_rate)


class _G722(_FfmpegReader):
    """Headerless: each byte is two samples."""

    def __init__(self, file: _Watched, size: int) -> None:
        super().__init__(file, "g722")
        self.header = Header(self.header.sample_rate, self.header.channels, "g722", 2 * size)


def _truncated(name: str, decoded: int, promised: int | None, rate: int) -> RejectedRecording:
    expected = f" of the {promised / rate:.2f} s in its header" if promised is not None else ", within a page"
    message = f"{name}: the file is cut off after {decoded / rate:.2f} s{expected}"
    return RejectedRecording(Reason.audio_truncated, message)


def _is_mp3_of_unknown_length(file: _Watched) -> bool:
    """Whether a file is an MP3 without the Xing, Info or VBRI header that counts its frames.

    That header is in the first frame: https://www.codeproject.com/Articles/8295/MPEG-Audio-Frame-Header.
    """
    head = file.read(10)
    start = 0
    if head[:3] == b"ID3" and len(head) == 10:  # https://id3.org/id3v2.3.0, section 3.1: 7 bits of size in each byte
        start = 10 + sum((byte & 0x7F) << (7 * (3 - place)) for place, byte in enumerate(head[6:10]))
    file.seek(start)
    frame = file.read(256)
    file.seek(0)
    file.ended = False
    layer_three = len(frame) > 4 and frame[0] == 0xFF and frame[1] & 0xE6 == 0xE2
    return layer_three and not any(sign in frame for sign in (b"Xing", b"Info", b"VBRI"))
