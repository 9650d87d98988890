"""When checkpoints are saved and under which names.

    last.ckpt           the newest
    previous.ckpt       the one before it, in case the newest is damaged
    best.ckpt           lowest val/loss
    step-0010000.ckpt   every trainer.keep_every_steps, kept for good

A checkpoint is a file or, with sharded strategies, a folder. It is written as last.ckpt.partial and renamed when it is
whole and on the disk. A kill at any moment leaves last.ckpt or previous.ckpt intact (csm/training/resume.py looks for
both). The other names are hard links: they cost no second write.

Besides every trainer.checkpoint_every_steps, a checkpoint is saved before every validation and at the end.
"""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from csm.config import TrainerConfig
from csm.files import partial, remove, sync
from csm.training.checkpoint_io import CheckpointWriter
from csm.training.module import CSMTrainingModule
from csm.training.signals import Stopped

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


class Checkpoints(Checkpoint):
    """Saves at step boundaries, and ends training there when a signal asks for it."""

    def __init__(self, folder: Path, options: TrainerConfig, writer: CheckpointWriter) -> None:
        self.folder, self.options, self.writer = folder.resolve(), options, writer
        self.newest = self.folder / LAST
        """The checkpoint that holds the state of training."""
        self.best_loss = math.inf
        self._resumed = False
        self.validation_due = False
        """Whether the validation of the newest step is still to be done (csm/training/loop.py)."""
        self._saved: tuple[int, dict[str, Any]] | None = None  # step and own state of the newest checkpoint

    # ------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss, "validation_due": self.validation_due}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.newest, self._resumed = self.writer.candidates.chosen.resolve(), True
        if self.newest.parent == self.folder:  # otherwise best.ckpt is another run's
            self.best_loss = state["best_loss"]
        self.validation_due = state["validation_due"]

    # ------------------------------------------------------------------------------------------------- hooks

    def on_train_start(self, trainer: L.Trainer, module: CSMTrainingModule) -> None:
        if self._resumed:
            self._saved = (trainer.global_step, self.state_dict())

    def on_train_batch_end(self, trainer: L.Trainer, module: CSMTrainingModule, *_: Any) -> None:
        step = trainer.global_step
        loop = trainer.fit_loop
        self.validation_due = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # as Lightning will ask next
        if step % self.options.checkpoint_every_steps == 0 or self._is_kept(step):
            self._save_once(trainer)
        self._end_if_asked(trainer, module)

    def on_validation_start(self, trainer: L.Trainer, module: CSMTrainingModule) -> None:
        self.validation_due = True
        self._save_once(trainer)  # validation may be long, and best.ckpt has to be of this step

    def on_validation_batch_end(self, trainer: L.Trainer, module: CSMTrainingModule, *_: Any) -> None:
        module.stop.agree(module.agreement.sum(*module.stop.flags()))  # all ranks have equally many batches
        self._end_if_asked(trainer, module)

    def on_validation_end(self, trainer: L.Trainer, module: CSMTrainingModule) -> None:
        loss = trainer.strategy.broadcast(float(trainer.callback_metrics["val/loss"]))
        if loss < self.best_loss:
            if trainer.is_global_zero:
                newest, best = self.newest, self.folder / BEST
                self.writer.run(lambda: _link(newest, best))
            self.best_loss = loss
        self.validation_due = False

    def on_train_end(self, trainer: L.Trainer, module: CSMTrainingModule) -> None:
        if self._saved != (trainer.global_step, self.state_dict()):
            self._save(trainer)
        self._settle(module)

    # ------------------------------------------------------------------------------------------------ saving

    def _is_kept(self, step: int) -> bool:
        every = self.options.keep_every_steps
        return every > 0 and step % every == 0

    def _end_if_asked(self, trainer: L.Trainer, module: CSMTrainingModule) -> None:
        if module.stop.agreed is None:
            return
        self._save_once(trainer)
        self._settle(module)
        raise Stopped(trainer.global_step, module.stop.agreed)

    def _settle(self, module: CSMTrainingModule) -> None:
        """Everything is on the disk, or OSError is raised on all ranks."""
        self.writer.wait()
        module.stop.agree(module.agreement.sum(*module.stop.flags()))

    def _save_once(self, trainer: L.Trainer) -> None:
        if self._saved is None or self._saved[0] != trainer.global_step:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        """All ranks take part. The file of a strategy that writes files may be finished in the background."""
        step, last, temporary = trainer.global_step, self.folder / LAST, partial(self.folder / LAST)
        if trainer.is_global_zero:
            self.writer.run(lambda: _make_place(temporary))
            self.writer.wait()
        trainer.strategy.barrier()
        trainer.save_checkpoint(temporary, weights_only=False)
        if trainer.is_global_zero:
            # What training did not continue from is another run's, or damaged: it does not become the previous one.
            before = self.newest if self._saved or self._resumed else None
            if self._is_kept(step):
                self.writer.run(lambda: _link(temporary, self.folder / f"step-{step:07d}.ckpt"))
            self.writer.run(lambda: _publish(temporary, last, before))
        self.newest = last
        self._saved = (step, self.state_dict())


def _make_place(temporary: Path) -> None:
    temporary.parent.mkdir(parents=True, exist_ok=True)
    remove(temporary)


def _publish(temporary: Path, last: Path, before: Path | None) -> None:
    """Makes `temporary` the last checkpoint and `before`, if it is the last or the previous one, the previous one."""
    previous = last.with_name(PREVIOUS)
    _sync_all(temporary)
    if before == last:
        _move(last, previous)
    elif before != previous:
        remove(previous)
    _move(temporary, last)
    sync(last.parent)


def _link(checkpoint: Path, name: Path) -> None:
    """Gives a checkpoint another name, in place of what had it. Where the disk has no hard links it is copied."""
    temporary = partial(name)
    remove(temporary)
    if checkpoint.is_dir():
        shutil.copytree(checkpoint, temporary, copy_function=_link_file)
    else:
        _link_file(checkpoint, temporary)
    _move(temporary, name)
    sync(name.parent)


def _link_file(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _move(source: Path, target: Path) -> None:
    """Renames in place of what `target` was: in one instant for files; a folder is removed first."""
    if target.is_dir() or source.is_dir():
        remove(target)
    os.replace(source, target)


def _sync_all(path: Path) -> None:
    for inner in path.rglob("*") if path.is_dir() else ():
        sync(inner)
    sync(path)
