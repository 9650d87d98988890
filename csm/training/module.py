"""The LightningModule: one optimizer step over microbatches, exact global normalization, full validation.

A training batch is everything that one rank computes in one optimizer step. The number of supervised frames of the
whole step, over microbatches and ranks, is known before the first backward pass; every microbatch adds its share of

    (sum of losses) / (frames of the step)

so neither accumulation nor the number of ranks nor padding changes the gradient. That is why optimization is
manual: Lightning's automatic accumulation averages microbatches as if they were equally long.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from csm.checkpoint.init import initialize
from csm.config import TrainConfig
from csm.data.packing import RowBatch, StepBatch
from csm.model.csm import CSM
from csm.model.loss import LossSums
from csm.training.agreement import RankAgreement
from csm.training.optim import build_optimizer, lr_factor
from csm.training.parallel import (
    data_ranks,
    gradient_norm,
    parallelize,
    reshard,
    scale_gradients,
    whole_model,
)
from csm.training.strategies import ShardedStrategy, ZeroStrategy
from csm.training.trainer import precision


class CSMTrainingModule(L.LightningModule):
    """Trains `model`, which comes without values (on the meta device) and gets them once its parameters are placed
    on the ranks. resumed: those will be a checkpoint's.

    `checkpoint_extras` travels inside every checkpoint under the key "csm" (resolved config, codec, tokenizer: see
    csm/checkpoint/training.py).
    """

    def __init__(
        self, config: TrainConfig, model: CSM, checkpoint_extras: dict[str, Any], resumed: bool = False
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.model = model
        self.checkpoint_extras = checkpoint_extras
        self.resumed = resumed
        self._train_sums: Tensor | None = None  # since the last logged step
        self._val_sums: Tensor | None = None
        self._positions = 0
        self._interval_start = time.perf_counter()

    def configure_model(self) -> None:
        if not self.model.audio_head.is_meta:
            return
        strategy, options = self.trainer.strategy, self.config.trainer
        self._bf16 = precision(options) == "bf16-mixed"
        self._sharded = isinstance(strategy, (ShardedStrategy, ZeroStrategy))
        parallelize(
            self.model,
            self.device_mesh,
            options.recompute,
            options.compile,
            bf16=self._bf16,
            cpu_offload=self.config.strategy.cpu_offload,
        )
        # Whole models are drawn on the CPU and moved by the strategy: the same values on every kind of device.
        self.model.to_empty(device=strategy.parameter_device if isinstance(strategy, ShardedStrategy) else "cpu")
        initialize(self.model, self.config, self.resumed)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = build_optimizer(self.model, self.config.optim)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    # ---------------------------------------------------------------------------------------------- training

    def on_fit_start(self) -> None:
        self._agreement = RankAgreement()

    def training_step(self, batch: StepBatch, batch_index: int) -> None:
        optimizer = self.optimizers()
        step = self.global_step
        factor = lr_factor(step, self.config.optim, self.config.trainer.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

        _, ranks = data_ranks(self.trainer)
        copies = self.trainer.world_size // ranks  # tensor-parallel ranks count the same rows
        (total_frames,) = self._agreement.sum(batch.frames / copies)
        total_frames = max(total_frames, 1.0)
        for number, rows in enumerate(batch.microbatches):
            last = number == len(batch.microbatches) - 1
            with nullcontext() if last else self._no_gradient_sync():
                sums = self._forward(rows, None if self._sharded else self.config.loss.decoder_chunk)
                # Data-parallel strategies average gradients over ranks; the division above already is global.
                self.manual_backward(sums.loss(self.config.loss, total_frames) * ranks)
            stacked = sums.stacked()
            self._train_sums = stacked if self._train_sums is None else self._train_sums + stacked
            self._positions += rows.documents.numel()
        norm = self._update(optimizer)
        self.trainer.datamodule.consumed(batch)
        if (step + 1) % self.config.trainer.log_every_steps == 0:
            self._log_training(norm, self.config.optim.lr * factor)

    def _update(self, optimizer: LightningOptimizer) -> Tensor:
        """Clips, steps and forgets the gradients; returns their norm [] before clipping."""
        strategy = self.trainer.strategy
        if isinstance(strategy, ZeroStrategy):  # does all of it by itself
            optimizer.step()
            return strategy.gradient_norm()
        parameters = list(self.model.parameters())
        norm = gradient_norm(parameters)
        scale_gradients(parameters, norm, self.config.optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        return norm

    def _forward(self, rows: RowBatch, chunk: int | None = None) -> LossSums:
        return self.model(
            tokens=rows.tokens,
            mask=rows.mask,
            positions=rows.positions,
            targets=rows.targets,
            slots=rows.slots,
            slot_weights=rows.slot_weights,
            # Flex attention is fast on CUDA where it is compiled with its block, and only there.
            attention_mask=rows.block_mask()
            if rows.tokens.is_cuda and self.config.trainer.compile
            else rows.attention_mask(),
            chunk=chunk,
        )

    def _no_gradient_sync(self) -> Any:
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def _log_training(self, gradient_norm: Tensor, lr: float) -> None:
        sums = LossSums.from_stacked(_all_reduce(self._train_sums))
        seconds = time.perf_counter() - self._interval_start
        metrics = loss_metrics(sums, "train")
        metrics["train/loss"] = sums.loss(self.config.loss, sums.frames)
        metrics["train/gradient_norm"] = gradient_norm
        metrics["train/lr"] = lr
        # Positions of rows, the empty tails included: the work done per second.
        metrics["train/positions_per_second"] = self._positions * data_ranks(self.trainer)[1] / seconds
        # Looked at only here, where values leave the device anyway; a checkpoint of the same step is saved after this.
        if not torch.isfinite(metrics["train/loss"] + gradient_norm):
            raise FloatingPointError(
                f"loss or gradients are not finite at or before step {self.global_step}; resume from an earlier "
                "checkpoint with a lower optim.lr or more optim.warmup_steps"
            )
        self.log_dict(metrics)
        bar = {"loss_c0": "c0", "loss_decoder": "decoder", "positions_per_second": "positions/s"}
        for name, short in bar.items():
            self.log(short, metrics[f"train/{name}"], prog_bar=True, logger=False)
        self._train_sums, self._positions, self._interval_start = None, 0, time.perf_counter()

    # -------------------------------------------------------------------------------------------- validation

    def on_validation_epoch_start(self) -> None:
        self._val_sums = None

    def validation_step(self, rows: RowBatch, batch_index: int) -> None:
        if self._sharded:  # weights are gathered in every pass of the decoder: all ranks must make equally many
            missing = self._agreement.largest(rows.slots.shape[1]) - rows.slots.shape[1]
            rows = replace(
                rows,
                slots=F.pad(rows.slots, (0, missing), value=1),
                slot_weights=F.pad(rows.slot_weights, (0, missing)),
            )
        stacked = self._forward(rows, chunk=self.config.loss.decoder_chunk).stacked()
        self._val_sums = stacked if self._val_sums is None else self._val_sums + stacked

    def on_validation_epoch_end(self) -> None:
        reshard(self.model)
        if self._val_sums is None:
            return
        sums = LossSums.from_stacked(_all_reduce(self._val_sums))
        metrics = loss_metrics(sums, "val")
        # For choosing checkpoints: independent of the loss weights of the run.
        metrics["val/loss"] = metrics["val/loss_c0"] + metrics["val/loss_decoder"]
        self.log_dict(metrics)
        self._interval_start = time.perf_counter()  # validation is not training time
        self._positions = 0

    def whole_model(self) -> CSM:
        """For generation on rank 0; all ranks must call it."""
        dtype = torch.bfloat16 if self._bf16 else torch.float32
        return whole_model(self.model, self.config.lora, self.device, dtype)

    # ------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["csm"] = self.checkpoint_extras

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Optimizer state under names of parameters, from a sharded checkpoint, gets the numbers of this optimizer."""
        states = checkpoint.get("optimizer_states", [])
        if states and "param_groups" not in states[0]:
            names = {parameter: name for name, parameter in self.named_parameters()}
            optimizer = self.configure_optimizers()
            order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
            groups = optimizer.state_dict()["param_groups"]
            state = {number: states[0]["state"][name] for number, name in enumerate(order)}
            checkpoint["optimizer_states"] = [{"state": state, "param_groups": groups}]


def loss_metrics(sums: LossSums, prefix: str) -> dict[str, Tensor]:
    """Per-frame means of every codebook, unweighted by the run's loss weights, in nats."""
    frames = sums.frames.clamp(min=1.0)
    losses, correct = sums.losses / frames, sums.correct / frames
    metrics = {
        f"{prefix}/loss_c0": losses[0],
        f"{prefix}/loss_decoder": losses[1:].mean(),
        f"{prefix}/accuracy_c0": correct[0],
        f"{prefix}/accuracy_decoder": correct[1:].mean(),
        f"{prefix}/eos_recall": sums.eos[1] / sums.eos[0].clamp(min=1.0),
    }
    for codebook, (loss, accuracy) in enumerate(zip(losses, correct, strict=True)):
        metrics[f"{prefix}_codebooks/loss_{codebook:02d}"] = loss
        metrics[f"{prefix}_codebooks/accuracy_{codebook:02d}"] = accuracy
    return metrics


def _all_reduce(values: Tensor) -> Tensor:
    """Sum over ranks (a copy); the values themselves in a single process."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values
