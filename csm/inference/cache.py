"""Key/value cache in a buffer of fixed size: generation allocates nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from csm.config import TransformerConfig


class KVCache:
    """Keys and values of one stack, `[layers, B, G, max_length, E]`, filled from the left.

    The caller feeds a chunk through the stack and then calls `advance`; `reset` empties the cache.
    """

    def __init__(
        self, config: TransformerConfig, batch: int, max_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        head_dim = config.dim // config.heads
        shape = (config.layers, batch, config.kv_heads, max_length, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        end = self.length + k.shape[2]
        assert end <= self.keys.shape[3], "cache overrun: the generator checks lengths before it starts"
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, positions: int) -> None:
        self.length += positions

    def reset(self) -> None:
        self.length = 0
