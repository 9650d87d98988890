"""train.py with a bad batch: python bad_step.py STEP OVERRIDE... makes NaN of slot weights on the last rank."""

from __future__ import annotations

import math
import sys

from csm.training.build import train
from csm.training.train import TrainingLoop
from tests.conftest import compose_train


def poison(bad_step: int) -> None:
    step_of = TrainingLoop.take_step

    def take_step(self, batch):
        if self.fabric.global_rank == self.fabric.world_size - 1 and self.step + 1 == bad_step:
            batch.microbatches[0].slot_weights.fill_(math.nan)
        step_of(self, batch)

    TrainingLoop.take_step = take_step


if __name__ == "__main__":
    poison(int(sys.argv[1]))
    train(compose_train(sys.argv[2:]))
