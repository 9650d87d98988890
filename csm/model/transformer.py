"""A Llama-style transformer stack: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Used twice by the model: as the backbone over positions and as the depth decoder over codebooks. Shapes:
B batch, S sequence, D width, H query heads, G key/value heads, E = D / H head width.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from csm.config import ActivationCheckpointing, RopeConfig, TransformerConfig

AttentionMask = Tensor | BlockMask
"""bool [B, 1, S, S_keys], True where a query may look; or the same for flex attention (CUDA)."""


def rope_frequencies(head_dim: int, rope: RopeConfig) -> Tensor:
    """Inverse frequencies `[head_dim / 2]`, fp32, with Llama 3's long-context scaling.

    Wavelengths longer than old_context / low_freq_factor are slowed down by scale_factor, those shorter than
    old_context / high_freq_factor stay, and those between are interpolated (Llama 3.1 reference code).
    """
    frequencies = 1.0 / (rope.base ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))
    wavelengths = 2 * math.pi / frequencies
    smooth = (rope.old_context / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - smooth) * frequencies / rope.scale_factor + smooth * frequencies
    scaled = torch.where(
        wavelengths > rope.old_context / rope.low_freq_factor, frequencies / rope.scale_factor, blended
    )
    return torch.where(wavelengths < rope.old_context / rope.high_freq_factor, frequencies, scaled)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates `x [B, H, S, E]` by `cos, sin [B, 1, S, E/2]` in fp32; element i pairs with i + E/2, as in HF."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask | None) -> Tensor:
    """Grouped-query attention of `q [B, H, S, E]` over `k, v [B, G, S_keys, E]`; mask=None is causal."""
    if isinstance(mask, BlockMask):
        return cast(Tensor, flex_attention(q, k, v, block_mask=mask, enable_gqa=True))
    causal = mask is None and q.shape[2] > 1
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)


class RMSNorm(nn.Module):
    """Root-mean-square normalization, in fp32 whatever the input."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query self-attention."""

    rotate = staticmethod(apply_rope)
    attend = staticmethod(attend)

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.head_dim = config.dim // config.heads
        self.q_proj = nn.Linear(config.dim, config.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, config.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, config.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(config.heads * self.head_dim, config.dim, bias=False)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: AttentionMask | None) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.project(x)
        q = q.view(batch, length, self.heads, self.head_dim).transpose(1, 2)  # [B, H, S, E]
        k = k.view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)  # [B, G, S, E]
        v = v.view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = self.rotate(q, *rope), self.rotate(k, *rope)
        y = self.attend(q, k, v, mask)  # [B, H, S, E]
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `[B, S, H*E]`, keys and values `[B, S, G*E]`."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


SAVED = {
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
}
"""Operations whose results selective recomputation keeps: those that cost time."""


def _keep_products(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in SAVED else CheckpointPolicy.PREFER_RECOMPUTE


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: TransformerConfig, norm_eps: float) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.dim, norm_eps)
        self.attn = Attention(config)
        self.mlp_norm = RMSNorm(config.dim, norm_eps)
        self.mlp = FeedForward(config)
        self.activation_checkpointing = (
            ActivationCheckpointing.none
        )  # what the backward pass computes again instead of keeping it

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: AttentionMask | None) -> Tensor:
        if self.activation_checkpointing is ActivationCheckpointing.none or not torch.is_grad_enabled():
            return self._forward(x, rope, mask)
        options: dict[str, Any] = {"use_reentrant": False}
        if self.activation_checkpointing is ActivationCheckpointing.selective:
            options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)
        return checkpoint(self._forward, x, rope, mask, **options)

    def _forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: AttentionMask | None) -> Tensor:
        x = x + self.attn(self.attn_norm(x), rope, mask)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """A stack of blocks and the final norm; embeddings and heads belong to the model around it."""

    def __init__(self, config: TransformerConfig, rope: RopeConfig, norm_eps: float) -> None:
        super().__init__()
        if config.dim % config.heads or config.heads % config.kv_heads or (config.dim // config.heads) % 2:
            raise ValueError(
                f"transformer of width {config.dim} with {config.heads} heads and {config.kv_heads} kv heads: "
                "heads must divide the width into even parts, and kv_heads must divide heads"
            )
        self.layers = nn.ModuleList(Block(config, norm_eps) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, norm_eps)
        self.head_dim = config.dim // config.heads
        self.rope = rope
        self._cached_frequencies: Tensor | None = None

    def blocks(self) -> list[Block]:
        return [cast(Block, layer) for layer in self.layers]

    def forward(self, x: Tensor, positions: Tensor, mask: AttentionMask | None = None) -> Tensor:
        """Runs the stack.

        x:         [B, S, D]
        positions: [B, S] or [1, S] int, rotary positions (they restart with every packed document)
        mask:      who may look where; None = plain causal attention
        Returns the states after the final norm, [B, S, D].
        """
        # fp32 whatever the weights' dtype: rounding angles to bf16 is an error of up to 2e-3 at far positions.
        angles = positions[:, None, :, None].float() * self._frequencies(x.device)  # [B, 1, S, E/2]
        rope = (angles.cos(), angles.sin())
        for layer in self.layers:
            x = layer(x, rope, mask)
        return self.norm(x)

    def _frequencies(self, device: torch.device) -> Tensor:
        # Not a buffer: buffers follow `model.to(bfloat16)` and stay empty after meta initialization.
        if self._cached_frequencies is None or self._cached_frequencies.device != device:
            self._cached_frequencies = rope_frequencies(self.head_dim, self.rope).to(device)
        return self._cached_frequencies
