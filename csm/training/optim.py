"""AdamW with parameter groups, and the learning-rate schedule as a pure function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from csm.config import OptimConfig, Schedule
from csm.model.freeze import part_of

PARAM_GROUPS = ("backbone", "decoder", "embeddings")


def trainable_parts(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of `model` by group, see `PARAM_GROUPS`; a group that is frozen as a whole is absent."""
    parts: dict[str, list[nn.Parameter]] = {part: [] for part in PARAM_GROUPS}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts[part_of(name)].append(parameter)
    return {part: parameters for part, parameters in parts.items() if parameters}


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Backbone, decoder (with projection and heads) and embeddings, each with its learning-rate multiple.

    Frozen parameters are excluded. Weight decay acts on matrices only: not on norms, not on embeddings, whose rare rows
    would shrink, and not on LoRA adapters, which are a change of the weights and not the weights.
    """
    scales = {
        "backbone": config.backbone_lr_scale,
        "decoder": config.decoder_lr_scale,
        "embeddings": config.embeddings_lr_scale,
    }
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = part_of(name)
        decay = part != "embeddings" and parameter.ndim >= 2 and ".lora_" not in name
        groups.setdefault((part, decay), []).append(parameter)
    return [
        {
            "name": part if decay or part == "embeddings" else f"{part}_no_decay",
            "params": parameters,
            "lr": config.lr * scales[part],
            "weight_decay": config.weight_decay if decay else 0.0,
        }
        for (part, decay), parameters in groups.items()
    ]


def lr_factor(step: int, config: OptimConfig, max_steps: int) -> float:
    """Learning rate of optimizer step `step` (from 0) as a share of the peak.

    Linear warm-up, then `cosine` down to min_lr_ratio at max_steps, or `wsd` (warm-up, stable, decay): constant
    until the last decay_steps, then linear down to min_lr_ratio.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    low = config.min_lr_ratio
    if config.schedule is Schedule.cosine:
        progress = min(1.0, (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps))
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))
    remaining = max(0, max_steps - step)
    if config.decay_steps == 0 or remaining >= config.decay_steps:
        return 1.0
    return low + (1 - low) * remaining / config.decay_steps


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, in its fused form (one kernel per group, on CPU and CUDA)."""
    return torch.optim.AdamW(
        parameter_groups(model, config),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
