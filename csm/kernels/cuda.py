"""CUDA versions of parts of the model, for what the plain modules waste there: memory, launches, unaligned shapes.

`install(model)` replaces the plain modules of csm/model in place; names stay, values and gradients stay the same up to
rounding (tests/kernels/test_cuda.py). No GPU was at hand: the gains are expected ones, of a step of csm_1b (8 x 2048
positions, the decoder at 1/16, bf16, compiled, about 313 ms on an H100), from counting operations and bytes. What a
device that computes nothing has recorded is in docs/benchmarks.md.

    attention     flex attention, compiled by itself where blocks are not, in place of fp32 matrix products that hold
                  all scores: 8 rows fit where 4 did not, several times the speed
    projections   q, k, v and gate, up as one product each, in compiled blocks under autocast: 5 ms
    heads         the bf16 copies padded to a multiple of 64 ids, which the fast kernels need: 5 ms
    embeddings    one gradient of the audio table, without atomic additions, in place of two and their sum: 1 ms
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.attention.flex_attention import BlockMask, FlexKernelOptions, flex_attention
from torch.utils._triton import has_triton

from csm.kernels.frame_embeddings import FrameEmbeddings, embed_frames
from csm.model.csm import CSM
from csm.model.speech_lm import SpeechLM
from csm.model.transformer import Attention, AttentionMask, FeedForward

HEAD_MULTIPLE = 64
"""Ids that a head is padded to a multiple of: rows of bf16 logits are then multiples of 128 bytes."""
_SMALLEST_DOT = 16  # of Triton, in every dimension
_WIDE, _SHARED_MEMORY = 64, 2**17  # flex attention's fp32 blocks of wider heads need about that many bytes


def install(model: SpeechLM) -> None:
    """Replaces the plain parts of `model` by the versions below, in place. Call it before sharding."""
    for module in model.modules():
        if type(module) in _REPLACEMENTS:
            module.__class__ = _REPLACEMENTS[type(module)]
    model.codebook0_head.__class__ = PaddedHead


# ------------------------------------------------------------------------------------------------------- attention


@cache
def flex_limit(head_width: int, bf16: bool) -> str | None:
    """Why flex attention cannot be used on this process's GPU; None if it can."""
    if head_width < _SMALLEST_DOT:
        return f"flex attention needs heads at least {_SMALLEST_DOT} wide"
    if not has_triton():
        return "flex attention needs Triton and a GPU of compute capability 7.0 or later"
    if not bf16 and head_width > _WIDE:
        properties: Any = torch.cuda.get_device_properties(torch.cuda.current_device())  # of which stubs know a part
        memory = properties.shared_memory_per_block_optin
        if memory < _SHARED_MEMORY:
            return f"flex attention in fp32 needs heads at most {_WIDE} wide on this GPU ({memory // 1024} KB a block)"
    return None


def cuda_attend(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask | None) -> Tensor:
    """`attend`, never by torch's math kernels."""
    if isinstance(mask, BlockMask):
        flex = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
        # Every position sees itself. Scaling the queries instead of the scores is exact by a power of two.
        options: FlexKernelOptions = {"ROWS_GUARANTEED_SAFE": True, "PRESCALE_QK": q.shape[-1] in (16, 64, 256)}
        return cast(Tensor, flex(q, k, v, block_mask=mask, enable_gqa=True, kernel_options=options))
    if mask is not None or q.dtype == torch.float32:
        # Flash attention takes neither, and the kernel that does takes no groups.
        k, v = (heads.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for heads in (k, v))
    causal = mask is None and q.shape[2] > 1
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)


@cache
def _compiled_flex_attention() -> Any:
    return torch.compile(flex_attention, fullgraph=True, dynamic=False)


# -------------------------------------------------------------------------------- projections on the same input


def project(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """Outputs of linear layers on the same input: one product with their weights side by side where autocast copies
    weights to bf16 anyway and the compiler fuses copying and joining."""
    joined = torch.compiler.is_compiling() and torch.is_autocast_enabled(x.device.type)
    # Layers with an adapter, or split over ranks, have to be called as modules.
    if joined and all(type(layer) is nn.Linear and not isinstance(layer.weight, DTensor) for layer in layers):
        linear = cast(tuple[nn.Linear, ...], layers)
        outputs = F.linear(x, torch.cat([layer.weight for layer in linear]))
        return outputs.split([layer.out_features for layer in linear], dim=-1)
    return tuple(layer(x) for layer in layers)


class CudaAttention(Attention):
    attend = staticmethod(cuda_attend)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = project(x, self.q_proj, self.k_proj, self.v_proj)
        return q, k, v.contiguous()  # attention keeps it, and a part of the joined output would keep the whole


class CudaFeedForward(FeedForward):
    def forward(self, x: Tensor) -> Tensor:
        gate, up = project(x, self.gate_proj, self.up_proj)
        return cast(Tensor, self.down_proj(F.silu(gate) * up))


# ------------------------------------------------------------------------------------------------------------ heads


def padded_copy(weight: Tensor, dim: int) -> Tensor:
    """bf16 copy of a head, filled up with zeros to a multiple of HEAD_MULTIPLE along `dim`."""
    copy = weight.to(torch.bfloat16)
    missing = -weight.shape[dim] % HEAD_MULTIPLE
    return F.pad(copy, [0, 0] * (weight.ndim - 1 - dim) + [0, missing]) if missing else copy


def computes_in_bf16(weight: Tensor) -> bool:
    """Whether products with that weight are bf16: under autocast, or because it is."""
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type) == torch.bfloat16
    return weight.dtype == torch.bfloat16


class PaddedHead(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if not computes_in_bf16(self.weight):
            return super().forward(x)
        return F.linear(x, padded_copy(self.weight, 0))[..., : self.out_features]


class CudaCSM(CSM):
    def audio_logits(self, hidden: Tensor) -> Tensor:
        if not computes_in_bf16(self.audio_head):
            return super().audio_logits(hidden)
        return torch.bmm(hidden, padded_copy(self.audio_head, 2))[..., : self.audio_head.shape[2]]

    def embed_rows(self, tokens: Tensor, mask: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        return embed_frames(self, tokens, mask, codes, SortedFrameEmbeddings)


# ------------------------------------------------------------------------------------------------------- embeddings


class SortedFrameEmbeddings(FrameEmbeddings):
    """The backward pass of both look-ups together as that of one bag of embeddings, which sorts the rows instead of
    adding with atomics, sums in fp32, and waits for nothing."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, summed: Tensor, single: Tensor) -> tuple[Tensor | None, ...]:
        rows, present, single_rows = ctx.saved_tensors
        device, (bags, columns), singles = rows.device, rows.shape, single_rows.numel()
        gradient = torch.cat((summed, single.flatten(0, 1)))  # [N + M*n, D]: those of the sums, and of single rows
        bag_of = torch.cat(
            (
                torch.arange(bags, device=device)[:, None].expand(bags, columns).flatten(),
                torch.arange(bags, bags + singles, device=device),
            )
        )
        sizes = torch.zeros_like(bag_of[:1])  # read for means only, and so is the largest row of a bag
        table = torch.ops.aten._embedding_bag_dense_backward(
            gradient,
            torch.cat((rows.flatten(), single_rows.flatten())),
            bag_of,
            sizes,
            sizes,
            ctx.table_shape[0],
            False,
            _SUM,
            torch.cat((present.flatten(), present.new_ones(singles))),
        )
        return table, None, None, None


_SUM = 0  # the mode of embedding_bag

_REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    FeedForward: CudaFeedForward,
    Attention: CudaAttention,
    CSM: CudaCSM,
}
