"""The training loop: optimizer steps until `trainer.max_steps`, with validation and checkpoints in between.

Its parts are built in csm/training/build.py.
"""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from csm.checkpoint.resume import CheckpointFallback
from csm.checkpoint.writer import CheckpointFolder, CheckpointWriter
from csm.config import Profile, TrainConfig
from csm.data.datamodule import CSMDataModule
from csm.data.packing import RowBatch, StepBatch
from csm.model.csm import CSM
from csm.model.loss import LossSums
from csm.parallel.ranks import RankAgreement, all_reduce
from csm.parallel.strategies import Engine
from csm.stability.early_stop import EarlyStop
from csm.stability.labels import LabelLosses, LabelWatch, warn_of_labels
from csm.stability.sample_metrics import EndRecall
from csm.training.health import StepHealth
from csm.training.loggers import TrainingProgress, due, step_profiler
from csm.training.metrics import IntervalSums, Phase, PhaseTimer, interval_metrics, loss_metrics, throughput_metrics
from csm.training.module import CSMTrainingModule
from csm.training.optim import lr_factor, trainable_parts
from csm.training.samples import AudioSamples
from csm.training.signals import Stopped, StopRequest

log = logging.getLogger(__name__)

PROGRESS = "csm_progress"
"""Key of the loop's own state in a checkpoint: interval under way, counts of bad steps, validation."""


class TrainingLoop:
    """One run: its state, and its loop over optimizer steps.

    step: finished optimizer steps; best_loss: lowest val/loss so far; best_step: of the best checkpoint
    """

    def __init__(
        self,
        config: TrainConfig,
        fabric: Fabric,
        engine: Engine,
        module: CSMTrainingModule,
        data: CSMDataModule,
        extras: dict[str, Any],
        resume: CheckpointFallback,
        samples: AudioSamples | None,
    ) -> None:
        self.config, self.options, self.extras, self.samples = config, config.trainer, extras, samples
        self.fabric, self.engine, self.module, self.data = fabric, engine, module, data
        self.step, self.best_step, self.best_loss = 0, 0, math.inf
        self.stop, self.ranks = StopRequest(), RankAgreement()
        self.writer = CheckpointWriter(self.options.async_checkpoint)
        run_dir = Path(config.run_dir)
        self.checkpoints = CheckpointFolder(run_dir / "checkpoints", self.writer)
        self.parts = trainable_parts(module.model)
        data_rank, num_data_ranks = engine.data_ranks
        self.copies = fabric.world_size // num_data_ranks  # tensor-parallel ranks count the same rows
        self.interval = IntervalSums(self.copies)
        self.health = StepHealth(self.options, run_dir, self.ranks)
        self.timer = PhaseTimer(fabric.device)
        self.early_stop = EarlyStop(self.options.early_stop)
        self.end_recall, self.label_watch = EndRecall(), LabelWatch()
        self._validation_due = False
        self._saved: tuple[int, float, bool] | None = None  # the state that the newest checkpoint holds
        # A resumed run continues with the optimizer's state, but under the learning rates that are asked for now.
        wanted = [(group["lr"], group["weight_decay"]) for group in engine.optimizer.param_groups]
        if resume.chosen is not None:
            self._restore(resume, data_rank)
        elif module.ema is not None:
            module.ema.reset(module.model)
        for group, (lr, weight_decay) in zip(engine.optimizer.param_groups, wanted, strict=True):
            group["initial_lr"], group["weight_decay"] = lr, weight_decay
        data.check_resumable(self.step)

    # -------------------------------------------------------------------------------------------------- loop

    def run(self) -> None:
        """Takes optimizer steps until `max_steps`, an early stop or the end of the data; validates and saves."""
        options, fabric = self.options, self.fabric
        progress = TrainingProgress(options.max_steps, enabled=fabric.is_global_zero)
        profiler = step_profiler(Path(self.config.run_dir) / "profile") if options.profile is Profile.steps else None
        train_batches, val_batches = iter(self.data.train_dataloader()), self.data.val_dataloader()
        self._call("on_train_start")
        progress.start(self.step)
        first, status = self.step, "failed"
        try:
            with profiler or nullcontext():
                if self._validation_due and len(val_batches):  # the run was stopped in the middle of it
                    self._validate_and_save(val_batches)
                while self.step < options.max_steps and not self.data.finished and not self.early_stop.done:
                    self.timer.enter(Phase.data)
                    batch = next(train_batches)
                    if self.step == first:
                        self._check_labels(batch)
                    batch = batch.to(fabric.device)
                    self.timer.enter(Phase.step)  # in which logging waits for the device
                    self.take_step(batch)
                    metrics = self._log_training(batch) if due(self.step, options.log_every_steps) else {}
                    progress.update(self.step, metrics)
                    self._call("on_train_batch_end", outputs=metrics, batch=batch, batch_idx=self.step - 1)
                    if profiler is not None:
                        profiler.step()
                    if len(val_batches) and (due(self.step, options.val_every_steps) or self.data.finished):
                        self._validate_and_save(val_batches)
                    if due(self.step, options.checkpoint_every_steps) or due(self.step, options.keep_every_steps):
                        self._save_once()
                    self._end_if_asked()
            if self.early_stop.done:
                found = (self.early_stop.metric, self.best_step)
                log.info("%s has stopped improving: the run ends; best.ckpt is of step %d", *found)
            if self.data.finished:
                log.info("all sources have finished their max_epochs after step %d: the run ends", self.step)
            self.health.flush(wait_for_last=True)
            self._save_once()
            self._finish_writing()
            self._call("on_train_end")
            status = "success"
        finally:
            progress.stop()
            for logger in fabric.loggers:
                logger.finalize(status)

    def _check_labels(self, batch: StepBatch) -> None:
        """Warns of labels that look wrong; see csm/stability/labels.py."""
        losses = None
        if self.step or self.config.init_from is not None:  # a new model prefers no shift
            with self.module.evaluating():
                rows = batch.microbatches[0].to(self.fabric.device)
                losses = LabelLosses.from_stacked(all_reduce(self.module.label_sums(rows, self.engine)))
        if self.fabric.is_global_zero:
            frame_rate = self.extras["codec"]["frame_rate"]
            warn_of_labels(batch.microbatches, frame_rate, losses, self.config.model)

    def take_step(self, batch: StepBatch) -> None:
        """One optimizer step: forward and backward of every microbatch, clipping, update, EMA."""
        options, optimizer = self.options, self.engine.optimizer
        factor = lr_factor(self.step, self.config.optim, options.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

        (total_frames,) = self._agree(batch.frames / self.copies)
        total_frames = max(total_frames, 1.0)
        for number, rows in enumerate(batch.microbatches, start=1):
            sums = self.module.training_step(rows, self.engine, total_frames, last=number == len(batch.microbatches))
            self.interval.add_microbatch(sums, rows)

        loss_share = self.interval.step.loss(self.config.loss, total_frames) / self.copies

        def judge(gradient_norm: Tensor) -> Tensor:
            return self.health.check_step(self.step + 1, loss_share, gradient_norm, batch.keys)

        norms, skipped = self.engine.step(self.parts, self.config.optim.grad_clip, judge)
        if self.module.ema is not None:
            self.module.ema.update(self.module.model, options.ema_decay, skipped)
        self.interval.end_step(norms, skipped)
        self.data.consumed(batch)
        self.step += 1
        self.health.flush()

    def _validate_and_save(self, batches: DataLoader[RowBatch]) -> None:
        """Validates, speaks samples, marks the best checkpoint. A stop request ends it: it is due again on resuming."""
        self._validation_due = True
        self.timer.enter(Phase.other)
        with self.module.evaluating():
            sums, labels = self._validation_sums(batches)
        self._end_if_asked()
        metrics = loss_metrics(LossSums.from_stacked(all_reduce(sums).cpu()), "val")
        metrics["val/loss"] = metrics["val/loss_c0"] + metrics["val/loss_decoder"]  # whatever the loss weights
        label_losses = LabelLosses.from_stacked(all_reduce(labels))
        metrics |= label_losses.metrics()
        self._log(metrics)
        sentences = self.label_watch.see(label_losses, self.config.model.audio_vocab_size)
        ends = self.end_recall.see(self.step, metrics["val/eos_recall"])
        for sentence in [*sentences, ends]:
            if sentence is not None and self.fabric.is_global_zero:
                log.warning("validation of step %d: %s", self.step, sentence)
        if self.samples is not None and self.samples.due(self.step):
            model = self.module.model
            assert isinstance(model, CSM)  # csm/validate.py
            with self.module.evaluating():
                metrics |= self.samples.speak(model, self.config.lora, self.step, self.fabric)
        metrics = self.fabric.broadcast(metrics)  # samples are spoken by rank 0
        self.best_loss = min(self.best_loss, metrics["val/loss"])
        if best := self.early_stop.see(metrics):
            self.best_step = self.step
        self._validation_due = False
        self._save_once()
        if best and self.fabric.is_global_zero:
            self.checkpoints.mark_best()
        self._call("on_validation_end", metrics=metrics)
        self.timer.enter(Phase.step)

    def _validation_sums(self, batches: DataLoader[RowBatch]) -> tuple[Tensor, Tensor]:
        """`LossSums.stacked` of this rank's batches, all of which are needed unless ranks agree to stop, and
        `CSMTrainingModule.label_sums` of the first."""
        sums: Tensor | None = None
        labels: Tensor | None = None
        for rows in batches:
            rows = rows.to(self.fabric.device)
            if labels is None:
                labels = self.module.label_sums(rows, self.engine)
            stacked = self.module.validation_step(rows, self.engine, self.ranks.largest(rows.slots.shape[1]))
            sums = stacked if sums is None else sums + stacked
            self._agree()  # all ranks have equally many batches
            if self.stop.agreed is not None:
                break
        assert sums is not None and labels is not None, "a validation split has batches"
        return sums, labels

    # ----------------------------------------------------------------------------------------------- logging

    def _log_training(self, batch: StepBatch) -> dict[str, float]:
        self.health.flush(wait_for_last=True)
        interval = self.interval.read()
        metrics = interval_metrics(interval, self.config.loss, self.engine.optimizer, batch.cursor)
        metrics["train/skipped_steps"] = self.health.skipped
        frame_rate, ranks = self.extras["codec"]["frame_rate"], self.fabric.world_size
        metrics |= throughput_metrics(interval, self.timer, self.config, frame_rate, ranks, self.fabric.device)
        self.timer.reset()
        self._log(metrics)
        return metrics

    def _log(self, metrics: dict[str, float]) -> None:
        """One record for every logger, at the number of finished optimizer steps."""
        for logger in self.fabric.loggers:
            logger.log_metrics(metrics, self.step)
            logger.save()

    def _call(self, hook: str, **values: Any) -> None:
        """A hook of the callbacks. Fabric passes each the arguments that it takes."""
        self.fabric.call(hook, trainer=self, pl_module=self.module, **values)

    # ------------------------------------------------------------------------------- stopping and checkpoints

    def _agree(self, *values: float) -> list[float]:
        """Sums over ranks; on the way all learn of signals, and of checkpoints that could not be written (OSError)."""
        *sums, term, usr1, errors = self.ranks.sum(*values, *self.stop.flags(), float(self.writer.error is not None))
        self.stop.agree([term, usr1])
        if errors:
            raise self.writer.error or OSError("another process could not write its checkpoint; see what it says")
        return sums

    def _end_if_asked(self) -> None:
        if self.stop.agreed is not None:
            self._save_once()
            self._finish_writing()
            raise Stopped(self.step, self.stop.agreed)

    def _finish_writing(self) -> None:
        """Everything is on the disk, or OSError is raised on all ranks."""
        self.writer.wait()
        self._agree()

    def _save_once(self) -> None:
        """Saves the state of training, unless the newest checkpoint already holds it. All ranks take part; a single
        file may be finished in the background."""
        state = (self.step, self.best_loss, self._validation_due)
        if self._saved == state:
            return
        self.timer.enter(Phase.other)
        self.health.flush(wait_for_last=True)
        content = {
            "global_step": self.step,
            "CSMDataModule": self.data.state_dict(),
            "csm": self.extras,
            PROGRESS: {
                "interval": self.interval.state(),
                "health": self.health.state(),
                "best_loss": self.best_loss,
                "best_step": self.best_step,
                "early_stop": self.early_stop.state(),
                "end_recall": asdict(self.end_recall),
                "label_watch": asdict(self.label_watch),
                "validation_due": self._validation_due,
            },
        }
        if self.fabric.is_global_zero:
            self.checkpoints.clear()
        self.fabric.barrier()
        self._call("on_save_checkpoint", checkpoint=content)
        self.engine.save(self.checkpoints.temporary, content, self.writer)
        if self.fabric.is_global_zero:
            kept = due(self.step, self.options.keep_every_steps)
            self.checkpoints.publish(keep_as=f"step-{self.step:07d}.ckpt" if kept else None)
        self._saved = state
        self.timer.enter(Phase.step)

    def _restore(self, resume: CheckpointFallback, data_rank: int) -> None:
        content = resume.load(self.engine.load, self.engine.verify)
        self.step = content["global_step"]
        self.data.load_state_dict(content.get("CSMDataModule", {}))
        progress = content[PROGRESS]
        self.interval.load_state(progress["interval"], data_rank, self.fabric.device)
        self.health.load_state(progress["health"])
        # Lightning's Trainer, which wrote earlier checkpoints, kept these two elsewhere.
        validation = progress if "best_loss" in progress else content["callbacks"]["Checkpoints"]
        self.checkpoints = CheckpointFolder(self.checkpoints.folder, self.writer, resume.chosen)
        if self.checkpoints.newest is not None and self.checkpoints.newest.parent == self.checkpoints.folder:
            self.best_loss = validation["best_loss"]  # otherwise best.ckpt is another run's
            self.best_step = validation.get("best_step", 0)
            self.early_stop.load_state(progress.get("early_stop", EarlyStop.earlier_state(self.best_loss)))
            self.end_recall = EndRecall(**progress.get("end_recall", {}))  # earlier checkpoints have none
            self.label_watch = LabelWatch(**progress.get("label_watch", {}))
            if self.best_step == self.step and self.fabric.is_global_zero:
                self.checkpoints.mark_best()  # best.ckpt may be of a later step that is taken again
        self._validation_due = validation["validation_due"]
        self._saved = (self.step, self.best_loss, self._validation_due)
