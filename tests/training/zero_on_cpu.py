"""train.py with DeepSpeed on CPU processes: DeepSpeed itself can (gloo), only Lightning's strategy insists on CUDA.

python zero_on_cpu.py [bad_step=N] OVERRIDE... makes the slot weights of rank 1 NaN in step N.
"""

from __future__ import annotations

import math
import sys

import deepspeed
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy

from csm.training import strategies
from csm.training.module import CSMTrainingModule
from csm.training.run import train
from tests.conftest import compose_train


class ZeroOnCpu(strategies.ZeroStrategy):
    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0)  # DeepSpeed wants a number

    def setup_environment(self) -> None:
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        self._init_deepspeed_distributed()


def without_compiling() -> None:
    """DeepSpeed would compile an all-reduce for CPUs in C++, for minutes."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def poison(bad_step: int) -> None:
    step_of = CSMTrainingModule.training_step

    def training_step(self, batch, batch_index):
        if self.global_rank == 1 and self.global_step + 1 == bad_step:
            batch.microbatches[0].slot_weights.fill_(math.nan)
        step_of(self, batch, batch_index)

    CSMTrainingModule.training_step = training_step


if __name__ == "__main__":
    overrides = sys.argv[1:]
    if overrides[0].startswith("bad_step="):
        poison(int(overrides.pop(0).removeprefix("bad_step=")))
    strategies.ZeroStrategy = ZeroOnCpu
    strategies.CUDAAccelerator = CPUAccelerator
    without_compiling()
    train(compose_train(overrides))
