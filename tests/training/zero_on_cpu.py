"""train.py with DeepSpeed on CPU processes: DeepSpeed itself can (gloo), only Lightning's strategy insists on CUDA.

python zero_on_cpu.py [bad_step=N] OVERRIDE...
"""

from __future__ import annotations

import sys

import deepspeed
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy

from csm.parallel import strategies
from csm.training.build import train
from tests.conftest import compose_train
from tests.training.bad_step import poison


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


if __name__ == "__main__":
    overrides = sys.argv[1:]
    if overrides[0].startswith("bad_step="):
        poison(int(overrides.pop(0).removeprefix("bad_step=")))
    strategies.ZeroStrategy = ZeroOnCpu
    strategies.CUDAAccelerator = CPUAccelerator
    without_compiling()
    train(compose_train(overrides))
