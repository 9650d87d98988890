"""Sampling of codes from logits: Sesame's rules, in fp32, with the randomness as an input.

An exponential race, argmax of p / e with e ~ Exp(1), is run in its logarithms: argmax of logit / temperature + g with
g = -log(e) (Gumbel's distribution). g comes from a generator of each request's own, one number for each id of each
codebook, so what a request draws depends on its seed alone: not on its slot, nor on its neighbors.

Classifier-free guidance (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598), in every codebook: the logits are
those without the text, plus `guidance` times what the text adds to them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_CANDIDATES = 64
"""Requests with a larger `topk` make a step sort whole codebooks."""


@dataclass(frozen=True)
class Sampling:
    """Options of a draw.

    temperature: 0 is greedy
    topk:        only the k most likely codes (and ties) are drawn; 0: all of them
    seed:        makes draws reproducible whatever else draws random numbers; None: one from the global generator
    guidance:    scale of classifier-free guidance; 1: none
    Raises ValueError, naming the option, for values that no distribution can be made of.
    """

    temperature: float = 0.9
    topk: int = 50
    seed: int | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature={self.temperature}: must be a finite number from 0 (greedy)")
        if self.topk < 0:
            raise ValueError(f"topk={self.topk}: must be a number of codes, or 0 to draw from all of them")
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"seed={self.seed}: must fit into 64 bits")
        if not (math.isfinite(self.guidance) and self.guidance >= 1):
            raise ValueError(f"guidance={self.guidance}: must be a finite number from 1 (no guidance)")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def guided(self) -> bool:
        return self.guidance > 1

    def candidates(self, codebook_size: int) -> int:
        """Largest logits that a step has to sort for this request; 0: none, it takes the largest."""
        if self.greedy:
            return 0
        return MOST_CANDIDATES if 0 < self.topk <= MOST_CANDIDATES < codebook_size else codebook_size

    def generator(self, device: torch.device) -> torch.Generator | None:
        """The request's own random numbers; None for a greedy one."""
        if self.greedy:
            return None
        seed = int(torch.randint(2**62, ())) if self.seed is None else self.seed
        return torch.Generator(device).manual_seed(seed)


def draw_noise(out: Tensor, generator: torch.Generator) -> None:
    """Fills `out` with Gumbel noise. Uniform numbers and two logarithms take a third of the time of `exponential_`."""
    out.uniform_(generator=generator).log_().neg_().log_().neg_()


@dataclass(frozen=True)
class SlotGuidance:
    """Guidance of B slots: a guided request has two, which differ in their prompts and draw the same codes.

    with_text:    int64 [B], the slot of the pair that reads the text; a slot alone: itself
    without_text: int64 [B], the one that does not; a slot alone: itself
    scale:        fp32 [B, 1]
    """

    with_text: Tensor
    without_text: Tensor
    scale: Tensor

    def apply(self, logits: Tensor) -> Tensor:
        """Guided logits, fp32 `[B, codebook_size]`. Those of a slot alone stay bit for bit what they are."""
        logits = logits.float()
        base = logits[self.without_text]
        return base + self.scale * (logits[self.with_text] - base)


@dataclass(frozen=True)
class SlotSampling:
    """Sampling options of B slots as tensors `[B, 1]`, so that a step need not know them on the host.

    temperature: 1 for greedy slots, whose noise is 0
    topk:        from 1; `codebook_size` where all codes are drawn from
    guidance:    None where no slot is guided
    """

    temperature: Tensor
    topk: Tensor
    guidance: SlotGuidance | None = None

    def sample(self, logits: Tensor, noise: Tensor, candidates: int) -> Tensor:
        """Draws one code per slot: `logits, noise [B, codebook_size]` -> int64 `[B]`.

        Keeps every logit not below the k-th largest: ties stay. candidates: at least the `topk` of every slot; 0 if all
        are greedy.
        """
        if self.guidance is not None:
            logits = self.guidance.apply(logits)
        if candidates == 0:
            return logits.argmax(dim=-1)
        logits = logits.float() / self.temperature
        kth = logits.topk(candidates, dim=-1).values.gather(1, self.topk - 1)  # [B, 1]
        return torch.where(logits < kth, -torch.inf, logits + noise).argmax(dim=-1)
