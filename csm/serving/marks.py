"""The place where speech that leaves the server is marked; context never passes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from csm.watermark.base import UNMARKED, MarkStream


@dataclass(frozen=True)
class Marking:
    """name: in the X-Watermark header of every response; new: makes the mark of one response at a sample rate in Hz."""

    name: str = UNMARKED.name
    new: Callable[[int], MarkStream] = UNMARKED.stream
