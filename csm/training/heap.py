"""Memory of CPU training. glibc keeps what a step frees, in holes between what is still in use; the next large tensor
does not fit into them, so a process grows well beyond what it needs at any moment (docs/benchmarks.md has figures)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from csm.model.csm import CSM


def return_freed_memory(model: CSM) -> None:
    """From now on every training pass of `model` on a CPU gives its holes back to the system before the three moments
    that need the most: the depth decoder, the middle of the backbone's backward pass, and the gradient of the
    embeddings, the largest tensor of all. Not whenever something is freed: memory has to be handed out anew, a page at
    a time, which would take half as long as the step itself.

    Changes nothing where the C library is not glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if torch.is_grad_enabled():
            trim(0)

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].requires_grad:
            inputs[0].register_hook(lambda gradient: trim(0) and None)

    layers = model.backbone.layers
    model.backbone.register_forward_hook(after)
    for layer in {0, len(layers) // 2}:  # once its backward pass is over
        layers[layer].register_forward_pre_hook(before)
