"""train.py with a bad batch: python bad_step.py STEP OVERRIDE... makes NaN of slot weights on the last rank."""

from __future__ import annotations

import math
import sys

from csm.training.module import CSMTrainingModule
from csm.training.build import train
from tests.conftest import compose_train


def poison(bad_step: int) -> None:
    step_of = CSMTrainingModule.training_step

    def training_step(self, batch, batch_index):
        if self.global_rank == self.trainer.world_size - 1 and self.global_step + 1 == bad_step:
            batch.microbatches[0].slot_weights.fill_(math.nan)
        step_of(self, batch, batch_index)

    CSMTrainingModule.training_step = training_step


if __name__ == "__main__":
    poison(int(sys.argv[1]))
    train(compose_train(sys.argv[2:]))
