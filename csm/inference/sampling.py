"""Sampling of codes from logits: Sesame's rules, in fp32."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Options of a draw.

    temperature: 0 is greedy
    topk:        only the k most likely codes (and ties) are drawn; 0: all of them
    seed:        makes draws reproducible whatever else draws random numbers; None: the global generator
    Raises ValueError, naming the option, for values that no distribution can be made of.
    """

    temperature: float = 0.9
    topk: int = 50
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature={self.temperature}: must be a finite number from 0 (greedy)")
        if self.topk < 0:
            raise ValueError(f"topk={self.topk}: must be a number of codes, or 0 to draw from all of them")
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"seed={self.seed}: must fit into 64 bits")

    def generator(self, device: torch.device) -> torch.Generator | None:
        """A new random generator begun from `seed`; None, the global one, without a seed."""
        return None if self.seed is None else torch.Generator(device).manual_seed(self.seed)


def sample_code(
    logits: Tensor, sampling: Sampling, codebook_size: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draws one code per row: `logits [B, V]` -> int64 `[B]`.

    Divides by the temperature, keeps every logit not below the k-th largest (ties stay), takes the softmax, then an
    exponential race (argmax of p / Exp(1), a draw from p). Ids from `codebook_size` on are reserved: the codec cannot
    decode them, so they are never drawn.
    """
    logits = logits[:, :codebook_size].float()
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / sampling.temperature
    if 0 < sampling.topk < codebook_size:
        kth = logits.topk(sampling.topk, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probabilities = logits.softmax(dim=-1)
    noise = torch.empty_like(probabilities).exponential_(1.0, generator=generator)
    return (probabilities / noise).argmax(dim=-1)
