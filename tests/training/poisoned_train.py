"""train.py whose rank 1 gets bad batches: python poisoned_train.py BAD_STEPS OVERRIDE... writes hashes of its
weights after every step to run_dir/weights-RANK."""

from __future__ import annotations

import hashlib
import math
import sys

from torch import Tensor
from torch.distributed.tensor import DTensor

from csm.training.build import train
from csm.training.train import TrainingLoop
from tests.conftest import compose_train

BAD_STEPS = [int(step) for step in sys.argv[1].split(",")]
step_of = TrainingLoop.take_step


def take_step(self, batch):
    if self.fabric.global_rank == 1 and self.step + 1 in BAD_STEPS:
        batch.microbatches[0].slot_weights.fill_(math.nan)
    try:
        step_of(self, batch)
    finally:
        digest = hashlib.sha256(b"".join(_local(t) for t in self.module.model.state_dict().values()))
        with open(f"{self.config.run_dir}/weights-{self.fabric.global_rank}", "a") as file:
            file.write(f"{self.step} {digest.hexdigest()}\n")


def _local(tensor: Tensor) -> bytes:
    tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return tensor.detach().numpy().tobytes()


TrainingLoop.take_step = take_step
train(compose_train(sys.argv[2:]))
