"""What ranks must agree on in every optimizer step: how many frames it has, and whether anyone was asked to stop.

The values are known on the host, so they travel between hosts: a gloo group beside the training group, whatever its
backend. Nothing of it waits for a GPU, and every rank reads the same answer at the same step.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


class RankAgreement:
    """Sums of a few numbers over ranks. Create it on all ranks at the same time, after the process group is up."""

    def __init__(self) -> None:
        parallel = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo") if parallel else None

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all ranks, exactly for counts below 2^53."""
        if self._group is None:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return total.tolist()

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on every rank; for rare records, not for every step."""
        if self._group is None:
            return [value]
        values: list[T | None] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(values, value, group=self._group)
        return values

    def largest(self, value: int) -> int:
        """The largest value of all ranks."""
        if self._group is None:
            return value
        total = torch.tensor(value)
        dist.all_reduce(total, dist.ReduceOp.MAX, group=self._group)
        return int(total)
