"""An exponential moving average of the trained weights, kept next to them and in every checkpoint as `ema.<name>`.

    after every optimizer step that was not skipped:   average += (1 - decay) * (weight - average)

It starts from the initial weights. Tensors are updated in place; of a sharded parameter every rank averages its own
part. Frozen parameters have no average.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class WeightAverage(nn.Module):
    """Averages of the trainable parameters of `model`, under their names.

    They are parameters without gradients rather than buffers, which DistributedDataParallel would send to all ranks in
    every forward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                *path, leaf = name.split(".")
                owner: nn.Module = self
                for part in path:
                    if not hasattr(owner, part):
                        owner.add_module(part, nn.Module())
                    owner = owner.get_submodule(part)
                owner.register_parameter(leaf, nn.Parameter(parameter.detach().clone(), requires_grad=False))

    @torch.no_grad()
    def reset(self, model: nn.Module) -> None:
        """Starts from the model's weights of now."""
        averages, weights = self._pairs(model)
        torch._foreach_copy_(averages, weights)

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float, skipped: Tensor) -> None:
        """One step; skipped: scalar on the device, 1 leaves the averages as they are, bit for bit."""
        averages, weights = self._pairs(model)
        share = (1 - decay) * (1 - skipped.to(averages[0].device))
        torch._foreach_lerp_(averages, weights, [share] * len(weights))

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchanges the averages with the model's weights; a second call undoes it, bit for bit."""
        for average, weight in zip(*self._pairs(model), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def _pairs(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """(averages, weights), of sharded ones this rank's parts."""
        weights = dict(model.named_parameters())
        averages = dict(self.named_parameters())
        return [_local(average) for average in averages.values()], [_local(weights[name]) for name in averages]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
