"""Norms and clipping of gradients, on parameters that may be spread over ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.optim import AdamW


def gradient_norms(parts: dict[str, list[nn.Parameter]]) -> dict[str, Tensor]:
    """2-norms of all gradients, scalars on their device: of each part, and "total". Norms of sharded parameters are of
    the whole tensors, the same on every rank. Nothing waits for the device."""
    norms = {part: gradient_norm(parameters) for part, parameters in parts.items()}
    norms["total"] = torch.linalg.vector_norm(torch.stack(list(norms.values())))
    return norms


def clip_gradients(parts: dict[str, list[nn.Parameter]], norm: Tensor, limit: float, optimizer: AdamW) -> None:
    """Has the optimizer's next step take gradients of the global norm `norm` as if they were scaled down to `limit`.

    On CUDA the fused optimizer divides them while it reads them, which saves reading and writing them once more; the
    results differ by rounding. Elsewhere they are scaled here.
    """
    if norm.is_cuda:
        optimizer.grad_scale = clip_divisor(norm, limit)  # type: ignore[attr-defined] # as torch's GradScaler does it
        return
    for parameters in parts.values():
        scale_gradients(parameters, norm, limit)


def clip_divisor(norm: Tensor, limit: float) -> Tensor:
    """Divisor of gradients of that norm, [] fp32, at least 1: the inverse of torch's clipping coefficient."""
    return ((norm + 1e-6) / limit).clamp(min=1.0)


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """2-norm [] over all gradients, the same on all ranks whether or not they hold only a part of them."""
    gradients = [[p.grad for p in part if p.grad is not None] for part in _by_mesh(parameters)]
    # Torch chooses lists of tensors, a few kernels for all, by itself, but not for DTensors.
    norms = [torch.nn.utils.get_total_norm(part, foreach=isinstance(part[0], DTensor) or None) for part in gradients]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return torch.linalg.vector_norm(torch.stack(whole))


def scale_gradients(parameters: Iterable[nn.Parameter], norm: Tensor, limit: float) -> None:
    """Scales gradients of that norm down to `limit` if they exceed it."""
    for part in _by_mesh(parameters):
        foreach = isinstance(part[0], DTensor) or None  # as in `gradient_norm`
        torch.nn.utils.clip_grads_with_norm_(part, limit, norm, foreach=foreach)


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
