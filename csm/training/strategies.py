"""The Lightning strategy of a configuration.

Single and DDP are Lightning's own. The sharding ones add what manual optimization over microbatches needs: when
gradients are summed over ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    Strategy,
)
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from csm.checkpoint.sharded import is_sharded
from csm.config import StrategyConfig, StrategyName, TrainConfig
from csm.model.init import assign
from csm.training.gradients import contagious
from csm.training.parallel import check_splits

DEEPSPEED = (StrategyName.deepspeed_zero2, StrategyName.deepspeed_zero3)
SHARDING = (StrategyName.fsdp, *DEEPSPEED)
"""Strategies that keep fp32 master weights of their own, so that Lightning's autocast stays off."""


def build_strategy(config: TrainConfig, bf16: bool) -> Strategy | str:
    """What goes into `Trainer(strategy=...)`. bf16: whether a sharding strategy computes in bfloat16."""
    options = config.strategy
    match options.name:
        case StrategyName.single:
            return "auto"
        case StrategyName.ddp:
            # Every trained parameter has a gradient in every pass, so there is nothing to look for. A static graph
            # would add nothing to that, and does not go with passes whose gradients stay unsynchronized.
            return DDPStrategy(find_unused_parameters=False, gradient_as_bucket_view=True)
        case StrategyName.fsdp:
            return ShardedStrategy(options)
        case StrategyName.deepspeed_zero2 | StrategyName.deepspeed_zero3:
            return ZeroStrategy(options, bf16, config.optim.grad_clip)


def check_strategy(config: TrainConfig, trainer: L.Trainer) -> None:
    """Raises ValueError for options that do not go together, or not with the trainer's devices."""
    options, devices = config.strategy, trainer.num_devices * trainer.num_nodes
    name, size = options.name, options.tensor_parallel_size
    if name in DEEPSPEED and not isinstance(trainer.accelerator, CUDAAccelerator):
        raise ValueError(f"strategy={name.value} needs CUDA devices; strategy=fsdp shards on any")
    if name is StrategyName.deepspeed_zero3 and config.trainer.compile:
        raise ValueError("trainer.compile=true does not go with deepspeed_zero3, which swaps weights inside the blocks")
    if name is StrategyName.single and devices > 1:
        raise ValueError(
            f"strategy=single trains on one device, and trainer.devices={config.trainer.devices} with "
            f"trainer.num_nodes={config.trainer.num_nodes} asks for {devices}; choose strategy=ddp or strategy=fsdp"
        )
    if options.cpu_offload and name not in SHARDING:
        raise ValueError(f"strategy.cpu_offload=true needs strategy=fsdp or deepspeed_zero2/3, not {name.value}")
    if name is not StrategyName.fsdp and (size != 1 or options.reduce_every_microbatch):
        option = "tensor_parallel_size" if size != 1 else "reduce_every_microbatch"
        raise ValueError(f"strategy.{option} belongs to strategy=fsdp, not to strategy={name.value}")
    if size < 1 or devices % size:
        raise ValueError(f"strategy.tensor_parallel_size={size} does not divide the number of devices, {devices}")
    check_splits(config.model.backbone, size)
    if size > 1 and config.lora.rank:
        raise ValueError("LoRA adapters are not split: use strategy.tensor_parallel_size=1 with lora.rank > 0")


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over the data-parallel ranks, tensor parallelism within groups of `tensor_parallel_size`.

    The sharding itself happens in the module's `configure_model` (csm/training/parallel.py).
    """

    def __init__(self, options: StrategyConfig) -> None:
        super().__init__()
        self._options = options

    def setup_environment(self) -> None:
        self._tensor_parallel_size = self._options.tensor_parallel_size
        self._data_parallel_size = self.num_processes * self.num_nodes // self._tensor_parallel_size
        if self._options.cpu_offload and self.root_device.type == "cuda":
            # Weights are gathered between GPUs, but norms of gradients are summed where those are.
            self._process_group_backend = "cpu:gloo,cuda:nccl"
        super().setup_environment()

    @property
    def parameter_device(self) -> torch.device:
        """Where a rank keeps its shards."""
        return torch.device("cpu") if self._options.cpu_offload else self.root_device

    def model_to_device(self) -> None:
        if not self._options.cpu_offload:
            super().model_to_device()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(str(checkpoint_path)))
        if is_sharded(path):  # by any number of ranks
            return super().load_checkpoint(path, weights_only)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # of a run on whole weights
        for name, parameter in self.lightning_module.named_parameters():
            assign(parameter, checkpoint["state_dict"][name])
        (optimizer,) = self.optimizers
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, state in checkpoint["optimizer_states"][0]["state"].items():
            parameter = parameters[number]
            # The fused optimizer wants its step count where the parameter is.
            optimizer.state[parameter] = {"step": state["step"].to(parameter.device, copy=True)}
            for name in ("exp_avg", "exp_avg_sq"):
                optimizer.state[parameter][name] = torch.empty_like(parameter, requires_grad=False)
                assign(optimizer.state[parameter][name], state[name])
        return checkpoint

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Gradients of the passes inside stay whole and on their rank; the next pass outside sums them all."""
        if self._options.reduce_every_microbatch:
            yield
            return
        roots = [module for module in self.lightning_module.children() if isinstance(module, FSDPModule)]
        for root in roots:
            root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            for root in roots:
                root.set_requires_gradient_sync(True)


class ZeroStrategy(DeepSpeedStrategy):
    """DeepSpeed's ZeRO 2 and 3, driven by the same step as the others.

    `engine.backward` averages gradients over ranks, so losses are multiplied by their number as under DDP, and would
    divide them by `gradient_accumulation_steps`, which therefore stays 1: the losses of microbatches already are shares
    of the step's. What ends a step is said to the engine in so many words (`block_backward_sync`). Clipping happens
    in `engine.step`, in fp32, after the last sum.

    There the engine also skips steps: those whose summed gradients are not finite, which all ranks see alike. What is
    not finite on one rank must therefore get into its gradients (`backward`).
    """

    def __init__(self, options: StrategyConfig, bf16: bool, grad_clip: float) -> None:
        super().__init__(config=zero_config(options, bf16, grad_clip))

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Where the module's `configure_model` runs: without `deepspeed.zero.Init`, which would cut up every module and
        cast every tensor made inside, also those that only read a checkpoint. The engine shares out the weights."""
        self._init_config_if_needed()
        yield

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Passes inside do not end the optimizer step."""
        engine = self.deepspeed_engine
        engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            engine.set_gradient_accumulation_boundary(True)
            # Lightning calls `engine.forward` once for all passes of a step. DeepSpeed notices there that a backward
            # pass is over; unless it is told here, ZeRO 3 overwrites the gradients of one pass with those of the next.
            engine.optimizer.clear_backward_seen_flag()

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().backward(contagious(closure_loss), *args, **kwargs)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        result = super().optimizer_step(*args, **kwargs)
        self.forget_skipped()
        return result

    def forget_skipped(self) -> None:
        """Drops the gradients of a step that DeepSpeed skipped. ZeRO 2 with offloading keeps them, sums those of the
        next step into them, and so skips every step from then on (DeepSpeed 0.19.8, in bf16)."""
        if not self.deepspeed_engine.was_step_applied():
            sums = self.deepspeed_engine.optimizer.averaged_gradients
            for group in sums:
                sums[group] = None

    def gradient_norm(self) -> Tensor:
        """2-norm [] of all gradients before clipping, known after the optimizer's step; infinite if that was skipped,
        on all ranks alike."""
        engine = self.deepspeed_engine
        norm = engine.get_global_grad_norm() if engine.was_step_applied() else math.inf
        return torch.as_tensor(norm, dtype=torch.float32, device=self.root_device)


def zero_config(options: StrategyConfig, bf16: bool, grad_clip: float) -> dict[str, Any]:
    """DeepSpeed's configuration. bf16: weights and activations are bfloat16, over fp32 master weights that each rank
    keeps a part of; gradients are summed in fp32 as under `fsdp`."""
    zero: dict[str, Any] = {
        "stage": 2 if options.name is StrategyName.deepspeed_zero2 else 3,
        "contiguous_gradients": True,
        "overlap_comm": True,
        "reduce_bucket_size": 200_000_000,
        "allgather_bucket_size": 200_000_000,
    }
    if options.cpu_offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if zero["stage"] == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": 1,  # only DeepSpeed's own throughput log reads it
        "gradient_clipping": grad_clip,
        "zero_optimization": zero,
        # Torch's fused AdamW, on GPU and CPU, as under every other strategy.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bf16, "check_grad_overflow": True},  # in fp32 DeepSpeed checks anyway
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }
