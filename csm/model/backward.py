"""The backward pass of the losses, through the depth decoder on a chunk of frames at a time."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from csm.config import LossConfig
from csm.model.loss import (
    DecoderFrames,
    DecoderSums,
    LossSums,
    frame_chunks,
    join,
    join_chunks,
    objective_share,
)
from csm.model.speech_lm import SpeechLM


class PassEngine(Protocol):
    """A strategy's part in the passes of a step (csm/parallel/strategies.py)."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`SpeechLM.forward`."""
        ...

    def local_gradients(self) -> AbstractContextManager[None]:
        """Around all passes of a step but the last: gradients stay on their rank."""
        ...

    def backward(self, loss: Tensor) -> None: ...


class LocalEngine:
    """The engine of a bare model in one process, for measurements and tests of `backward_in_chunks`."""

    def __init__(self, model: SpeechLM) -> None:
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
    """Adds the gradients of `SpeechLM.losses(**inputs) / total_frames`, the depth decoder taking a chunk of frames at a
    time: `chunk_size` of them, or `config.decoder_chunk` but no more than there are. Returns the sums, detached.

    The decoder turns every frame into a sequence of K positions, so its activations are what limits memory where many
    frames are used. Frames do not depend on one another: each chunk is differentiated as soon as it is computed, with
    respect to the decoder's weights and the chunk's own inputs, which are cut off from the backbone. The last chunk's
    backward pass goes on through the backbone, taking the gradients of the earlier chunks' inputs with it: every
    parameter takes part in that pass, which is the one whose gradients DDP and FSDP sum over ranks.
    """

    with engine.local_gradients():
        backbone, frames = engine(**inputs, method="backbone_losses")
        num_frames = len(frames.weights)
        size = chunk_size or min(config.decoder_chunk, num_frames)
        last_start = (num_frames - 1) // size * size
        # Gradients take the place of the chunks that they belong to: pieces of their own would fragment a heap, too.
        gradients = [
            tensor.detach() if last_start and tensor.requires_grad else None
            for tensor in (frames.states, frames.embeddings)
        ]
        sums = []
        for start in range(0, last_start, size):
            chunk, leaves = _detached(frames, start, start + size)
            part: DecoderSums = engine(chunk, method="decoder_losses")
            engine.backward(objective_share(config, total_frames, 0.0, 0.0, part.decoder, part.end_decoder))
            # Without its graph, whose nodes would keep a heap from joining the holes that activations leave.
            sums.append(_without_graph(part))
            for gradient, leaf in zip(gradients, leaves, strict=True):
                if gradient is not None:
                    assert leaf.grad is not None, "the losses depend on all inputs of the depth decoder"
                    gradient[start : start + size] = leaf.grad
            del chunk, leaves, leaf, part
    with nullcontext() if sum_over_ranks else engine.local_gradients():
        states, embeddings = (
            tensor[last_start:] if gradient is None else _LastChunk.apply(tensor, gradient, last_start)
            for tensor, gradient in zip((frames.states, frames.embeddings), gradients, strict=True)
        )
        codes, weights = frames.codes[last_start:], frames.weights[last_start:]
        (last,) = frame_chunks(DecoderFrames(states, embeddings, codes, weights), size)
        part = engine(last, method="decoder_losses")
        sums.append(_without_graph(part))
        engine.backward(
            objective_share(config, total_frames, backbone.c0, backbone.end_c0, part.decoder, part.end_decoder)
        )
    return join(backbone, join_chunks(sums, num_frames))


def _detached(frames: DecoderFrames, start: int, end: int) -> tuple[DecoderFrames, tuple[Tensor, Tensor]]:
    """A chunk cut off from the graph that it comes from, and its two inputs, which collect gradients of their own."""
    states, embeddings = (
        tensor[start:end].detach().requires_grad_(tensor.requires_grad) for tensor in (frames.states, frames.embeddings)
    )
    chunk = DecoderFrames(states, embeddings, frames.codes[start:end], frames.weights[start:end])
    return chunk, (states, embeddings)


def _without_graph(sums: DecoderSums) -> DecoderSums:
    return DecoderSums(*(tensor.detach() for tensor in sums))


class _LastChunk(torch.autograd.Function):
    """forward: `tensor[start:]`; backward: `gradient`, which holds the chunks before, completed by that of the last."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, gradient: Tensor, start: int) -> Tensor:
        ctx.gradient, ctx.start = gradient, start
        return tensor[start:].clone()  # its place is taken, too

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, last: Tensor) -> tuple[Tensor, None, None]:
        ctx.gradient[ctx.start :] = last
        return ctx.gradient, None, None
