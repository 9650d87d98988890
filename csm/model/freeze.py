"""Freezing whole parts of a model, by the names of the optimizer's parameter groups."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

PARTS = ("backbone", "decoder", "embeddings", "text_embeddings")
"""Names for `freeze` of train.py: as in csm/training/optim.py, the decoder includes projection and heads."""


def part_of(name: str) -> str:
    """The part (backbone, decoder or embeddings) that a parameter of the model belongs to."""
    if "embeddings" in name:
        return "embeddings"
    return "backbone" if name.startswith("backbone.") else "decoder"


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Excludes the parameters of `parts` from training; an optimizer, averages and gradients do without them."""
    for name, parameter in model.named_parameters():
        if part_of(name) in parts or ("text_embeddings" in parts and name.startswith("text_embeddings.")):
            parameter.requires_grad_(False)
