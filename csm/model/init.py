"""Initial values of parameters that may be spread over ranks.

A value is always drawn or read as a whole tensor, in the same order everywhere; where a parameter is a DTensor, a rank
keeps its own part of it. So a model starts from the same weights whatever the number of processes, and a rank holds
one whole tensor at a time in addition to its share.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


@torch.no_grad()
def draw(parameter: Tensor, initialize: Callable[[Tensor], object]) -> None:
    """Calls `initialize` (an in-place function such as those of torch.nn.init) on the parameter as a whole.

    Random numbers come from the default generator of the CPU where the parameter is a DTensor, whose seed must
    be the same on all ranks, and else from that of the parameter's device.
    """
    if isinstance(parameter, DTensor):
        whole = torch.empty(parameter.shape, dtype=parameter.dtype)
        initialize(whole)
        assign(parameter, whole)
    else:
        initialize(parameter)


@torch.no_grad()
def assign(parameter: Tensor, whole: Tensor) -> None:
    """Copies a whole tensor, the same on all ranks, into a parameter. No communication."""
    if isinstance(parameter, DTensor):
        shape, offset = compute_local_shape_and_global_offset(
            parameter.shape, parameter.device_mesh, parameter.placements
        )
        part = tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))
        parameter.to_local().copy_(whole[part])
    else:
        parameter.copy_(whole)
