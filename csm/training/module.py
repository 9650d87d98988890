"""The LightningModule: forward and backward passes of one microbatch, one validation batch, and the optimizer.

The number of supervised frames of a whole optimizer step, over microbatches and ranks, is known before its first
backward pass; every microbatch adds its share of

    (sum of losses) / (frames of the step)

so neither accumulation nor the number of ranks nor padding changes the gradient. The loop that calls these methods is
csm/training/train.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from csm.arrangement import audio_positions
from csm.config import TrainConfig
from csm.data.packing import RowBatch
from csm.model.backward import backward_in_chunks
from csm.model.loss import LossSums, frame_chunks, join, join_chunks
from csm.model.speech_lm import SpeechLM
from csm.parallel.plan import attention_mask, reshard
from csm.parallel.strategies import Engine
from csm.stability.labels import SHIFTS, later_halves
from csm.training.ema import WeightAverage
from csm.training.optim import build_optimizer


class CSMTrainingModule(L.LightningModule):
    """`model`, whose parameters already have values, and with `trainer.ema_decay` their average `ema`.

    Checkpoints hold its state: tensors under "model." and "ema.".
    """

    def __init__(self, config: TrainConfig, model: SpeechLM) -> None:
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
        """Has DDP make its buckets before training: two passes over a row of one frame, without their gradients.

        DDP makes its first buckets for the first pass, and others, in the order in which gradients came, for the
        second. In a step of several passes the gradients of those not summed yet would need memory of their own.
        """
        model, device = self.config.model, engine.fabric.device
        length, columns = 1 + audio_positions(1, model.layout, model.num_codebooks), model.num_codebooks + 1
        inputs = {
            "tokens": torch.zeros(1, length, columns, dtype=torch.int64),
            "mask": torch.ones(1, length, columns, dtype=torch.bool),
            "positions": torch.arange(length)[None],
            "targets": torch.arange(length)[None] == 1,
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

    @torch.no_grad()
    def label_sums(self, rows: RowBatch, engine: Engine) -> Tensor:
        """Sums of one batch for `LabelLosses.from_stacked`. Two passes of the backbone; all ranks must take part."""
        later = later_halves(rows)  # [B, S]
        inputs = self._inputs(rows)
        for name in ("slots", "slot_weights", "inputs"):
            del inputs[name]
        losses, usable = engine(**inputs, shifts=SHIFTS, method="shifted_losses")  # [len(SHIFTS), B, S-1], [B, S-1]
        inputs["tokens"] = rows.tokens.masked_fill(later[..., None], 0)
        changed, _ = engine(**inputs, shifts=(0,), method="shifted_losses")  # [1, B, S-1]
        early = usable & ~later[:, 1:]
        halves = [(part * early).sum() for part in (losses[SHIFTS.index(0)], changed[0])]
        return torch.stack([*losses.sum((1, 2)), usable.sum().float(), *halves])

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
            "inputs": rows.inputs,
        }
