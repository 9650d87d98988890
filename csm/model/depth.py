"""The depth decoder's share of the loss, over any number of frames in bounded memory.

The decoder turns every frame into a sequence of K positions, so its activations are what limits memory where many
frames are used (all of them, in validation or with decoder_frame_ratio=1). Frames do not depend on one another, so
they are taken in chunks; in training each chunk is differentiated as soon as it was computed, while its activations
are at hand: they never exist for more than one chunk, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DecoderLogits = Callable[[Tensor, Tensor], Tensor]
"""(states [m, D], embeddings of c_0..c_{K-2} [m, K-1, D]) -> logits of c_1..c_{K-1}, [K-1, m, V]."""


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
    logits_of: DecoderLogits,
    parameters: list[Tensor],
    states: Tensor,
    embeddings: Tensor,
    codes: Tensor,
    weights: Tensor,
    chunk: int | None,
) -> DecoderSums:
    """Runs the depth decoder over M frames.

    logits_of:  the decoder, a function of its two arguments and of `parameters`
    states:     [M, D]; embeddings: [M, K-1, D]; codes: [M, K]; weights: [M], 0 = frame that does not count
    chunk:      frames per pass, at most. None: all at once, differentiated by autograd as anything else, which is what
                strategies that exchange parameters during the backward pass (FSDP, DeepSpeed) need
    """
    frames = codes.shape[0]
    if chunk is None:
        return _sums(logits_of, states, embeddings, codes, weights)
    chunk = min(chunk, frames)
    if padding := -frames % chunk:  # whole chunks only: one shape, so nothing is compiled twice
        states, embeddings = F.pad(states, (0, 0, 0, padding)), F.pad(embeddings, (0, 0, 0, 0, 0, padding))
        codes, weights = F.pad(codes, (0, 0, 0, padding)), F.pad(weights, (0, padding))
    trained = [parameter for parameter in parameters if parameter.requires_grad and torch.is_grad_enabled()]
    outputs = _ChunkedSums.apply(logits_of, chunk, states, embeddings, codes, weights, *trained)
    total, losses, correct, all_right = outputs
    return DecoderSums(total, losses, correct, all_right[:frames])


def _sums(logits_of: DecoderLogits, states: Tensor, embeddings: Tensor, codes: Tensor, weights: Tensor) -> DecoderSums:
    logits = logits_of(states, embeddings)  # [K-1, M, V]
    expected = codes[:, 1:].T  # [K-1, M]
    nats = F.cross_entropy(logits.flatten(0, 1).float(), expected.flatten(), reduction="none").view_as(expected)
    losses = (nats * weights).sum(dim=1)  # [K-1]
    with torch.no_grad():
        right = logits.argmax(-1) == expected
        correct = (right * weights).sum(dim=1)
    return DecoderSums(losses.mean(), losses.detach(), correct, right.all(dim=0))


class _ChunkedSums(torch.autograd.Function):
    """`_sums` chunk by chunk. The gradient of `total` is computed in forward and only scaled in backward, which is
    exact because the objective is linear in `total`. Autograd sees the decoder's parameters as inputs of this
    function, so hooks on their gradients (DDP's) run once, in the backward pass, as for any other parameter."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_of: DecoderLogits,
        chunk: int,
        states: Tensor,
        embeddings: Tensor,
        codes: Tensor,
        weights: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs = (states, embeddings)
        wanted = ctx.needs_input_grad[2:4]
        differentiate = any(wanted) or bool(parameters)
        gradients = [torch.empty_like(tensor) if want else None for tensor, want in zip(inputs, wanted, strict=True)]
        parameter_gradients: list[Tensor] = []
        sums: list[DecoderSums] = []
        for start in range(0, codes.shape[0], chunk):
            part = slice(start, start + chunk)
            leaves = [tensor[part].detach().requires_grad_(want) for tensor, want in zip(inputs, wanted, strict=True)]
            with torch.set_grad_enabled(differentiate):
                result = _sums(logits_of, *leaves, codes[part], weights[part])
            sums.append(result)
            if not differentiate:
                continue
            sources = [leaf for leaf in leaves if leaf.requires_grad]
            # As any backward pass: outside of autocast.
            with torch.autocast(states.device.type, enabled=False):
                found = torch.autograd.grad(result.total, (*sources, *parameters))
            result.total = result.total.detach()
            rest = iter(found)
            for gradient in gradients:
                if gradient is not None:
                    gradient[part] = next(rest)
            if parameter_gradients:
                torch._foreach_add_(parameter_gradients, list(rest))
            else:
                parameter_gradients = [gradient.contiguous() for gradient in rest]
        ctx.gradients, ctx.parameter_gradients = gradients, parameter_gradients
        total, losses, correct = (
            torch.stack([getattr(result, name) for result in sums]).sum(0) for name in ("total", "losses", "correct")
        )
        all_right = torch.cat([result.all_right for result in sums])
        ctx.mark_non_differentiable(losses, correct, all_right)
        return total, losses, correct, all_right

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients, parameter_gradients = ctx.gradients, ctx.parameter_gradients
        ctx.gradients = ctx.parameter_gradients = None  # handed on: they may be freed as soon as they are used
        present = [gradient for gradient in (*gradients, *parameter_gradients) if gradient is not None]
        torch._foreach_mul_(present, scale)
        return (None, None, *gradients, None, None, *parameter_gradients)
