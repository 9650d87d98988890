"""The backward pass of the losses, through the depth decoder on a chunk of frames at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from csm.config import LossConfig
from csm.model.csm import CSM
from csm.model.loss import DecoderFrames, DecoderSums, LossSums, frame_chunks, join, join_chunks


class PassEngine(Protocol):
    """What a strategy does in the passes of a step (csm/parallel/strategies.py)."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`CSM.forward`."""
        ...

    def local_gradients(self) -> AbstractContextManager[None]:
        """Around all passes of a step but the last: gradients stay on their rank."""
        ...

    def backward(self, loss: Tensor) -> None: ...


class LocalEngine:
    """The engine of a bare model in one process, for measurements and tests of `backward_in_chunks`."""

    def __init__(self, model: CSM) -> None:
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def local_gradients(self) -> nullcontext[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()


def backward_in_chunks(
    engine: PassEngine,
    inputs: dict[str, Any],
    config: LossConfig,
    total_frames: float | Tensor,
    sum_over_ranks: bool = True,
    chunk_size: int | None = None,
) -> LossSums:
    """Adds the gradients of `CSM.losses(**inputs) / total_frames`, the depth decoder taking a chunk of frames at a time:
    `chunk_size` of them, or `config.decoder_chunk` but no more than there are. Returns the sums, detached.

    The decoder turns every frame into a sequence of K positions, so its activations are what limits memory where many
    frames are used. Frames do not depend on one another: each chunk is differentiated as soon as it is computed, with
    respect to the decoder's weights and the chunk's own inputs, which are cut off from the backbone. The last chunk's
    backward pass goes on through the backbone, taking the gradients of the earlier chunks' inputs with it. So every
    parameter takes part in that pass, which is the one whose gradients DDP and FSDP sum over ranks.
    """

    def share(c0: Tensor | float, decoder: Tensor) -> Tensor:
        return (config.c0_weight * c0 + config.decoder_weight * decoder) / total_frames

    with engine.local_gradients():
        backbone, frames = engine(**inputs, method="backbone_losses")
        num_frames = len(frames.weights)
        *earlier, last = frame_chunks(frames, chunk_size or min(config.decoder_chunk, num_frames))
        sums, gradients = _differentiate_apart(engine, earlier, share)
    with nullcontext() if sum_over_ranks else engine.local_gradients():
        part = engine(last, method="decoder_losses")
        sums.append(_without_graph(part))
        loss = share(backbone.c0, part.decoder)
        for tensor, gradient in gradients:
            loss = _WithGradient.apply(loss, tensor, gradient)
        del frames, earlier, last, gradients  # embeddings of all chunks, which the graph does not need
        engine.backward(loss)
    return join(backbone, join_chunks(sums, num_frames))


def _differentiate_apart(
    engine: PassEngine, chunks: list[DecoderFrames], share: Callable[[float, Tensor], Tensor]
) -> tuple[list[DecoderSums], list[tuple[Tensor, Tensor]]]:
    """The sums of each chunk, and the inputs of all chunks with their gradients, for `_WithGradient`."""
    sums: list[DecoderSums] = []
    gradients: list[tuple[Tensor, Tensor]] = []
    for chunk in chunks:
        inputs = (chunk.states, chunk.embeddings)
        states, embeddings = leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs]
        part: DecoderSums = engine(chunk._replace(states=states, embeddings=embeddings), method="decoder_losses")
        engine.backward(share(0.0, part.decoder))
        # Without its graph, whose nodes would keep a CPU's heap from joining the holes that activations leave.
        sums.append(_without_graph(part))
        gradients += [(tensor, leaf.grad) for tensor, leaf in zip(inputs, leaves, strict=True) if leaf.grad is not None]
        del part
    return sums, gradients


def _without_graph(sums: DecoderSums) -> DecoderSums:
    return DecoderSums(*(tensor.detach() for tensor in sums))


class _WithGradient(torch.autograd.Function):
    """forward: loss; backward: its gradient to `loss`, and `gradient`, which was found apart, to `tensor`."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, tensor: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.view_as(loss)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return scale, gradient, None
