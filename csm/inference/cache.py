"""Keys and values of the backbone for a fixed number of slots, in one buffer that is never reallocated.

Positions are tensors: a frame step writes and reads without knowing on the host how far any slot has come. What lies
beyond a slot's position is left over from earlier requests and masked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from csm.config import TransformerConfig

SHORTEST = 128
"""Smallest attended length; longer ones are powers of two."""


def attended_length(positions: int, max_length: int) -> int:
    """The bucket of lengths that holds `positions`: with few of them, few kernels have to be compiled or captured."""
    return min(max(SHORTEST, 1 << (positions - 1).bit_length()), max_length)


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the first positions of a conversation, out of a slot: `[layers, 2, G, length, E]`."""

    data: Tensor

    @property
    def length(self) -> int:
        return self.data.shape[3]

    def first(self, positions: int) -> Prefix:
        """The prefix as far as `positions`."""
        return Prefix(self.data[:, :, :, :positions])


class KVCache:
    """`layers`: of each layer `[2, slots, G, max_length, E]`, keys and values.

    Each is a tensor of its own, seen as rows `[-1, E]` where single positions are written: the compiler then writes in
    place, where it would copy a buffer of all layers for each of them.
    """

    def __init__(
        self, config: TransformerConfig, slots: int, max_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.slots, self.max_length = slots, max_length
        self.shape = (2, slots, config.kv_heads, max_length, config.dim // config.heads)
        self.rows = [
            torch.zeros(math.prod(self.shape[:-1]), self.shape[-1], dtype=dtype, device=device)
            for _ in range(config.layers)
        ]
        self.layers = [rows.view(self.shape) for rows in self.rows]

    def save(self, slot: int, length: int) -> Prefix:
        return Prefix(torch.stack([layer[:, slot, :, :length] for layer in self.layers]))

    def restore(self, slot: int, prefix: Prefix, length: int) -> None:
        """Puts the first `length` positions of `prefix` into a slot."""
        for layer, data in zip(self.layers, prefix.data, strict=True):
            layer[:, slot, :, :length] = data[:, :, :length]

    def single(self, positions: Tensor, attended: int) -> SinglePositions:
        """Attention of one new position in each of the first B slots, at `positions [B]`."""
        return SinglePositions(self, positions, attended)

    def shared(self, position: int, batch: int) -> SharedPosition:
        """Attention of one new position in each of the first `batch` slots, at `position` in all of them."""
        return SharedPosition(self, position, batch)

    def chunk(self, slot: int, start: int, length: int) -> Chunk:
        """Attention of `length` new positions of one slot, from `start` on."""
        return Chunk(self, slot, start, length)


class SinglePositions:
    """`Attend` for a frame step. Query heads of a group are rows of one product, so keys are read once per group."""

    def __init__(self, cache: KVCache, positions: Tensor, attended: int) -> None:
        self.cache, self.attended = cache, attended
        batch, groups, length = positions.shape[0], cache.kv_heads, cache.max_length
        device = positions.device
        slots, kinds, heads = (torch.arange(n, device=device) for n in (batch, 2, groups))
        planes = (kinds[:, None] * cache.slots + slots[:, None, None]) * groups + heads  # [B, 2, G]
        self.rows = (planes * length + positions[:, None, None]).flatten()
        hidden = torch.arange(attended, device=device) > positions[:, None]  # [B, attended]
        mask = torch.zeros(hidden.shape, dtype=cache.rows[0].dtype, device=device).masked_fill(hidden, -torch.inf)
        self.mask = mask.repeat_interleave(groups, dim=0)[:, None]  # [B*G, 1, attended]

    def __call__(self, layer: int, heads: Tensor) -> Tensor:
        cache, (batch, _, head_dim) = self.cache, heads.shape
        rows = cache.rows[layer]
        rows.index_copy_(0, self.rows, heads[:, cache.heads :].reshape(-1, head_dim))
        keys, values = rows.view(cache.shape)[:, :batch, :, : self.attended].flatten(1, 2)  # [B*G, attended, E]
        q = heads[:, : cache.heads].reshape(batch * cache.kv_heads, -1, head_dim)  # [B*G, H/G, E]
        weights = torch.baddbmm(self.mask, q, keys.transpose(1, 2)).softmax(dim=-1)
        return torch.bmm(weights, values).view(batch, -1)


class SharedPosition:
    """`Attend` at a position that all slots share and the host knows: nothing is masked, and no index is computed.

    The views are made once: in eager steps of the depth decoder, making them would take as long as attention does.
    """

    def __init__(self, cache: KVCache, position: int, batch: int) -> None:
        self.heads, self.queries = cache.heads, (batch * cache.kv_heads, -1, cache.shape[-1])
        self.views = []
        for layer in cache.layers:
            data = layer[:, :batch]  # [2, B, G, length, E]
            keys, values = data[..., : position + 1, :].flatten(1, 2)  # [B*G, position + 1, E]
            self.views.append((data[..., position, :].transpose(0, 1), keys.transpose(1, 2), values))

    def __call__(self, layer: int, heads: Tensor) -> Tensor:
        new, keys, values = self.views[layer]
        new.copy_(heads[:, self.heads :].view(new.shape))  # [B, 2, G, E]
        q = heads[:, : self.heads].reshape(self.queries)  # [B*G, H/G, E]
        weights = torch.bmm(q, keys).softmax(dim=-1)
        return torch.bmm(weights, values).view(len(heads), -1)


class Chunk:
    """`Attend` for a part of a prompt."""

    def __init__(self, cache: KVCache, slot: int, start: int, length: int) -> None:
        self.cache, self.slot, self.start, self.end = cache, slot, start, start + length
        device = cache.rows[0].device
        seen = torch.arange(self.end, device=device) <= torch.arange(start, self.end, device=device)[:, None]
        self.mask = seen.repeat_interleave(cache.heads // cache.kv_heads, dim=0)  # rows as in `q` below

    def __call__(self, layer: int, heads: Tensor) -> Tensor:
        cache, (length, _, head_dim) = self.cache, heads.shape
        data = cache.layers[layer][:, self.slot]  # [2, G, max_length, E]
        new = heads[:, cache.heads :].unflatten(1, (2, -1))  # [length, 2, G, E]
        data[:, :, self.start : self.end] = new.permute(1, 2, 0, 3)
        keys, values = data[:, None, :, : self.end]  # [1, G, end, E]
        q = heads[:, : cache.heads].reshape(length, cache.kv_heads, -1, head_dim).transpose(0, 1)
        q = q.reshape(1, cache.kv_heads, -1, head_dim)  # [1, G, length * H/G, E]
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=self.mask, scale=1.0)
        # Its layout in memory is the kernel's: CUDA's have heads after positions.
        return y[0].unflatten(1, (length, -1)).transpose(0, 1).reshape(length, -1)  # [length, H*E]
