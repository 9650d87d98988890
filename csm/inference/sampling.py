"""How a code is drawn from logits: Sesame's rules, in fp32."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_code(
    logits: Tensor, temperature: float, topk: int, codebook_size: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draws one code per row: `logits [B, V]` -> int64 `[B]`.

    Divide by the temperature, keep every logit not below the k-th largest (ties stay), softmax, then an exponential
    race (argmax of p / Exp(1), a draw from p). Ids from `codebook_size` on are reserved: the codec cannot decode
    them, so they are never drawn. `temperature=0` takes the most likely code.
    """
    logits = logits[:, :codebook_size].float()
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / temperature
    kth = logits.topk(min(topk, logits.shape[-1]), dim=-1).values[:, -1:]
    probabilities = logits.masked_fill(logits < kth, -torch.inf).softmax(dim=-1)
    noise = torch.empty_like(probabilities).exponential_(1.0, generator=generator)
    return (probabilities / noise).argmax(dim=-1)
