"""The depth decoder's share of the loss, over any number of frames in bounded memory.

The decoder turns every frame into a sequence of K positions, so its activations are what limits memory where many
frames are used (all of them, in validation or with decoder_frame_ratio=1). Frames do not depend on one another, so
they are taken in chunks; in training each chunk is differentiated as soon as it was computed, while its activations
are at hand: they never exist for more than one chunk, and nothing is computed twice.

The head over codebooks is the decoder's largest matrix by far (31 x 1024 x 2051 of the 1B model), and the gradient of
each chunk is added to that of the ones before in place: there is one tensor of that size, whatever the chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DecoderStates = Callable[[Tensor, Tensor], Tensor]
"""(backbone states [m, D], embeddings of c_0..c_{K-2} [m, K-1, D]) -> states that predict c_1..c_{K-1}, [K-1, m, d]."""


@dataclass
class DecoderSums:
    """total: [] fp32, weighted sum over frames of the mean cross entropy over codebooks 1..K-1; has the gradient
    losses, correct: [K-1] fp32, weighted sums of each codebook's cross entropy and hits, without gradient
    all_right: [M] bool, whether codes 1..K-1 of a frame were all the most likely ones
    """

    total: Tensor
    losses: Tensor
    correct: Tensor
    all_right: Tensor


def decoder_sums(
    states_of: DecoderStates,
    parameters: list[Tensor],
    head: Tensor,
    states: Tensor,
    embeddings: Tensor,
    codes: Tensor,
    weights: Tensor,
    chunk: int | None,
) -> DecoderSums:
    """Runs the depth decoder over M frames.

    states_of:  the decoder, a function of its two arguments and of `parameters`
    head:       [K-1, d, V], from its states to logits
    states:     [M, D]; embeddings: [M, K-1, D]; codes: [M, K]; weights: [M], 0 = frame that does not count
    chunk:      frames per pass, at most. None: all at once, differentiated by autograd as anything else, which is what
                strategies that exchange parameters during the backward pass (FSDP, DeepSpeed) need
    """
    frames = codes.shape[0]
    if chunk is None:
        return _sums(torch.bmm(states_of(states, embeddings), head), codes, weights)
    chunk = min(chunk, frames)
    if padding := -frames % chunk:  # whole chunks only: one shape, so nothing is compiled twice
        states, embeddings = F.pad(states, (0, 0, 0, padding)), F.pad(embeddings, (0, 0, 0, 0, 0, padding))
        codes, weights = F.pad(codes, (0, 0, 0, padding)), F.pad(weights, (0, padding))
    if torch.is_grad_enabled():
        trained = [parameter for parameter in parameters if parameter.requires_grad]
    else:
        trained, head = [], head.detach()
    outputs = _ChunkedSums.apply(states_of, chunk, head, states, embeddings, codes, weights, *trained)
    total, losses, correct, all_right = outputs
    return DecoderSums(total, losses, correct, all_right[:frames])


def _sums(logits: Tensor, codes: Tensor, weights: Tensor) -> DecoderSums:
    """logits: [K-1, M, V]"""
    expected = codes[:, 1:].T  # [K-1, M]
    nats = F.cross_entropy(logits.flatten(0, 1).float(), expected.flatten(), reduction="none").view_as(expected)
    losses = (nats * weights).sum(dim=1)  # [K-1]
    with torch.no_grad():
        right = logits.argmax(-1) == expected
        correct = (right * weights).sum(dim=1)
    return DecoderSums(losses.mean(), losses.detach(), correct, right.all(dim=0))


class _ChunkedSums(torch.autograd.Function):
    """The sums chunk by chunk. The gradient of `total` is computed in forward and only scaled in backward, which is
    exact because the objective is linear in `total`. Autograd sees the decoder's parameters as inputs of this
    function, so hooks on their gradients (DDP's) run once, in the backward pass, as for any other parameter."""

    @staticmethod
    def forward(
        ctx: Any,
        states_of: DecoderStates,
        chunk: int,
        head: Tensor,
        states: Tensor,
        embeddings: Tensor,
        codes: Tensor,
        weights: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs = (states, embeddings)
        wanted = ctx.needs_input_grad[3:5]
        trains_head = ctx.needs_input_grad[2]
        head_gradient = torch.empty_like(head) if trains_head else None  # before all else, for a CPU's heap
        differentiate = any(wanted) or trains_head or bool(parameters)
        gradients = [torch.empty_like(tensor) if want else None for tensor, want in zip(inputs, wanted, strict=True)]
        parameter_gradients: list[Tensor] = []
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.dtype
        cast_head = head.to(dtype)  # once for all chunks
        sums: list[DecoderSums] = []
        for start in range(0, codes.shape[0], chunk):
            part = slice(start, start + chunk)
            leaves = [tensor[part].detach().requires_grad_(want) for tensor, want in zip(inputs, wanted, strict=True)]
            with torch.set_grad_enabled(differentiate):
                decoded = states_of(*leaves)  # [K-1, m, d]
            with torch.autocast(device, enabled=False):  # as any backward pass
                values = decoded.detach().to(dtype)
                logits = torch.bmm(values, cast_head).float()  # [K-1, m, V]
                result, of_logits = _sums_and_gradient(logits, codes[part], weights[part])
                sums.append(result)
                of_logits = of_logits.to(dtype)
                if head_gradient is not None:
                    _add_product(values.transpose(1, 2), of_logits, head_gradient, first=start == 0)
                sources = [leaf for leaf in (*leaves, *parameters) if leaf.requires_grad]
                if not sources:
                    continue
                of_decoded = torch.bmm(of_logits, cast_head.transpose(1, 2)).to(decoded.dtype)  # [K-1, m, d]
                del logits, of_logits
                found = torch.autograd.grad(decoded, sources, of_decoded)
            rest = iter(found)
            for gradient in gradients:
                if gradient is not None:
                    gradient[part] = next(rest)
            if parameter_gradients:
                torch._foreach_add_(parameter_gradients, list(rest))
            else:
                parameter_gradients = [gradient.contiguous() for gradient in rest]
            del decoded, found, rest
        ctx.gradients = [head_gradient, *gradients], parameter_gradients
        total, losses, correct = (
            torch.stack([getattr(result, name) for result in sums]).sum(0) for name in ("total", "losses", "correct")
        )
        all_right = torch.cat([result.all_right for result in sums])
        ctx.mark_non_differentiable(losses, correct, all_right)
        return total, losses, correct, all_right

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients, parameter_gradients = ctx.gradients
        ctx.gradients = None  # handed on: they may be freed as soon as they are used
        present = [gradient for gradient in (*gradients, *parameter_gradients) if gradient is not None]
        torch._foreach_mul_(present, scale)
        return (None, None, *gradients, None, None, *parameter_gradients)


def _sums_and_gradient(logits: Tensor, codes: Tensor, weights: Tensor) -> tuple[DecoderSums, Tensor]:
    """`_sums` of fp32 logits, and the gradient of `total` with respect to them, which takes their place."""
    expected = codes[:, 1:].T[..., None]  # [K-1, M, 1]
    largest, likeliest = logits.max(-1, keepdim=True)
    right = likeliest == expected
    logits -= largest
    of_expected = logits.gather(-1, expected)
    normalizer = logits.exp_().sum(-1, keepdim=True)
    nats = normalizer.log() - of_expected  # [K-1, M, 1]
    losses = (nats[..., 0] * weights).sum(dim=1)  # [K-1]
    correct = (right[..., 0] * weights).sum(dim=1)
    share = (weights / len(losses))[:, None]  # of each cross entropy in `total`, [M, 1]
    gradient = logits.mul_(share / normalizer)  # softmax, less the one of the expected code:
    gradient.scatter_add_(-1, expected, (-share).expand_as(expected))
    return DecoderSums(losses.mean(), losses, correct, right[..., 0].all(dim=0)), gradient


def _add_product(a: Tensor, b: Tensor, total: Tensor, first: bool) -> None:
    """Adds a x b to `total`, or writes it there the first time."""
    if a.dtype == total.dtype:
        total.baddbmm_(a, b, beta=0 if first else 1)
    elif first:
        total.copy_(torch.bmm(a, b))
    else:
        total += torch.bmm(a, b)
