"""Marks on audio that comes in chunks, for methods whose mark at a moment depends on what is near it alone.

    what was returned | context |  marked now  | lookahead |
                      ^-------- marked at once -----------^

Each push marks the new audio together with the context before and the lookahead after it, and returns the middle.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class OverlapStream:
    """Streamed marks that equal those of `embed` as far as the method looks no further than context and lookahead.

    embed:     marks audio `[num_samples]`, of which the first sample lies at a multiple of `grid`
    context:   samples before that are marked again with each piece
    lookahead: samples after that must be there before a piece is returned: the stream's delay
    grid:      samples of the method's frames, so that pieces have the frames of the whole
    """

    def __init__(self, embed: Callable[[Tensor], Tensor], context: int, lookahead: int, grid: int = 1) -> None:
        self.embed, self.context, self.lookahead, self.grid = embed, context, lookahead, grid
        self._held = torch.zeros(0)  # from the context's first sample on
        self._done = 0  # samples of `_held` that were returned

    def push(self, samples: Tensor) -> Tensor:
        self._held = torch.cat([self._held, samples])
        return self._mark(len(self._held) - self.lookahead)

    def flush(self) -> Tensor:
        rest = self._mark(len(self._held))
        self._held, self._done = torch.zeros(0), 0
        return rest

    def _mark(self, end: int) -> Tensor:
        """Marks `_held` up to `end`, and drops what is no longer context."""
        if end <= self._done:
            return torch.zeros(0)
        marked = self.embed(self._held)[self._done : end].clone()
        start = max(0, end - self.context) // self.grid * self.grid
        self._held, self._done = self._held[start:].clone(), end - start
        return marked
