"""train.py with DeepSpeed on CPU processes: DeepSpeed itself can (gloo), only Lightning's strategy insists on CUDA."""

from __future__ import annotations

import sys

import deepspeed
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy

from csm.training import strategies
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


if __name__ == "__main__":
    strategies.ZeroStrategy = ZeroOnCpu
    strategies.CUDAAccelerator = CPUAccelerator
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it compiles an all-reduce in C++ for minutes
    train(compose_train(sys.argv[1:]))
