"""train.py whose rank 1 gets bad batches: python poisoned_train.py BAD_STEPS OVERRIDE... writes hashes of its
weights after every step to run_dir/weights-RANK."""

from __future__ import annotations

import hashlib
import math
import sys

from torch import Tensor
from torch.distributed.tensor import DTensor

from csm.training.module import CSMTrainingModule
from csm.training.build import train
from tests.conftest import compose_train

BAD_STEPS = [int(step) for step in sys.argv[1].split(",")]
step_of = CSMTrainingModule.training_step


def training_step(self, batch, batch_index):
    if self.global_rank == 1 and self.global_step + 1 in BAD_STEPS:
        batch.microbatches[0].slot_weights.fill_(math.nan)
    try:
        step_of(self, batch, batch_index)
    finally:
        digest = hashlib.sha256(b"".join(_local(t) for t in self.model.state_dict().values()))
        with open(f"{self.config.run_dir}/weights-{self.global_rank}", "a") as file:
            file.write(f"{self.global_step} {digest.hexdigest()}\n")


def _local(tensor: Tensor) -> bytes:
    tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return tensor.detach().numpy().tobytes()


CSMTrainingModule.training_step = training_step
train(compose_train(sys.argv[2:]))
