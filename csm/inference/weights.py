"""The model's weights laid out for decoding, and the arithmetic of its two stacks on cached keys and values.

The same numbers as csm/model in fewer and larger operations: one product for q, k and v, one for gate and up, one
rotation for all heads, and codes of the depth decoder read from a table that is projected already. The stacks do not
know how keys and values are kept: `attend` does (csm/inference/cache.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.config import CSMConfig, RopeConfig, TransformerConfig
from csm.model.csm import CSM
from csm.model.transformer import Block, Transformer, rope_frequencies
from csm.quantization.tensors import as_parameter, fuse_rows, is_quantized

Attend = Callable[[int, Tensor], Tensor]
"""Stores k and v of one layer and attends: rotated heads `[N, H+2G, E]` -> `[N, H*E]`. N are the slots of a step, or
positions of a prompt. k heads follow the q heads, v heads follow those; q is scaled already."""


class DecodingWeights(nn.Module):
    """The parts of a CSM that generation needs.

    share: q, k, v, gate and up of `model` become views of the fused matrices, so that nothing is held twice. Right for
    a model that is only generated from; a model in training, whose optimizer may hold its memory, is copied.
    Other parameters are those of `model` itself.
    """

    def __init__(self, model: CSM, share: bool) -> None:
        super().__init__()
        self.config = model.config
        self.backbone = DecodingStack(model.backbone, model.config.backbone, model.config, share)
        self.decoder = DecodingStack(model.decoder, model.config.decoder, model.config, share)
        self.text_embeddings = model.text_embeddings
        self.audio_embeddings = model.audio_embeddings
        self.codebook0_head = model.codebook0_head
        self.projection = model.projection
        self.audio_head = model.audio_head  # [K-1, d, V]
        table = F.linear(model.audio_embeddings.weight.detach(), model.projection.weight.detach())
        self.projected_embeddings = nn.Parameter(table, requires_grad=False)  # [K*V, d]

    @property
    def dtype(self) -> torch.dtype:
        return self.audio_embeddings.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.audio_embeddings.weight.device

    def embed_frames(self, codes: Tensor) -> Tensor:
        """Backbone inputs `[B, D]` of frames whose first n codebooks are `codes [B, n]`: the others count as absent."""
        return self.audio_embeddings(codes + self._offsets(codes)).sum(dim=1)

    def embed(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Backbone inputs `[S, D]` of `tokens, mask [S, K+1]`, as `CSM.embed`."""
        table = self.audio_embeddings.weight
        rows, present = tokens[:, :-1] + self._offsets(tokens[:, :-1]), mask[:, :-1].to(table.dtype)
        audio = F.embedding_bag(rows, table, mode="sum", per_sample_weights=present)
        return audio + self.text_embeddings(tokens[:, -1]) * mask[:, -1:].to(table.dtype)

    def _offsets(self, codes: Tensor) -> Tensor:
        return torch.arange(codes.shape[-1], device=codes.device) * self.config.audio_vocab_size


class DecodingStack(nn.Module):
    """A transformer stack whose keys and values are kept by the caller."""

    frequencies: Tensor

    def __init__(self, stack: Transformer, config: TransformerConfig, model: CSMConfig, share: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.dim // config.heads
        self.blocks = nn.ModuleList(DecodingBlock(block, self, model.norm_eps, share) for block in stack.blocks())
        self.norm, self.eps = stack.norm.weight, model.norm_eps
        self.rope: RopeConfig = model.rope
        frequencies = rope_frequencies(self.head_dim, model.rope)
        self.register_buffer("frequencies", frequencies.to(self.norm.device), persistent=False)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """`x [N, D]`, rope from `rotations` -> states after the final norm `[N, D]`."""
        for number, block in enumerate(self.blocks):
            x = block(x, rope, number, attend)
        return rms_norm(x, self.norm, self.eps)

    def rotations(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Factors `[..., H+2G, E]` at `positions [...]`: of the heads, and of the heads rolled by E/2.

        q: rotated and scaled by 1/sqrt(E); k: rotated; v: unchanged. In fp32, as in training. A bf16 buffer of
        frequencies would be an error of up to 2e-3 at far positions, so `to` is not to be used on these weights.
        """
        angles = positions[..., None, None].float() * self.frequencies  # [..., 1, E/2]
        cos, sin = angles.cos(), angles.sin()
        cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)  # [..., 1, E]
        scale = self.head_dim**-0.5
        repeats = [-1] * (cos.ndim - 2)
        q, k = (*repeats, self.heads, -1), (*repeats, self.kv_heads, -1)
        ones, zeros = torch.ones_like(cos), torch.zeros_like(sin)
        return (
            torch.cat(((scale * cos).expand(q), cos.expand(k), ones.expand(k)), dim=-2),
            torch.cat(((scale * sin).expand(q), sin.expand(k), zeros.expand(k)), dim=-2),
        )


class DecodingBlock(nn.Module):
    """Pre-norm residual block with fused projections."""

    def __init__(self, block: Block, stack: DecodingStack, eps: float, share: bool) -> None:
        super().__init__()
        attention, mlp = block.attn, block.mlp
        self.eps, self.shape = eps, (stack.heads + 2 * stack.kv_heads, stack.head_dim)
        self.roll = stack.head_dim // 2
        self.attn_norm, self.mlp_norm = block.attn_norm.weight, block.mlp_norm.weight
        self.qkv = _fused([attention.q_proj, attention.k_proj, attention.v_proj], share)
        self.o_proj = attention.o_proj
        self.gate_up = _fused([mlp.gate_proj, mlp.up_proj], share)
        self.down_proj = mlp.down_proj

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], layer: int, attend: Attend) -> Tensor:
        cos, sin = rope
        heads = self.qkv(rms_norm(x, self.attn_norm, self.eps)).view(-1, *self.shape)  # [N, H+2G, E]
        turned = heads.float()
        turned = torch.addcmul(turned * cos, turned.roll(self.roll, dims=-1), sin).to(x.dtype)
        x = x + self.o_proj(attend(layer, turned))
        gate, up = self.gate_up(rms_norm(x, self.mlp_norm, self.eps)).chunk(2, dim=-1)
        return x + self.down_proj(F.silu(gate) * up)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalization in fp32, as in training: in fewer operations than `F.rms_norm` has on CPUs."""
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    mean_square = length * length / x.shape[-1]
    return (wide * (mean_square + eps).rsqrt() * weight).to(x.dtype)


def _in_long_rows(weight: Tensor) -> Tensor:
    """On CPUs, the same matrix `[out, in]` with the longer of its dimensions contiguous in memory.

    A product with one row reads the matrix once, at the speed of memory if it reads long rows: a matrix of 2048 x 256
    that is not in the nearest cache takes 60 us in place of 276.
    """
    outputs, inputs = weight.shape
    return weight.T.contiguous().T if weight.device.type == "cpu" and outputs > inputs else weight


def _fused(linears: list[nn.Linear], share: bool) -> nn.Linear:
    """One linear layer whose outputs are those of `linears`, one after another."""
    weight, parts = fuse_rows([linear.weight.detach() for linear in linears])
    if not is_quantized(weight):
        weight = _in_long_rows(weight)
        parts = list(weight.split([linear.out_features for linear in linears]))
    fused = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    fused.weight = as_parameter(weight)
    if share:
        for linear, part in zip(linears, parts, strict=True):
            linear.weight = as_parameter(part, linear.weight.requires_grad)
    return fused
