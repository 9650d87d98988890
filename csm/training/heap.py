"""Memory of CPU training. glibc keeps what a step frees, in holes between what is still in use; the next large tensor
does not fit into them, so a process grows well beyond what it needs at any moment (docs/benchmarks.md has figures)."""

from __future__ import annotations

import ctypes

from torch import Tensor, nn

from csm.model.csm import CSM


def return_freed_memory(model: CSM) -> None:
    """From now on every training pass of `model` on a CPU gives its holes back to the system twice, in the backbone's
    backward pass: after its first block and half-way. Memory that was given back has to be handed out anew, a page at a
    time. Whenever something is freed would take half as long as the step itself; these two moments lower the peak
    nearly as much, for a tenth.

    Changes nothing where the C library is not glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return

    def before_forward(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].requires_grad:  # its gradient is there once the block's backward pass is over
            inputs[0].register_hook(lambda gradient: trim(0) and None)

    layers = model.backbone.layers
    for block in {layers[-1], layers[(len(layers) - 1) // 2]}:
        block.register_forward_pre_hook(before_forward)
