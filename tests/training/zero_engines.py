"""DeepSpeed's engines as ZeroEngine sets them up, on one of two CPU processes: python zero_engines.py

Takes the same steps with and without bad ones between them, and fails where that makes a difference.
"""

from __future__ import annotations

import itertools
import math

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from csm.config import StrategyConfig, StrategyName
from csm.parallel.deepspeed import ZeroEngine
from tests.training.zero_on_cpu import ZeroOnCpu, without_compiling


def model() -> nn.Module:
    """All its tensors can be halved: what DeepSpeed would fill them up with is arbitrary."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 16), nn.Tanh(), nn.Linear(16, 6))


class Run:
    """Steps of two microbatches each, every rank on numbers of its own."""

    def __init__(self, name: StrategyName, bf16: bool, offload: bool) -> None:
        strategy = ZeroOnCpu(StrategyConfig(name=name, cpu_offload=offload), bf16, grad_clip=0.5)
        fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
        fabric.launch()
        module = model()
        groups = [{"params": list(module[0].parameters())}, {"params": list(module[2].parameters()), "lr": 0.02}]
        optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1, fused=True)
        self.engine = ZeroEngine(fabric, module, optimizer)
        self.rank = torch.distributed.get_rank()

    def step(self, number: int, factor: float = 1.0, shift: float = 0.0) -> float:
        """Norm of the gradients. factor, shift: what becomes of the first microbatch's loss on rank 1."""
        numbers = torch.Generator().manual_seed(2 * number + self.rank)
        for last in (False, True):
            inputs = torch.randn(3, 7, generator=numbers).to(next(self.engine.engine.parameters()).dtype)
            if last:
                self.engine.backward(self.engine(inputs).float().square().mean())
                continue
            with self.engine.local_gradients():
                loss = self.engine(inputs).float().square().mean()
                if self.rank == 1:
                    loss = loss * factor + shift
                self.engine.backward(loss)
        norms, _ = self.engine.step({}, 0.5, lambda norm: norm)
        return float(norms["total"])

    def state(self) -> list[Tensor]:
        """This rank's fp32 weights, moments and step counts, and the weights that it computes with."""
        states = self.engine.engine.optimizer.optimizer.state.items()
        tensors = [part.clone() for weights, state in states for part in (weights.data, *state.values())]
        return tensors + [getattr(p, "ds_tensor", p).detach().clone() for p in self.engine.engine.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def check(name: StrategyName, bf16: bool, offload: bool) -> None:
    label = f"{name.value} bf16={bf16} offload={offload}"
    reference, run = Run(name, bf16, offload), Run(name, bf16, offload)
    for number, (factor, shift) in enumerate(((math.nan, 0.0), (1.0, math.inf), (math.inf, 0.0))):
        before = run.state()
        assert run.step(99, factor, shift) == math.inf, f"{label}: loss * {factor} + {shift} was taken"
        assert same(run.state(), before), f"{label}: loss * {factor} + {shift} changed something"
        norm, expected = run.step(number), reference.step(number)
        assert 0 < norm == expected < math.inf, f"{label}: norm {norm}, not {expected}, after loss * {factor} + {shift}"
        assert same(run.state(), reference.state()), f"{label}: another step after loss * {factor} + {shift}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    without_compiling()
    import deepspeed

    deepspeed.init_distributed("gloo")
    for name in (StrategyName.deepspeed_zero2, StrategyName.deepspeed_zero3):
        for bf16, offload in itertools.product((True, False), (False, True)):
            check(name, bf16, offload)
            print("checked", name.value, bf16, offload, flush=True)
