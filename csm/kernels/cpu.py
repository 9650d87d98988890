"""Fused CPU versions of the transformer's parts and of the frame embeddings, with hand-written backward passes.

`install(model)` replaces the plain modules of csm/model in place; names, values and gradients stay the same up to
rounding (tests/kernels/test_cpu.py). Compiled models do without: the compiler fuses the same operations.

Measured gains (two cores of an AMD EPYC, fp32 unless said otherwise, 82M parameters; more in docs/benchmarks.md).
`python benchmarks/kernels.py` measures them again, one by one.

    RMSNorm           2.3 - 2.8 -> 0.55 - 0.65 ms for a call and its backward pass; 0.06 GiB less a step
    rotary positions  0.1 of 1.4 s a step with the decoder at 1/16, 0.3 of 5.9 s at 1/1
    SwiGLU            the memory that trainer.activation_checkpointing=selective saves, without its 0.2 s a step
    attention         bf16 sequences of up to 64 positions: 3 - 5 times as fast to differentiate
    embeddings        2.54 -> 2.37 GiB, measured together with a smaller chunk of the decoder; not yet alone
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from csm.kernels.frame_embeddings import FrameEmbeddings, embed_frames
from csm.model.csm import CSM
from csm.model.speech_lm import SpeechLM
from csm.model.transformer import Attention, AttentionMask, FeedForward, RMSNorm, attend


def install(model: SpeechLM) -> None:
    """Replaces the plain parts of `model` by the fused ones below, in place. Call it before sharding."""
    for module in model.modules():
        if type(module) in _REPLACEMENTS:
            module.__class__ = _REPLACEMENTS[type(module)]


class Rope(torch.autograd.Function):
    """Rotary positions in half the memory traffic forward and a third of it backward: the backward pass of a rotation
    is the inverse rotation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    result = torch.empty_like(x)
    (first, second), (to_first, to_second) = x.chunk(2, dim=-1), result.chunk(2, dim=-1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)
    return result


class RMSNormFunction(torch.autograd.Function):
    """RMSNorm in half the memory traffic: on CPUs F.rms_norm is a chain of element-wise operations, differentiated one
    by one, that keeps the normalized input (torch 2.9)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = (length.square() / x.shape[-1] + eps).rsqrt()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normalized = x * scale
        product = gradient * normalized
        along = (product @ weight)[..., None] / x.shape[-1]  # the part of the gradient that only changes x's length
        inner = (gradient * weight).addcmul_(normalized, along, value=-1).mul_(scale)
        return inner, product.flatten(0, -2).sum(0), None


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up @ weight.T that recomputes silu(gate) and the product, half of what a block would keep."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return F.linear(F.silu(gate).mul_(up), weight)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        silu = F.silu(gate)
        d_product = gradient @ weight  # [..., ffn_dim]
        d_weight = None
        if ctx.needs_input_grad[2]:
            d_weight = gradient.flatten(0, -2).T @ (silu * up).flatten(0, -2)
        d_up = silu.mul_(d_product)
        d_gate = torch.ops.aten.silu_backward(d_product.mul_(up), gate)
        return d_gate, d_up, d_weight


class CpuRMSNorm(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return RMSNormFunction.apply(x.float(), self.weight.float(), self.eps).to(x.dtype)


class CpuFeedForward(FeedForward):
    def forward(self, x: Tensor) -> Tensor:
        # A projection with an adapter, or one that is split over ranks, has to be called as a module.
        if type(self.down_proj) is not nn.Linear or isinstance(self.down_proj.weight, DTensor):
            return super().forward(x)
        return SwiGLU.apply(self.gate_proj(x), self.up_proj(x), self.down_proj.weight)


def cpu_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return Rope.apply(x.float(), cos, sin).to(x.dtype)


def cpu_attend(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask | None) -> Tensor:
    """Plain matrix products for short bf16 sequences, which is what the depth decoder consists of: the CPU's fused
    attention takes 3-5 times as long to differentiate there (torch 2.9)."""
    short = q.shape[2] <= 64 and torch.is_autocast_enabled("cpu")
    with sdpa_kernel(SDPBackend.MATH) if short else nullcontext():
        return attend(q, k, v, mask)


class CpuAttention(Attention):
    rotate = staticmethod(cpu_rope)
    attend = staticmethod(cpu_attend)


class CpuCSM(CSM):
    def embed_rows(self, tokens: Tensor, mask: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        return embed_frames(self, tokens, mask, codes, FrameEmbeddings)


_REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    RMSNorm: CpuRMSNorm,
    FeedForward: CpuFeedForward,
    Attention: CpuAttention,
    CSM: CpuCSM,
}
