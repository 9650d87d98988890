"""The protocol of watermarks: marks on whole audio, marks on streams, and their detection."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

THRESHOLD = 0.9
"""Confidence from which audio counts as marked. Unmarked speech has reached 0.65 with Perth, see docs/watermark.md."""


class WatermarkUnavailable(ValueError):
    """A backend's package or weights are missing; the message says how to get them."""


class MarkStream(Protocol):
    """Marks one stream of chunks. All that is returned, joined, has the samples of all that was pushed."""

    def push(self, samples: Tensor) -> Tensor:
        """Takes the next chunk, float32 `[num_samples]`; returns what is marked by now, `[any number]`."""
        ...

    def flush(self) -> Tensor:
        """Ends the stream; returns the rest."""
        ...


class Watermark(Protocol):
    """A loaded backend. Audio is mono float32 `[num_samples]` on the CPU, `rate` its sample rate in Hz."""

    name: str

    def embed(self, samples: Tensor, rate: int) -> Tensor:
        """The marked audio, of the same length."""
        ...

    def stream(self, rate: int) -> MarkStream:
        """A new stream. Raises ValueError where the method needs the whole audio."""
        ...

    def detect(self, samples: Tensor, rate: int) -> float:
        """Confidence in 0..1 that the audio carries this backend's mark; `THRESHOLD` divides marked from unmarked."""
        ...


class Unmarked:
    """The backend `none`, which leaves audio as it is."""

    name = "none"

    def embed(self, samples: Tensor, rate: int) -> Tensor:
        return samples

    def stream(self, rate: int) -> Unmarked:
        return self

    def detect(self, samples: Tensor, rate: int) -> float:
        raise ValueError("no watermark to detect: choose a backend, such as perth")

    def push(self, samples: Tensor) -> Tensor:
        return samples

    def flush(self) -> Tensor:
        return torch.zeros(0)


UNMARKED = Unmarked()
