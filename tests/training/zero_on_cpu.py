"""train.py with DeepSpeed on CPU processes: DeepSpeed itself can (gloo), only Lightning's strategy insists on CUDA.

python zero_on_cpu.py [bad_step=N] OVERRIDE...
"""

from __future__ import annotations

import logging
import sys

import deepspeed
import torch
from lightning.fabric.strategies import DDPStrategy

from csm.config import TrainerConfig
from csm.parallel import deepspeed as zero
from csm.training import build
from csm.training.build import train
from tests.conftest import compose_train
from tests.training.bad_step import poison


class ZeroOnCpu(zero.ZeroStrategy):
    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0)  # DeepSpeed wants a number

    def setup_environment(self) -> None:
        DDPStrategy.setup_environment(self)

    def _setup_distributed(self) -> None:
        self._set_world_ranks()
        self._init_deepspeed_distributed()
        self._format_config()


def without_compiling() -> None:
    """DeepSpeed would compile an all-reduce for CPUs in C++, for minutes."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


if __name__ == "__main__":
    overrides = sys.argv[1:]
    if overrides[0].startswith("bad_step="):
        poison(int(overrides.pop(0).removeprefix("bad_step=")))
    zero.ZeroStrategy = ZeroOnCpu
    count_devices = build.count_devices

    def counted_as_cuda(options: TrainerConfig) -> tuple[int, torch.device]:
        return count_devices(options)[0], torch.device("cuda")

    build.count_devices = counted_as_cuda
    without_compiling()
    logging.basicConfig(level=logging.INFO)
    train(compose_train(overrides))
