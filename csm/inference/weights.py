"""The model's weights laid out for decoding, and the arithmetic of its two stacks on cached keys and values.

The same numbers as csm/model in fewer and larger operations: one product for q, k and v, one for gate and up, one
rotation for all heads, and codes of the depth decoder read from a table that is projected already. The stacks do not
know how keys and values are kept: `attend` does (csm/inference/cache.py).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.config import CSMConfig, RopeConfig, TransformerConfig
from csm.inference.packing import pack, packed_product
from csm.model.csm import CSM
from csm.model.transformer import Block, Transformer, rope_frequencies
from csm.quantization.tensors import as_parameter, fuse_rows, is_quantized

Product = Callable[[Tensor, Tensor], Tensor]
"""`x [N, in]`, weight `[out, in]` -> `[N, out]`."""
Attend = Callable[[int, Tensor], Tensor]
"""Stores k and v of one layer and attends: rotated heads `[N, H+2G, E]` -> `[N, H*E]`. N are the slots of a step, or
positions of a prompt. k heads follow the q heads, v heads follow those; q is scaled already."""


class DecodingWeights:
    """The parts of a CSM that generation needs, as tensors: looking up parameters in modules would take a tenth of an
    eager step.

    share: q, k, v, gate and up of `model` become views of the fused matrices, so that nothing is held twice. Right for
    a model that is only generated from; a model in training, whose optimizer may hold its memory, is copied.
    Other parameters are those of `model` itself.
    """

    def __init__(self, model: CSM, share: bool) -> None:
        self.config = model.config
        self.backbone = DecodingStack(model.backbone, model.config.backbone, model.config, share)
        self.decoder = DecodingStack(model.decoder, model.config.decoder, model.config, share)
        self.text_embeddings = model.text_embeddings.weight.detach()  # [text vocabulary, D]
        self.audio_embeddings = model.audio_embeddings.weight.detach()  # [K*V, D]
        self.codebook0_head = model.codebook0_head.weight.detach()  # [V, D]
        self.projection = model.projection.weight.detach()  # [d, D]
        self.audio_head = model.audio_head.detach()  # [K-1, d, V]
        self.projected_embeddings = F.linear(self.audio_embeddings, self.projection)  # [K*V, d]

    @property
    def dtype(self) -> torch.dtype:
        return self.audio_embeddings.dtype

    @property
    def device(self) -> torch.device:
        return self.audio_embeddings.device

    def embed_frames(self, codes: Tensor) -> Tensor:
        """Backbone inputs `[B, D]` of frames whose first n codebooks are `codes [B, n]`: the others count as absent."""
        return F.embedding(codes + self._offsets(codes), self.audio_embeddings).sum(dim=1)

    def embed(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Backbone inputs `[S, D]` of `tokens, mask [S, K+1]`, as `CSM.embed`."""
        table = self.audio_embeddings
        rows, present = tokens[:, :-1] + self._offsets(tokens[:, :-1]), mask[:, :-1].to(table.dtype)
        audio = F.embedding_bag(rows, table, mode="sum", per_sample_weights=present)
        return audio + F.embedding(tokens[:, -1], self.text_embeddings) * mask[:, -1:].to(table.dtype)

    def _offsets(self, codes: Tensor) -> Tensor:
        return torch.arange(codes.shape[-1], device=codes.device) * self.config.audio_vocab_size


class DecodingStack:
    """A transformer stack whose keys and values are kept by the caller.

    product: of rows and a weight of the stack
    """

    product: Product = staticmethod(F.linear)

    def __init__(self, stack: Transformer, config: TransformerConfig, model: CSMConfig, share: bool) -> None:
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.dim // config.heads
        self.blocks = [DecodingBlock(block, self, share) for block in stack.blocks()]
        self.norm = stack.norm.weight.detach()
        self.eps = torch.full((1,), model.norm_eps, device=self.norm.device)
        self.rope: RopeConfig = model.rope
        self.frequencies = rope_frequencies(self.head_dim, model.rope).to(self.norm.device)

    def __call__(self, x: Tensor, rope: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """`x [N, D]`, rope from `rotations` -> states after the final norm `[N, D]`."""
        for number, block in enumerate(self.blocks):
            x = block(x, rope, number, attend, self.eps, self.product)
        return rms_norm(x, self.norm, self.eps)

    def packed(self) -> DecodingStack:
        """The same stack with packed weights of its own, see csm/inference/packing.py."""
        other = copy(self)
        other.blocks = [block.packed() for block in self.blocks]
        other.product = packed_product
        return other

    def rotations(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Factors `[..., H+2G, E]` at `positions [...]`: of the heads, and of the heads rolled by E/2.

        q: rotated and scaled by 1/sqrt(E); k: rotated; v: unchanged. In fp32, as in training: frequencies in
        bf16 would be an error of up to 2e-3 at far positions.
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


class DecodingBlock:
    """Pre-norm residual block with fused projections."""

    def __init__(self, block: Block, stack: DecodingStack, share: bool) -> None:
        attention, mlp = block.attn, block.mlp
        self.shape = (-1, stack.heads + 2 * stack.kv_heads, stack.head_dim)
        self.half = stack.head_dim // 2
        self.attn_norm, self.mlp_norm = block.attn_norm.weight.detach(), block.mlp_norm.weight.detach()
        self.qkv = _fused([attention.q_proj, attention.k_proj, attention.v_proj], share)  # [(H+2G)*E, D]
        self.o_proj = _weight(attention.o_proj)
        self.gate_up = _fused([mlp.gate_proj, mlp.up_proj], share)  # [2F, D]
        self.down_proj = _weight(mlp.down_proj)

    def __call__(
        self, x: Tensor, rope: tuple[Tensor, Tensor], layer: int, attend: Attend, eps: Tensor, product: Product
    ) -> Tensor:
        cos, sin = rope
        heads = product(rms_norm(x, self.attn_norm, eps), self.qkv).view(self.shape).float()  # [N, H+2G, E]
        heads = torch.addcmul(heads * cos, heads.roll(self.half, dims=-1), sin).to(x.dtype)
        x = x + product(attend(layer, heads), self.o_proj)
        gate, up = product(rms_norm(x, self.mlp_norm, eps), self.gate_up).chunk(2, dim=-1)
        return x + product(F.silu(gate) * up, self.down_proj)

    def packed(self) -> DecodingBlock:
        other = copy(self)
        other.qkv, other.o_proj, other.gate_up, other.down_proj = map(
            pack, (self.qkv, self.o_proj, self.gate_up, self.down_proj)
        )
        return other


def rms_norm(x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
    """Root-mean-square normalization in fp32, as in training; eps: fp32 [1]. Half the time of `F.rms_norm` on CPUs."""
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = torch.addcmul(eps, length, length, value=1 / x.shape[-1]).rsqrt_()  # 1 / sqrt(mean square + eps)
    return (wide * scale).mul_(weight).to(x.dtype)


def _in_long_rows(weight: Tensor) -> Tensor:
    """On CPUs, the same matrix `[out, in]` with the longer of its dimensions contiguous in memory.

    A product with one row reads the matrix once, at the speed of memory if it reads long rows: a matrix of 2048 x 256
    that is not in the nearest cache takes 60 us in place of 276.
    """
    outputs, inputs = weight.shape
    return weight.T.contiguous().T if weight.device.type == "cpu" and outputs > inputs else weight


def _weight(linear: nn.Linear) -> Tensor:
    return linear.weight if is_quantized(linear.weight) else linear.weight.detach()


def _fused(linears: list[nn.Linear], share: bool) -> Tensor:
    """Weight of one linear layer whose outputs are those of `linears`, one after another."""
    weight, parts = fuse_rows([linear.weight.detach() for linear in linears])
    if not is_quantized(weight):
        weight = _in_long_rows(weight)
        parts = list(weight.split([linear.out_features for linear in linears]))
    if share:
        for linear, part in zip(linears, parts, strict=True):
            linear.weight = as_parameter(part, linear.weight.requires_grad)
    return as_parameter(weight)
