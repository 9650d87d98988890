"""Speech as the page's player takes it: AAC in ADTS frames, from one encoder for a whole stream."""

from __future__ import annotations

from io import BytesIO

import av
import numpy as np
from torch import Tensor

FRAME = 1024  # samples of an AAC frame
BIT_RATE = 96_000
SHORTEST_SECONDS = 0.5
"""Frames are held back until they last so long: players stall over shorter pieces."""


class AacStream:
    """Encodes chunks without gaps between them.

    Gradio would encode each chunk as a file of its own, with a pause of the encoder's at the seams.
    """

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self._bytes = BytesIO()
        self._container = av.open(self._bytes, "w", format="adts")
        self._stream = self._container.add_stream("aac", rate=sample_rate, layout="mono")
        self._stream.bit_rate = BIT_RATE
        self._samples = 0

    def encode(self, samples: Tensor) -> bytes:
        """The frames that are complete with float32 `[num_samples]` in [-1, 1]; empty until there are enough."""
        frame = av.AudioFrame.from_ndarray(samples.clamp(-1, 1).numpy()[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = self.sample_rate, self._samples
        self._samples += len(samples)
        self._container.mux(self._stream.encode(frame))
        enough = adts_seconds(self._bytes.getvalue(), self.sample_rate) >= SHORTEST_SECONDS
        return self._take() if enough else b""

    def finish(self) -> bytes:
        """The last frames."""
        self._container.mux(self._stream.encode(None))
        return self._take()

    def _take(self) -> bytes:
        taken = self._bytes.getvalue()
        self._bytes.seek(0)
        self._bytes.truncate()
        return taken


def adts_seconds(data: bytes, sample_rate: int) -> float:
    """Seconds of sound in whole ADTS frames, whose headers hold their lengths (ISO/IEC 13818-7, 6.2)."""
    frames, start = 0, 0
    while start + 7 <= len(data):
        start += (data[start + 3] & 3) << 11 | data[start + 4] << 3 | data[start + 5] >> 5
        frames += 1
    return frames * FRAME / sample_rate
