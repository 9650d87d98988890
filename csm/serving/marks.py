"""The place where speech that leaves the server is marked; context never passes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Mark(Protocol):
    """Marks the speech of one response, which comes in pieces: float32 `[num_samples]` in and out, on the CPU."""

    def push(self, audio: Tensor) -> Tensor: ...

    def flush(self) -> Tensor:
        """The last samples, those that `push` kept back."""
        ...


class Unmarked:
    def push(self, audio: Tensor) -> Tensor:
        return audio

    def flush(self) -> Tensor:
        return torch.zeros(0)


@dataclass(frozen=True)
class Marking:
    """name: in the X-Watermark header of every response; new: makes the mark of one response at a sample rate in Hz."""

    name: str = "none"
    new: Callable[[int], Mark] = lambda sample_rate: Unmarked()
