"""Norms and clipping of gradients, on parameters that may be spread over ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor


def clip_gradients(parts: dict[str, list[nn.Parameter]], max_norm: float) -> dict[str, Tensor]:
    """Scales all gradients so that their global norm is at most `max_norm`; 0 leaves them as they are.

    Returns the norms before that, scalars on the device of the gradients: of each part, and "total". Norms of sharded
    parameters are of the whole tensors, the same on every rank. Nothing waits for the device.
    """
    norms = {part: gradient_norm(parameters) for part, parameters in parts.items()}
    norms["total"] = torch.linalg.vector_norm(torch.stack(list(norms.values())))
    for parameters in parts.values() if max_norm > 0 else ():
        scale_gradients(parameters, norms["total"], max_norm)
    return norms


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """2-norm [] over all gradients, the same on all ranks whether or not they hold only a part of them."""
    gradients = [[p.grad for p in part if p.grad is not None] for part in _by_mesh(parameters)]
    norms = [torch.nn.utils.get_total_norm(part) for part in gradients]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return torch.linalg.vector_norm(torch.stack(whole))


def scale_gradients(parameters: Iterable[nn.Parameter], norm: Tensor, limit: float) -> None:
    """Scales gradients of that norm down to `limit` if they exceed it."""
    for part in _by_mesh(parameters):
        torch.nn.utils.clip_grads_with_norm_(part, limit, norm)


def propagate_nonfinite(loss: Tensor) -> Tensor:
    """The loss []; if it is not finite, its gradients are made so too, for those who look at gradients only."""
    return loss * (1 + 0 * loss.detach())


def _by_mesh(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters with gradients, in groups on one mesh each: torch's operations on lists of tensors want that."""
    groups: dict[DeviceMesh | None, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            groups.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    return list(groups.values())
