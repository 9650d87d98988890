"""The LightningModule: forward and backward passes of one microbatch, one validation batch, and the optimizer.

The number of supervised frames of a whole optimizer step, over microbatches and ranks, is known before its first
backward pass; every microbatch adds its share of

    (sum of losses) / (frames of the step)

so neither accumulation nor the number of ranks nor padding changes the gradient. The loop that calls these methods is
csm/training/train.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from csm.config import LossConfig, TrainConfig
from csm.data.packing import RowBatch
from csm.kernels.cuda import flex_limit
from csm.model.csm import CSM
from csm.model.loss import DecoderFrames, DecoderSums, LossSums, frame_chunks, join, join_chunks
from csm.model.transformer import AttentionMask
from csm.parallel.plan import precision, reshard
from csm.parallel.strategies import Engine
from csm.training.ema import WeightAverage
from csm.training.optim import build_optimizer


class CSMTrainingModule(L.LightningModule):
    """`model`, whose parameters already have values, and with `trainer.ema_decay` their average `ema`.

    Checkpoints hold its state: tensors under "model." and "ema.".
    """

    def __init__(self, config: TrainConfig, model: CSM) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.ema = WeightAverage(model) if config.trainer.ema_decay else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within the block the model is in evaluation mode, with `trainer.validate_ema` with its averaged weights."""
        averaged = self.ema if self.config.trainer.validate_ema else None
        self.eval()
        reshard(self.model)
        if averaged is not None:
            averaged.swap(self.model)
        try:
            yield
        finally:
            reshard(self.model)
            if averaged is not None:
                averaged.swap(self.model)
            self.train()

    def configure_optimizers(self) -> torch.optim.AdamW:
        return build_optimizer(self.model, self.config.optim)

    def training_step(  # type: ignore[override] # called by our loop, and not by a Trainer
        self, rows: RowBatch, engine: Engine, total_frames: float, last: bool
    ) -> LossSums:
        """Adds the gradients of one microbatch. Returns its sums, detached.

        total_frames: supervised frames of the whole optimizer step, over all ranks
        last: whether this is the step's last microbatch, after which gradients are summed over ranks
        """
        # Data-parallel strategies average gradients over ranks; the division by total_frames already is global.
        _, num_ranks = engine.data_ranks
        return backward_in_chunks(
            engine, self._inputs(rows), self.config.loss, total_frames / num_ranks, sum_over_ranks=last
        )

    @torch.no_grad()
    def validation_step(self, rows: RowBatch, engine: Engine, num_slots: int) -> Tensor:
        """Sums of one batch, every frame in the depth decoder: `LossSums.stacked`.

        num_slots: the largest number of slots of any rank's batch. Where weights are sharded they are gathered in every
        pass of the decoder, and all ranks must make equally many.
        """
        missing = num_slots - rows.slots.shape[1]
        rows = replace(
            rows,
            slots=F.pad(rows.slots, (0, missing), value=1),
            slot_weights=F.pad(rows.slot_weights, (0, missing)),
        )
        backbone, frames = engine(**self._inputs(rows), method="backbone_losses")
        size = self.config.loss.decoder_chunk
        if not self.config.trainer.compile:  # else every number of frames below that would be a shape of its own
            size = min(size, len(frames.weights))
        chunks = frame_chunks(frames, size)
        decoder = join_chunks([engine(chunk, method="decoder_losses") for chunk in chunks], len(frames.weights))
        return join(backbone, decoder).stacked()

    def _inputs(self, rows: RowBatch) -> dict[str, Any]:
        return {
            "tokens": rows.tokens,
            "mask": rows.mask,
            "positions": rows.positions,
            "targets": rows.targets,
            "slots": rows.slots,
            "slot_weights": rows.slot_weights,
            "attention_mask": attention_mask(rows, self.config),
        }


def attention_mask(rows: RowBatch, config: TrainConfig) -> AttentionMask:
    """For flex attention on CUDA, unless the GPU or the width of the heads rules it out; elsewhere a dense mask."""
    backbone = config.model.backbone
    bf16 = precision(config.trainer) == "bf16-mixed"
    if rows.tokens.is_cuda and flex_limit(backbone.dim // backbone.heads, bf16) is None:
        return rows.block_mask()
    return rows.attention_mask()


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
    engine: Engine | LocalEngine,
    inputs: dict[str, Any],
    config: LossConfig,
    total_frames: float | Tensor,
    sum_over_ranks: bool = True,
) -> LossSums:
    """Forward and backward of `CSM.losses(**inputs)` over `total_frames`, the depth decoder on a chunk of frames at a
    time.

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
    *earlier, last = frame_chunks(frames, min(config.decoder_chunk, len(frames.weights)))
    sums: list[DecoderSums] = []
    leaves: list[DecoderFrames] = []
    with engine.local_gradients():
        for chunk in earlier:
            leaf = _detached(chunk)
            part: DecoderSums = engine(leaf, method="decoder_losses")
            engine.backward(share(0.0, part.decoder))
            # Without its graph, whose nodes would keep a CPU's heap from joining the holes that activations leave.
            sums.append(_without_graph(part))
            leaves.append(leaf)
            del part
    with nullcontext() if sum_over_ranks else engine.local_gradients():
        part = engine(last, method="decoder_losses")
        sums.append(_without_graph(part))
        loss = share(backbone.c0, part.decoder)
        for chunk, leaf in zip(earlier, leaves, strict=True):
            loss = _with_gradients(loss, chunk, leaf)
        engine.backward(loss)
    return join(backbone, join_chunks(sums, len(frames.weights)))


def _without_graph(sums: DecoderSums) -> DecoderSums:
    return DecoderSums(*(tensor.detach() for tensor in sums))


def _detached(chunk: DecoderFrames) -> DecoderFrames:
    """The chunk cut off from the graph that it comes from, its inputs collecting gradients of their own."""
    states, embeddings = (
        tensor.detach().requires_grad_(tensor.requires_grad) for tensor in (chunk.states, chunk.embeddings)
    )
    return chunk._replace(states=states, embeddings=embeddings)


def _with_gradients(loss: Tensor, chunk: DecoderFrames, leaf: DecoderFrames) -> Tensor:
    """`loss`, whose backward pass also gives `chunk` the gradients that `leaf` has collected."""
    for tensor, collected in ((chunk.states, leaf.states), (chunk.embeddings, leaf.embeddings)):
        if collected.grad is not None:
            loss = _WithGradient.apply(loss, tensor, collected.grad)
    return loss


class _WithGradient(torch.autograd.Function):
    """forward: loss; backward: its gradient to `loss`, and `gradient` to `tensor`."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, tensor: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.view_as(loss)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return scale, gradient, None
