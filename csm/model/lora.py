"""LoRA: low-rank updates of frozen linear layers (Hu et al. 2021, arXiv:2106.09685).

    y = W x + (alpha / rank) * B A x        A [rank, in] random, B [out, rank] zero: training starts at the base model

The base weights keep their names, so a checkpoint with adapters is the base model's plus `*.lora_a` and `*.lora_b`.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.config import LoraConfig
from csm.model.init import draw
from csm.model.speech_lm import SpeechLM

LAYERS = {
    "q_proj": "attn",
    "k_proj": "attn",
    "v_proj": "attn",
    "o_proj": "attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}
"""Linear layers of a block that can be adapted, and the part of the block they belong to."""
STACKS = ("backbone", "decoder")


class LoraLinear(nn.Linear):
    """A frozen linear layer without bias, and its low-rank update."""

    def __init__(self, base: nn.Linear, config: LoraConfig) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight = base.weight
        self.weight.requires_grad_(False)
        self.scale = config.alpha / config.rank
        self.dropout = config.dropout
        self.lora_a = nn.Parameter(base.weight.new_empty(config.rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_empty(base.out_features, config.rank))
        if not self.lora_a.is_meta:
            self.init_adapter()

    def init_adapter(self) -> None:
        draw(self.lora_a, partial(nn.init.kaiming_uniform_, a=math.sqrt(5)))  # as the paper's code, and PEFT
        draw(self.lora_b, nn.init.zeros_)

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(F.dropout(x, self.dropout, self.training), self.lora_a)
        return super().forward(x) + self.scale * F.linear(low, self.lora_b)


def apply_lora(model: SpeechLM, config: LoraConfig) -> None:
    """Freezes the model and adds adapters to the layers that `config` names; `train_modules` stay trainable.

    Raises ValueError for an unknown layer, stack or module, naming the choices.
    """
    _check(model, config)
    model.requires_grad_(False)
    for stack in config.stacks:
        for block in getattr(model, stack).layers:
            for layer in config.targets:
                part = getattr(block, LAYERS[layer])
                setattr(part, layer, LoraLinear(getattr(part, layer), config))
    for name in config.train_modules:
        getattr(model, name).requires_grad_(True)


@torch.no_grad()
def merged(weight: Tensor, a: Tensor, b: Tensor, config: LoraConfig) -> Tensor:
    """A layer's weight [out, in] with its update `a [rank, in], b [out, rank]` added, in fp32; dtype of `weight`."""
    return (weight.float() + (config.alpha / config.rank) * (b.float() @ a.float())).to(weight.dtype)


def _check(model: SpeechLM, config: LoraConfig) -> None:
    modules = [name for name, _ in [*model.named_children(), *model.named_parameters(recurse=False)]]
    for option, found, choices in (
        ("targets", config.targets, LAYERS),
        ("stacks", config.stacks, STACKS),
        ("train_modules", config.train_modules, modules),
    ):
        unknown = [name for name in found if name not in choices]
        if unknown:
            raise ValueError(f"lora.{option}: {unknown[0]!r} is unknown; choose from {', '.join(choices)}")
    if not config.targets or not config.stacks:
        raise ValueError("lora.targets and lora.stacks must each name at least one; lora.rank=0 trains all weights")
