"""One optimizer step under each strategy: one process, DDP and FSDP2 with tensor parallelism here, DeepSpeed in
csm/parallel/deepspeed.py.

An `Engine` is a module and its optimizer under a strategy of Lightning Fabric. The training loop sees nothing else: it
calls the engine as it would call the module, and with every engine takes the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.optim import AdamW

from csm.checkpoint.sharded import OPTIMIZER, WEIGHTS, is_sharded, load_sharded, read_sharded, write_sharded
from csm.checkpoint.writer import CheckpointWriter
from csm.config import StrategyConfig, StrategyName, TrainConfig, TrainerConfig
from csm.model.csm import CSM
from csm.model.init import assign
from csm.model.speech_lm import SpeechLM
from csm.parallel.gradients import clip_gradients, gradient_norms
from csm.parallel.plan import SHARDING, precision

Judge = Callable[[Tensor], Tensor]
"""Global gradient norm [] -> whether the step must be skipped, [] 1 or 0."""


def count_devices(options: TrainerConfig) -> tuple[int, torch.device]:
    """(devices of all nodes, this process's own). Raises ValueError if this machine does not have them."""
    try:
        strategy = Fabric(
            accelerator=options.accelerator, devices=options.devices, num_nodes=options.num_nodes
        ).strategy
    except (RuntimeError, ValueError) as error:
        asked = f"trainer.accelerator={options.accelerator}, trainer.devices={options.devices}"
        raise ValueError(f"{asked}: {' '.join(str(error).split())}") from None
    devices = strategy.parallel_devices if isinstance(strategy, ParallelStrategy) else None
    return len(devices or [0]) * options.num_nodes, strategy.root_device


def build_fabric(config: TrainConfig, num_devices: int, loggers: list[Any], callbacks: list[Any]) -> Fabric:
    """num_devices: of all nodes."""
    options, computation = config.trainer, precision(config.trainer)
    return Fabric(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=_build_strategy(config, num_devices),
        # Sharding strategies keep fp32 master weights and compute in bfloat16 by themselves.
        precision="32-true" if config.strategy.name in SHARDING else computation,
        loggers=loggers,
        callbacks=callbacks,
    )


def _build_strategy(config: TrainConfig, num_devices: int) -> Strategy | str:
    options = config.strategy
    match options.name:
        case StrategyName.single:
            return "auto"
        case StrategyName.ddp:
            # Every trained parameter has a gradient in every pass, so there is nothing to look for. A static graph
            # would add nothing to that, and does not go with passes whose gradients stay unsynchronized.
            return DDPStrategy(find_unused_parameters=False, gradient_as_bucket_view=True)
        case StrategyName.fsdp:
            cuda = count_devices(config.trainer)[1].type == "cuda"
            return _FsdpStrategy(
                lambda module, mesh: module,  # csm/parallel/plan.py shards before
                data_parallel_size=num_devices // options.tensor_parallel_size,
                tensor_parallel_size=options.tensor_parallel_size,
                # With offloading, weights are gathered between GPUs, but gradients are summed where they are.
                process_group_backend="cpu:gloo,cuda:nccl" if options.cpu_offload and cuda else None,
            )
        case StrategyName.deepspeed_zero2 | StrategyName.deepspeed_zero3:
            from csm.parallel.deepspeed import ZeroStrategy  # DeepSpeed is slow to import

            return ZeroStrategy(options, precision(config.trainer) == "bf16-mixed", config.optim.grad_clip)


def build_engine(fabric: Fabric, config: TrainConfig, module: nn.Module, optimizer: AdamW) -> Engine:
    """Sets module and optimizer up under Fabric. The module's parameters have values, and with FSDP are sharded already
    (csm/parallel/plan.py)."""
    match config.strategy.name:
        case StrategyName.fsdp:
            return ShardedEngine(fabric, config.strategy, module, optimizer)
        case StrategyName.deepspeed_zero2 | StrategyName.deepspeed_zero3:
            from csm.parallel.deepspeed import ZeroEngine

            return ZeroEngine(fabric, module, optimizer)
        case _:
            return Engine(fabric, module, optimizer)


class Engine:
    """One process, or DDP: every rank holds the whole model."""

    def __init__(self, fabric: Fabric, module: nn.Module, optimizer: AdamW) -> None:
        self.fabric = fabric
        self.module, self.optimizer = module, optimizer
        # DDP's gradients are views of its buckets, which are never freed. Without gradients there, passes that do not
        # sum over ranks would make others, of the size of the model, beside the buckets.
        self._in_buckets = isinstance(fabric.strategy, DDPStrategy)
        self._wrapped, self._wrapped_optimizer = fabric.setup(module, optimizer)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A forward pass, through the wrapper of the strategy and under its autocast."""
        return self._wrapped(*args, **kwargs)

    @property
    def data_ranks(self) -> tuple[int, int]:
        """(number of this rank, how many there are) among the ranks that train on different rows."""
        return data_ranks(self.fabric)

    def local_gradients(self) -> AbstractContextManager[None]:
        """Around the forward and backward passes of a step but the last: their gradients are not summed over ranks.
        The backward pass after the block sums those of all."""
        return self.fabric.no_backward_sync(self._wrapped)

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss, model=self._wrapped)

    def step(
        self, parts: dict[str, list[nn.Parameter]], grad_clip: float, judge: Judge
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Clips, updates the weights and clears the gradients, unless they are to be skipped.

        parts: trainable parameters by part of the model. Returns (gradient norms before clipping, of the parts and
        "total"; whether the step was skipped), scalars on this rank's device. Nothing waits for the device.
        """
        norms = gradient_norms(parts)
        home = norms["total"].device  # of gradients and weights: with offloading, the CPU
        if grad_clip > 0:
            clip_gradients(parts, norms["total"], grad_clip, self.optimizer)
        norms = {part: norm.to(self.fabric.device) for part, norm in norms.items()}
        skip = judge(norms["total"])
        # As GradScaler does it: fused optimizers then leave weights, moments and step counts as they are. To another
        # device they would copy this themselves, and read it before it has arrived.
        self.optimizer.found_inf = skip.to(home)  # type: ignore[attr-defined] # torch has no other interface to it
        self._wrapped_optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self._in_buckets)
        return norms, skip

    def save(self, path: Path, content: dict[str, Any], writer: CheckpointWriter) -> None:
        """Writes a checkpoint: `content`, and the state of module and optimizer. All ranks must call it."""
        if self.fabric.is_global_zero:
            state = {"state_dict": self.module.state_dict(), "optimizer_states": [self.optimizer.state_dict()]}
            writer.save(content | state, path)

    def verify(self, path: Path) -> None:
        """Reads this rank's share of a checkpoint whose damage `load` would not notice; raises ValueError."""

    def load(self, path: Path) -> dict[str, Any]:
        """Restores module and optimizer; returns the rest. All ranks must call it. Raises ValueError or OSError if the
        checkpoint is damaged: on all ranks or none where they communicate."""
        if is_sharded(path):
            content = _read_whole(path, self.module, self.optimizer)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
        self.module.load_state_dict(content.pop("state_dict"))
        (state,) = content.pop("optimizer_states")
        self.optimizer.load_state_dict(state)
        return content


def data_ranks(fabric: Fabric) -> tuple[int, int]:
    """(number of this rank, how many there are) among the ranks that train on different rows."""
    if not isinstance(fabric.strategy, ParallelStrategy):
        return 0, 1
    numbers = fabric.strategy.distributed_sampler_kwargs  # of the mesh's data-parallel dimension, where there is a mesh
    assert numbers is not None
    return numbers["rank"], numbers["num_replicas"]


def device_mesh(fabric: Fabric) -> DeviceMesh | None:
    """Of FSDP: "data_parallel" x "tensor_parallel"."""
    return fabric.strategy.device_mesh if isinstance(fabric.strategy, ModelParallelStrategy) else None


class _FsdpStrategy(ModelParallelStrategy):
    def _setup_distributed(self) -> None:
        """With offloading, does not bind the processes to their devices: the groups of the mesh would then be split
        off, which gloo cannot do (torch 2.9)."""
        super()._setup_distributed()
        if "gloo" in self._get_process_group_backend() and dist.group.WORLD is not None:
            dist.group.WORLD.bound_device_id = None


class ShardedEngine(Engine):
    """FSDP2 over the data-parallel ranks, tensor parallelism within groups of `tensor_parallel_size`."""

    def __init__(self, fabric: Fabric, options: StrategyConfig, module: nn.Module, optimizer: AdamW) -> None:
        super().__init__(fabric, module, optimizer)
        self._reduce_always = options.reduce_every_microbatch

    @contextmanager
    def local_gradients(self) -> Iterator[None]:
        """Gradients of the passes inside stay whole and on their rank, unless `reduce_every_microbatch`."""
        self._set_last(False)
        try:
            yield
        finally:
            self._set_last(True)

    def _set_last(self, last: bool) -> None:
        for model in self.module.children():
            if isinstance(model, SpeechLM) and isinstance(model, FSDPModule):
                model.set_requires_gradient_sync(last or self._reduce_always)
                model.set_is_last_backward(last)
                # What all chunks of a step need is gathered once: the heads, audio embeddings and the decoder.
                for unit in (model, model.decoder) if isinstance(model, CSM) else (model,):
                    cast(FSDPModule, unit).set_reshard_after_backward(last, recurse=False)

    def save(self, path: Path, content: dict[str, Any], writer: CheckpointWriter) -> None:
        """All ranks write, and return together. A write error on any rank is recorded on rank 0, which then leaves the
        earlier checkpoints in place."""
        if self.fabric.broadcast(writer.error is not None):
            return
        options = StateDictOptions(cpu_offload=True)
        state = {
            WEIGHTS: get_model_state_dict(self.module, options=options),
            OPTIMIZER: get_optimizer_state_dict(self.module, self.optimizer, options=options),
        }
        try:
            write_sharded(Path(self.fabric.broadcast(str(path))), state, content)
        except OSError as error:  # on all ranks
            if self.fabric.is_global_zero:
                writer.error = error

    def load(self, path: Path) -> dict[str, Any]:
        if not is_sharded(path):
            return self._load_whole(path)
        state: dict[str, dict[str, Any]] = {
            WEIGHTS: get_model_state_dict(self.module),
            OPTIMIZER: get_optimizer_state_dict(self.module, self.optimizer),
        }
        content = load_sharded(path, state)  # of a run on any number of ranks
        self.module.load_state_dict(state[WEIGHTS])
        options = StateDictOptions(cpu_offload=True)
        set_optimizer_state_dict(self.module, self.optimizer, state[OPTIMIZER], options=options)
        return content

    def _load_whole(self, path: Path) -> dict[str, Any]:
        """A checkpoint of a run whose ranks had whole weights."""
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weights = content.pop("state_dict")
        for name, parameter in self.module.named_parameters():
            assign(parameter, weights[name])
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        (stored,) = content.pop("optimizer_states")
        for number, state in stored["state"].items():
            parameter = parameters[number]
            # The fused optimizer wants its step count where the parameter is.
            restored = {"step": state["step"].to(parameter.device, copy=True)}
            for name in ("exp_avg", "exp_avg_sq"):
                restored[name] = torch.empty_like(parameter, requires_grad=False)
                assign(restored[name], state[name])
            self.optimizer.state[parameter] = restored
        return content


def _read_whole(path: Path, module: nn.Module, optimizer: AdamW) -> dict[str, Any]:
    """A sharded checkpoint as one process can load it: there AdamW's state is under the names of parameters."""
    content, tensors = read_sharded(path)
    named: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_sharded(path, OPTIMIZER)[1].items():
        name, _, entry = key.removeprefix("state.").rpartition(".")
        named.setdefault(name, {})[entry] = tensor.read()
    names = {parameter: name for name, parameter in module.named_parameters()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state = {number: named[name] for number, name in enumerate(order)}
    content["state_dict"] = {name: tensor.read() for name, tensor in tensors.items()}
    content["optimizer_states"] = [{"state": state, "param_groups": optimizer.state_dict()["param_groups"]}]
    return content
