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
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from csm.config import ActivationCheckpointing, LossConfig, TrainConfig
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
        loss = self.config.loss
        chunk = self._chunk_size(rows, slots_vary=loss.decoder_frame_ratio == 1)  # see `stack_rows`
        return backward_in_chunks(engine, self._inputs(rows), loss, total_frames / num_ranks, last, chunk)

    def fill_buckets(self, engine: Engine) -> None:
        """Has DDP make its buckets before training: two passes over a row of two positions, without their gradients.

        DDP makes its first buckets for the first pass, and others, in the order in which gradients came, for the
        second. In a step of several passes the gradients of those not summed yet would lie beside them.
        """
        codebooks, device = self.config.model.num_codebooks, engine.fabric.device
        inputs = {
            "tokens": torch.zeros(1, 2, codebooks + 1, dtype=torch.int64),
            "mask": torch.ones(1, 2, codebooks + 1, dtype=torch.bool),
            "positions": torch.arange(2)[None],
            "targets": torch.tensor([[False, True]]),
            "slots": torch.ones(1, 1, dtype=torch.int64),
            "slot_weights": torch.ones(1, 1),
        }
        on_device = {name: tensor.to(device) for name, tensor in inputs.items()}
        with isolate_rng(), torch.compiler.set_stance("force_eager"):  # it is a shape that does not come again
            for _ in range(2):
                backward_in_chunks(engine, on_device, self.config.loss, total_frames=1.0)
        engine.optimizer.zero_grad(set_to_none=False)

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
        chunks = frame_chunks(frames, self._chunk_size(rows, slots_vary=True))
        decoder = join_chunks([engine(chunk, method="decoder_losses") for chunk in chunks], len(frames.weights))
        return join(backbone, decoder).stacked()

    def _chunk_size(self, rows: RowBatch, slots_vary: bool) -> int:
        """Frames of a chunk: `decoder_chunk`, or all if they are fewer. Compiled blocks get the same size whatever the
        number of slots, which else would be a shape to compile for each number below `decoder_chunk`."""
        fixed = slots_vary and self.config.trainer.compile
        most = rows.positions.numel() if fixed else rows.slots.numel()
        return min(self.config.loss.decoder_chunk, most)

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
    backbone, options = config.model.backbone, config.trainer
    # Selective checkpointing looks at every operation, and flex attention would not be compiled under it (torch 2.9).
    watched = options.activation_checkpointing is ActivationCheckpointing.selective and not options.compile
    if not rows.tokens.is_cuda or watched:
        return rows.attention_mask()
    limit = flex_limit(backbone.dim // backbone.heads, precision(options) == "bf16-mixed")
    return rows.block_mask() if limit is None else rows.attention_mask()


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
    chunk_size: int | None = None,
) -> LossSums:
    """Forward and backward of `CSM.losses(**inputs)` over `total_frames`, the depth decoder on a chunk of frames at a
    time: `chunk_size` of them, or `config.decoder_chunk` but no more than there are.

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
    *earlier, last = frame_chunks(frames, chunk_size or min(config.decoder_chunk, len(frames.weights)))
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
