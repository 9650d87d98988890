"""Audio files written while they are spoken: one encoder for a response, so that all its bytes are one file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import av
import numpy as np
from torch import Tensor

AudioFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]

MEDIA_TYPES: dict[AudioFormat, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
UNKNOWN_SIZE = 0xFFFFFFFF
"""In a WAV header: readers then take what comes."""


class Encoder(Protocol):
    """`push` takes float32 samples `[n]` in [-1, 1] and returns bytes, `finish` the last bytes."""

    def push(self, audio: Tensor) -> bytes: ...

    def finish(self) -> bytes: ...


def open_encoder(audio_format: AudioFormat, sample_rate: int) -> Encoder:
    if audio_format in ("wav", "pcm"):
        return _Samples(sample_rate, header=audio_format == "wav")
    return _Container(_CONTAINERS[audio_format], sample_rate)


class _Samples:
    """16-bit samples, little-endian, mono; with the header of a WAV file that does not know its length."""

    def __init__(self, sample_rate: int, header: bool) -> None:
        self._header = wav_header(sample_rate, None) if header else b""

    def push(self, audio: Tensor) -> bytes:
        header, self._header = self._header, b""
        return header + _integers(audio.numpy()).tobytes()

    def finish(self) -> bytes:
        header, self._header = self._header, b""
        return header


def wav_header(sample_rate: int, size: int | None) -> bytes:
    """Header of 16-bit mono; size: bytes of samples, if they are known. http://soundfile.sapp.org/doc/WaveFormat/"""
    rest = UNKNOWN_SIZE if size is None else 36 + size
    layout = [(16, 4), (1, 2), (1, 2), (sample_rate, 4), (2 * sample_rate, 4), (2, 2), (16, 2)]
    chunk = b"".join(value.to_bytes(width, "little") for value, width in layout)
    data = UNKNOWN_SIZE if size is None else size
    return b"RIFF" + rest.to_bytes(4, "little") + b"WAVEfmt " + chunk + b"data" + data.to_bytes(4, "little")


def complete_wav(content: bytes, sample_rate: int) -> bytes:
    """A WAV file with its sizes, of one that was encoded without."""
    return wav_header(sample_rate, len(content) - 44) + content[44:]


def _integers(audio: np.ndarray) -> np.ndarray:
    return (np.clip(audio, -1.0, 1.0) * 32767.0).round().astype("<i2")


@dataclass(frozen=True)
class _Kind:
    codec: str
    container: str
    sample_format: str
    options: dict[str, str]
    bit_rate: int | None = None


_CONTAINERS: dict[str, _Kind] = {
    # The Xing header counts frames that are not yet known, and would be written at the beginning, which has been sent.
    "mp3": _Kind("libmp3lame", "mp3", "fltp", {"write_xing": "0", "id3v2_version": "0"}, 128_000),
    "opus": _Kind("libopus", "ogg", "flt", {"page_duration": "20000"}, 64_000),  # pages of a second otherwise
    "aac": _Kind("aac", "adts", "fltp", {}, 128_000),
    "flac": _Kind("flac", "flac", "s16", {}),
}


_ALL = {"flush_packets": "1", "fflags": "bitexact"}
"""Nothing is kept back; the same audio gives the same bytes, without the random numbers of Ogg streams."""


class _Sink:
    """File that FFmpeg writes to; it cannot go back."""

    def __init__(self) -> None:
        self.written = bytearray()

    def write(self, data: bytes) -> int:
        self.written += data
        return len(data)

    def take(self) -> bytes:
        data, self.written = bytes(self.written), bytearray()
        return data


class _Container:
    """Samples are encoded in the codec's own frames, so the bytes do not depend on how the audio was divided."""

    def __init__(self, kind: _Kind, sample_rate: int) -> None:
        self._rate, self._kind, self._sink = sample_rate, kind, _Sink()
        self._file = av.open(self._sink, "w", format=kind.container, options={**kind.options, **_ALL})
        stream = self._file.add_stream(kind.codec, rate=sample_rate)
        assert isinstance(stream, av.AudioStream)
        self._stream = stream
        self._stream.layout = "mono"
        self._stream.codec_context.format = kind.sample_format
        if kind.bit_rate is not None:
            self._stream.codec_context.bit_rate = kind.bit_rate
        self._stream.codec_context.open()
        self._size = self._stream.codec_context.frame_size
        self._rest: np.ndarray = np.zeros(0, np.float32)
        self._samples = 0

    def push(self, audio: Tensor) -> bytes:
        self._rest = np.concatenate([self._rest, np.clip(audio.numpy(), -1.0, 1.0)])
        while len(self._rest) >= self._size:
            self._encode(self._rest[: self._size])
            self._rest = self._rest[self._size :]
        return self._sink.take()

    def finish(self) -> bytes:
        if len(self._rest):
            self._encode(self._rest)
        self._file.start_encoding()  # writes the header of a file without sound
        self._file.mux(self._stream.encode(None))
        self._file.close()
        return self._sink.take()

    def _encode(self, samples: np.ndarray) -> None:
        values = _integers(samples) if self._kind.sample_format == "s16" else np.ascontiguousarray(samples)
        frame = av.AudioFrame.from_ndarray(values[None], format=self._kind.sample_format, layout="mono")
        frame.sample_rate, frame.pts = self._rate, self._samples
        self._samples += len(samples)
        self._file.mux(self._stream.encode(frame))
