"""The place where speech that leaves the server is marked; context never passes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from csm.watermark.base import UNMARKED, MarkStream


@dataclass(frozen=True)
class Marking:
    """name: in the X-Watermark header of every response; new: makes the mark of one response at a sample rate in Hz."""

    name: str = UNMARKED.name
    new: Callable[[int], MarkStream] = UNMARKED.stream

    def try_out(self, rate: int) -> None:
        """Marks a second of noise. Backends load their weights when they are first used: that takes seconds, or fails,
        and is not to be met by the first responses, some at the same time."""
        mark = self.new(rate)
        mark.push(0.1 * torch.randn(rate, generator=torch.Generator().manual_seed(0)))
        mark.flush()
