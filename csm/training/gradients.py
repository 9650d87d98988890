"""Gradient norms by part of the model, and clipping by the norm of the whole."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csm.parallel.plan import gradient_norm, scale_gradients
from csm.training.optim import PARTS, part_of


def contagious(loss: Tensor) -> Tensor:
    """The loss []; if it is not finite, no gradient that it leads to is: whoever looks at gradients sees it too."""
    return loss * (1 + 0 * loss.detach())


def trainable_parts(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of `model` by part, see `PARTS`; a part that is frozen as a whole is left out."""
    parts: dict[str, list[nn.Parameter]] = {part: [] for part in PARTS}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts[part_of(name)].append(parameter)
    return {part: parameters for part, parameters in parts.items() if parameters}


def clip_gradients(parts: dict[str, list[nn.Parameter]], max_norm: float) -> dict[str, Tensor]:
    """Scales all gradients so that their global norm is at most `max_norm`; 0: leaves them as they are.

    Returns the norms before that, scalars on the device of the gradients: of each part, and "total". Norms of sharded
    parameters are of the whole tensors, the same on every rank. Nothing waits for the device.
    """
    norms = {part: gradient_norm(parameters) for part, parameters in parts.items()}
    norms["total"] = torch.linalg.vector_norm(torch.stack(list(norms.values())))
    for parameters in parts.values() if max_norm > 0 else ():
        scale_gradients(parameters, norms["total"], max_norm)
    return norms
