"""Communication between ranks: sums on the device, and what hosts must agree on in every optimizer step.

The number of frames of a step and requests to stop are known on the host, so they travel between hosts: a gloo group
next to the training group, whatever its backend. Nothing of it waits for a GPU, and every rank reads the same answer
at the same step.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
import torch.distributed as dist
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor

T = TypeVar("T")


def global_rank() -> int:
    """This process's number among all; by the launcher's variables before the processes are connected."""
    return int(getattr(rank_zero_only, "rank", 0))


def all_reduce(values: Tensor) -> Tensor:
    """Sum over ranks (a copy); the values themselves in a single process. Stays on the device."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values


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
        return cast(list[float], total.tolist())

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on every rank; for rare records, not for every step."""
        if self._group is None:
            return [value]
        values: list[T | None] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(values, value, group=self._group)
        return cast(list[T], values)

    def largest(self, value: int) -> int:
        """The largest value of all ranks."""
        if self._group is None:
            return value
        total = torch.tensor(value)
        dist.all_reduce(total, dist.ReduceOp.MAX, group=self._group)
        return int(total)
