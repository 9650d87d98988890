"""Audio and spectrograms inside a report's page, as far as there is room for them."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool1d

from csm.audio import resample
from csm.codec.mel import HOP, LOG_FLOOR, SAMPLE_RATE, add_margins, log_mel, mel_filterbank, stft

AUDIO_BYTES = 2_000_000
"""Audio is embedded until the page has grown by so much; players after that read the files in audio/."""
IMAGE_BYTES = 700_000
"""The same for spectrograms; there are none after that."""

_COLUMNS, _BANDS = 180, 40
_LOUD = 4.0  # of log-mel magnitudes


class Room:
    """The room of one page. folder: the report's, where audio/ is."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._audio_left, self._images_left = folder, AUDIO_BYTES, IMAGE_BYTES
        self._filters = mel_filterbank()

    def audio(self, file: str) -> str:
        """A data URI of MP3, which every browser plays, about 7 kB per second; or the file's own relative path."""
        if self._audio_left <= 0:
            return file
        samples, rate = soundfile.read(self._folder / file, dtype="float32")
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, rate, format="MP3")
        uri = _data_uri("audio/mpeg", buffer.getvalue())
        self._audio_left -= len(uri)
        return uri

    def spectrogram(self, file: str) -> str | None:
        """A data URI of a small PNG: time to the right, mel scale up to 12 kHz upwards, dark is loud; None without room
        or for less than a frame of 10 ms."""
        if self._images_left <= 0:
            return None
        samples, rate = soundfile.read(self._folder / file, dtype="float32")
        audio = resample(torch.from_numpy(samples), rate, SAMPLE_RATE)
        frames = len(audio) // HOP
        if not frames:
            return None
        logs = log_mel(stft(add_margins(audio[: frames * HOP])).abs(), self._filters).T  # [80, frames]
        pooled = adaptive_avg_pool1d(logs.view(_BANDS, -1, frames).mean(1)[None], min(frames, _COLUMNS))[0]
        loudness = ((pooled - LOG_FLOOR) / (_LOUD - LOG_FLOOR)).clamp(0, 1).flip(0)
        uri = _data_uri("image/png", _png((15 - 15 * loudness).round().to(torch.uint8).numpy()))
        self._images_left -= len(uri)
        return uri


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64," + base64.b64encode(content).decode()


def _png(levels: NDArray[np.uint8]) -> bytes:
    """A PNG of 16 gray levels: [height, width], 0 is black (ISO/IEC 15948, bit depth 4)."""
    height, width = levels.shape
    padded = np.pad(levels, ((0, 0), (0, width % 2)))
    lines = np.pad(padded[:, ::2] << 4 | padded[:, 1::2], ((0, 0), (1, 0)))  # each begins with filter 0

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 4, 0, 0, 0, 0)
    image = zlib.compress(lines.astype(np.uint8).tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", image) + chunk(b"IEND", b"")
