"""Lightning's loop over steps, with the validation that a checkpoint still owes."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.loops.fit_loop import _FitLoop


class FitLoop(_FitLoop):
    """Checkpoints are saved before the validation of their step. Resumed from one, Lightning leaves that validation
    out, and does nothing at all if it was the last step; here it comes first.

    trainer: whose loop this replaces
    """

    def __init__(self, trainer: L.Trainer) -> None:
        replaced = trainer.fit_loop
        super().__init__(trainer, replaced.min_epochs, replaced.max_epochs)
        self.epoch_loop = replaced.epoch_loop

    @property
    def skip(self) -> bool:
        return super().skip and not self._validation_due

    def on_run_start(self) -> None:
        super().on_run_start()
        if self._validation_due:
            self._validate()

    @property
    def _validation_due(self) -> bool:
        return self.trainer.checkpoint_callback.validation_due  # csm/training/checkpointing.py

    def _validate(self) -> None:
        """What Lightning does at the end of a step with a validation (`_TrainingEpochLoop.on_advance_end`)."""
        loop, connector = self.epoch_loop.val_loop, self.trainer._logger_connector
        first_iteration = connector._first_loop_iter
        loop.restarting = False
        self.trainer.validating = True
        loop.run()
        self.trainer.training = True
        connector._first_loop_iter = first_iteration
