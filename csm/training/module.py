"""The LightningModule: one optimizer step over microbatches, exact global normalization, full validation.

A training batch is everything that one rank computes in one optimizer step. The number of supervised frames of the
whole step, over microbatches and ranks, is known before the first backward pass; every microbatch adds its share of

    (sum of losses) / (frames of the step)

so neither accumulation nor the number of ranks nor padding changes the gradient. That is why optimization is
manual: Lightning's automatic accumulation averages microbatches as if they were equally long.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from csm.config import TrainConfig
from csm.data.datamodule import data_ranks
from csm.data.packing import RowBatch, StepBatch
from csm.model.csm import CSM
from csm.model.loss import LossSums
from csm.parallel.plan import parallelize, reshard, whole_model
from csm.parallel.ranks import RankAgreement
from csm.parallel.strategies import ShardedStrategy, ZeroStrategy
from csm.training.ema import WeightAverage, check_average
from csm.training.gradients import clip_gradients, trainable_parts
from csm.training.health import StepHealth
from csm.training.heap import return_freed_memory
from csm.training.init_weights import initialize
from csm.training.metrics import IntervalSums, all_reduce, loss_metrics, objective
from csm.training.optim import allocate_state, build_optimizer, lr_factor, numbered_state
from csm.training.signals import StopRequest
from csm.training.throughput import Doing, Stopwatch, throughput_metrics
from csm.training.trainer import precision

PROGRESS = "csm_progress"
"""Key of what this module adds to a checkpoint: the interval under way and the counts of steps that went wrong."""


class CSMTrainingModule(L.LightningModule):
    """Trains `model`, which comes without values (on the meta device) and gets them once its parameters are placed
    on the ranks. resumed: those will be a checkpoint's.

    `checkpoint_extras` travels inside every checkpoint under the key "csm" (resolved config, codec, tokenizer: see
    csm/checkpoint/contents.py).
    """

    def __init__(
        self, config: TrainConfig, model: CSM, checkpoint_extras: dict[str, Any], resumed: bool = False
    ) -> None:
        super().__init__()
        check_average(config)
        self.automatic_optimization = False
        self.config = config
        self.model = model
        self.ema: WeightAverage | None = None
        self.checkpoint_extras = checkpoint_extras
        self.resumed = resumed
        self.logged: dict[str, float] = {}  # the last training line
        self._restored: dict[str, Any] | None = None  # a checkpoint's PROGRESS
        self.stop = StopRequest()
        self._val_sums: Tensor | None = None

    def configure_model(self) -> None:
        if not self.model.audio_head.is_meta:
            return
        strategy, options = self.trainer.strategy, self.config.trainer
        self._bf16 = precision(options) == "bf16-mixed"
        self._sharded = isinstance(strategy, (ShardedStrategy, ZeroStrategy))
        parallelize(
            self.model,
            self.device_mesh,
            options.activation_checkpointing,
            options.compile,
            bf16=self._bf16,
            cpu_offload=self.config.strategy.cpu_offload,
        )
        # Whole models are drawn on the CPU and moved by the strategy: the same values on every kind of device.
        self.model.to_empty(device=strategy.parameter_device if isinstance(strategy, ShardedStrategy) else "cpu")
        initialize(self.model, self.config, self.resumed)
        if options.ema_decay:
            self.ema = WeightAverage(self.model)
        if self._root_device.type == "cpu":
            return_freed_memory(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = build_optimizer(self.model, self.config.optim)
        if self._root_device.type == "cpu" and not self._sharded:
            allocate_state(optimizer)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self._wanted = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        return optimizer

    # ---------------------------------------------------------------------------------------------- training

    def on_fit_start(self) -> None:
        self.agreement = RankAgreement()

    def on_train_start(self) -> None:
        # A resumed run continues with the optimizer's state, but under the learning rates that are asked for now.
        for group, (lr, weight_decay) in zip(self.optimizers().param_groups, self._wanted, strict=True):
            group["initial_lr"], group["weight_decay"] = lr, weight_decay
        if self.ema is not None and self.global_step == 0:
            self.ema.reset(self.model)
        self._parts = trainable_parts(self.model)
        data_rank, self._data_ranks = data_ranks(self.trainer)
        self._copies = self.trainer.world_size // self._data_ranks  # tensor-parallel ranks count the same rows
        self._interval = IntervalSums(self._copies)
        self._health = StepHealth(self.config.trainer, Path(self.config.run_dir), self.agreement)
        if self._restored is not None:
            self._interval.load_state(self._restored["interval"], data_rank, self._root_device)
            self._health.load_state(self._restored["health"])
        self._clock = Stopwatch(self._root_device)
        self._clock.now(Doing.waiting)

    def on_train_batch_start(self, batch: StepBatch, batch_index: int) -> None:
        self._clock.now(Doing.stepping)

    def training_step(self, batch: StepBatch, batch_index: int) -> None:
        optimizer = self.optimizers()
        factor = lr_factor(self.global_step, self.config.optim, self.config.trainer.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

        total_frames, *stop = self.agreement.sum(batch.frames / self._copies, *self.stop.flags())
        self.stop.agree(stop)
        total_frames = max(total_frames, 1.0)
        for number, rows in enumerate(batch.microbatches):
            last = number == len(batch.microbatches) - 1
            with nullcontext() if last else self._no_gradient_sync():
                sums = self._forward(rows, None if self._sharded else self.config.loss.decoder_chunk)
                # Data-parallel strategies average gradients over ranks; the division above already is global.
                self.manual_backward(sums.loss(self.config.loss, total_frames) * self._data_ranks)
            self._interval.add_microbatch(sums, rows)

        loss_share = self._interval.step.loss(self.config.loss, total_frames) / self._copies
        norms, skip = self._update(optimizer, loss_share, batch)
        if self.ema is not None:
            self.ema.update(self.model, self.config.trainer.ema_decay, skip)
        self._interval.end_step(norms, skip)
        self.trainer.datamodule.consumed(batch)
        self._health.settle()
        if self.global_step % self.config.trainer.log_every_steps == 0:
            self._log_training(optimizer, batch)

    def _update(
        self, optimizer: LightningOptimizer, loss_share: Tensor, batch: StepBatch
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Clips, steps and forgets the gradients, unless they are not finite. Returns their norms before clipping, and
        whether the step was skipped: scalar, 1 or 0."""
        strategy, step = self.trainer.strategy, self.global_step + 1
        if isinstance(strategy, ZeroStrategy):  # does all of it by itself
            optimizer.step()
            norms = {"total": strategy.gradient_norm()}
            return norms, self._health.judge(step, loss_share, norms["total"], batch.keys)
        norms = clip_gradients(self._parts, self.config.optim.grad_clip)
        home = norms["total"].device  # of gradients and weights: with offloading, the CPU
        norms = {part: norm.to(self._root_device) for part, norm in norms.items()}
        skip = self._health.judge(step, loss_share, norms["total"], batch.keys)
        # As GradScaler does it: fused optimizers then leave weights, moments and step counts as they are. To another
        # device they would copy this themselves, and read it before it has arrived.
        optimizer.optimizer.found_inf = skip.to(home)
        optimizer.step()
        optimizer.zero_grad()
        return norms, skip

    @property
    def _root_device(self) -> torch.device:
        """Where this rank computes; `device` is not that if weights are offloaded."""
        return self.trainer.strategy.root_device

    def on_train_batch_end(self, outputs: None, batch: StepBatch, batch_index: int) -> None:
        self._clock.now(Doing.waiting)

    def on_train_end(self) -> None:
        self._health.settle(wait_for_last=True)

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

    def _log_training(self, optimizer: LightningOptimizer, batch: StepBatch) -> None:
        self._health.settle(wait_for_last=True)
        interval = self._interval.read()
        metrics = {"train/loss": objective(interval.losses, self.config.loss)}
        metrics |= loss_metrics(interval.losses, "train")
        metrics["train/gradient_norm"] = interval.norms.pop("total")
        metrics |= {f"train/gradient_norm_{part}": norm for part, norm in interval.norms.items()}
        metrics |= {f"train/lr_{group['name']}": group["lr"] for group in optimizer.param_groups}
        metrics["train/skipped_steps"] = self._health.skipped
        metrics["progress/rows"] = batch.cursor["rows"]
        metrics |= {f"progress/epoch_{name}": place[0] for name, place in batch.cursor["sources"].items()}
        frame_rate = self.checkpoint_extras["codec"]["frame_rate"]
        metrics |= throughput_metrics(
            interval,
            self._clock,
            self.config.model,
            frame_rate,
            self.config.trainer.activation_checkpointing,
            self.trainer.world_size,
            self._root_device,
        )
        self._clock.reset()
        self._write(metrics)
        self.logged = metrics

    def _write(self, metrics: dict[str, float]) -> None:
        """One line for every logger, at the number of finished optimizer steps."""
        for logger in self.loggers:
            logger.log_metrics(metrics, self.global_step)
            logger.save()

    # -------------------------------------------------------------------------------------------- validation

    def on_validation_start(self) -> None:
        self._clock.now(Doing.other)

    def on_validation_epoch_start(self) -> None:
        self._val_sums = None
        self.swap_weights()

    def validation_step(self, rows: RowBatch, batch_index: int) -> None:
        if self._sharded:  # weights are gathered in every pass of the decoder: all ranks must make equally many
            missing = self.agreement.largest(rows.slots.shape[1]) - rows.slots.shape[1]
            rows = replace(
                rows,
                slots=F.pad(rows.slots, (0, missing), value=1),
                slot_weights=F.pad(rows.slot_weights, (0, missing)),
            )
        stacked = self._forward(rows, chunk=self.config.loss.decoder_chunk).stacked()
        self._val_sums = stacked if self._val_sums is None else self._val_sums + stacked

    def on_validation_epoch_end(self) -> None:
        reshard(self.model)
        self.swap_weights()  # before callbacks save the best checkpoint
        if self._val_sums is None:
            return
        metrics = loss_metrics(LossSums.from_stacked(all_reduce(self._val_sums).cpu()), "val")
        # For choosing checkpoints: independent of the loss weights of the run.
        metrics["val/loss"] = metrics["val/loss_c0"] + metrics["val/loss_decoder"]
        self.log("val/loss", metrics["val/loss"], logger=False)
        self._write(metrics)

    def on_validation_end(self) -> None:
        self._clock.now(Doing.waiting)

    def swap_weights(self) -> None:
        """Puts the averaged weights in the place of the weights, if `trainer.validate_ema` asks for them; or back."""
        if self.ema is not None and self.config.trainer.validate_ema:
            reshard(self.model)
            self.ema.swap(self.model)

    def whole_model(self) -> CSM:
        """For generation on rank 0; all ranks must call it."""
        dtype = torch.bfloat16 if self._bf16 else torch.float32
        return whole_model(self.model, self.config.lora, self._root_device, dtype)

    # ------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._clock.now(Doing.other)
        self._health.settle(wait_for_last=True)
        checkpoint["csm"] = self.checkpoint_extras
        checkpoint[PROGRESS] = {"interval": self._interval.state(), "health": self._health.state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._restored = checkpoint.get(PROGRESS)
        # Optimizer state under names of parameters, from a sharded checkpoint, gets the numbers of this optimizer.
        states = checkpoint.get("optimizer_states", [])
        if states and "param_groups" not in states[0]:
            checkpoint["optimizer_states"] = [numbered_state(states[0], self, self.configure_optimizers())]
