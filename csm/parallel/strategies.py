"""The Lightning strategy of a configuration.

Single and DDP are Lightning's own. The sharding ones add what manual optimization over microbatches needs: when
gradients are summed over ranks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    Strategy,
)
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

from csm.checkpoint.checksums import unwritten, writing
from csm.checkpoint.sharded import OPTIMIZER, WEIGHTS, is_sharded, load_sharded, write_sharded
from csm.checkpoint.zero import LATEST, TAG, check_contents
from csm.config import StrategyConfig, StrategyName, TrainConfig
from csm.model.init import assign
from csm.parallel.plan import check_tensor_parallel
from csm.training.gradients import contagious

if TYPE_CHECKING:
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine  # slow to import

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
    name = options.name
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
    if name is not StrategyName.fsdp and options.reduce_every_microbatch:
        raise ValueError(f"strategy.reduce_every_microbatch belongs to strategy=fsdp, not to strategy={name.value}")
    check_tensor_parallel(config, devices)


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over the data-parallel ranks, tensor parallelism within groups of `tensor_parallel_size`.

    The sharding itself happens in the module's `configure_model` (csm/parallel/plan.py).
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

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """All ranks write, and come back together. What keeps one from it is put down on rank 0, which then leaves the
        earlier checkpoints where they are; the others learn of it at the next step (csm/training/signals.py)."""
        stop = self.checkpoint_io.stop
        path, failed = self.broadcast((str(filepath), stop.error is not None))
        if failed:
            return
        content = dict(checkpoint)
        (optimizer,) = content.pop("optimizer_states")
        state = {WEIGHTS: content.pop("state_dict"), OPTIMIZER: optimizer}
        try:
            write_sharded(Path(path), state, content)
        except OSError as error:  # on all ranks
            if self.is_global_zero:
                stop.error = error

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.candidates.load(
            lambda path: self._load_sharded(path) if is_sharded(path) else self._load_whole(path)
        )

    def _load_sharded(self, path: Path) -> dict[str, Any]:
        """Of a run on any number of ranks."""
        module, (optimizer,) = self.model, self.optimizers
        state = {WEIGHTS: get_model_state_dict(module), OPTIMIZER: get_optimizer_state_dict(module, optimizer)}
        content = load_sharded(path, state)
        module.load_state_dict(state[WEIGHTS])
        set_optimizer_state_dict(module, optimizer, state[OPTIMIZER], options=StateDictOptions(cpu_offload=True))
        return content

    def _load_whole(self, path: Path) -> dict[str, Any]:
        """Of a run whose ranks had whole weights."""
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
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

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """As `ShardedStrategy.save_checkpoint`."""
        stop = self.checkpoint_io.stop
        path, failed = self.broadcast((Path(filepath), stop.error is not None))
        if failed:
            return
        content = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
        with _noting_errors(self.deepspeed_engine.checkpoint_engine) as errors:
            self.deepspeed_engine.save_checkpoint(path, client_state=content, tag=TAG, save_latest=False)
        reasons: list[str | None] = [None] * self.world_size
        dist.all_gather_object(reasons, str(errors[0].strerror) if errors else None)
        failed = [f"rank {rank}: {reason}" for rank, reason in enumerate(reasons) if reason is not None]
        if self.is_global_zero and failed:
            stop.error = unwritten(path, failed[0])
        elif self.is_global_zero:
            self.checkpoint_io.run(lambda: (path / LATEST).write_text(TAG))

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        read = super().load_checkpoint
        return self.checkpoint_io.candidates.load(
            lambda path: read(path, weights_only),
            look_into=lambda path: check_contents(path, self.global_rank, self.world_size),
        )

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


@contextmanager
def _noting_errors(files: CheckpointEngine) -> Iterator[list[OSError]]:
    """Within the block DeepSpeed writes on, whatever it cannot write: its ranks wait for one another afterwards."""
    errors: list[OSError] = []

    def save(state_dict: Any, path: str) -> None:
        try:
            with open(path, "wb") as stream, writing():
                torch.save(state_dict, stream)
        except OSError as error:
            errors.append(error)

    def makedirs(path: str, exist_ok: bool = False) -> None:
        try:
            os.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            errors.append(error)

    files.save, files.makedirs = save, makedirs
    try:
        yield errors
    finally:
        del files.save, files.makedirs


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
