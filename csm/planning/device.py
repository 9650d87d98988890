"""Memory of one device for microbatches of any size, and the largest that fits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from csm.config import ActivationCheckpointing, PlanConfig, StrategyName, TrainConfig
from csm.data.packing import num_slots
from csm.planning.activations import Blocks, Precision
from csm.planning.memory import Memory, Microbatch, peak_memory
from csm.planning.state import Parameters, training_state

FRAME_RATE = 12.5  # of both codecs, frames per second
GIB = 2**30

CPU_ALLOCATOR, GPU_ALLOCATOR, GPU_ALLOCATOR_COMMUNICATING = 0.27, 0.03, 0.12
"""Memory that allocators hold beyond what is in use, as a share of it. glibc keeps holes where gradients and
activations were, and returns blocks of 32 MB and more only: measured, see docs/benchmarks.md. PyTorch's allocator on a
GPU with expandable segments: recorded for strategy=single 0.4 %, for ddp and fsdp 12 % (streams of their own)."""
WHOLE = (StrategyName.single, StrategyName.ddp)  # every device holds all weights
CONTEXT_GIB, NCCL_GIB = 1.0, 1.0  # CUDA context with libraries' workspaces; communication buffers


@dataclass(frozen=True)
class Device:
    """One of the devices of a run."""

    memory: float | None  # bytes of a GPU; None: a CPU's is not known here
    gpus: int  # devices of the run
    data_ranks: int  # devices, or groups of tensor-parallel devices, that train on different rows
    audio_share: float  # frames among the positions of a row

    @property
    def is_gpu(self) -> bool:
        return self.memory is not None


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device with one kind of activation checkpointing."""

    peak: Memory
    allocator: float
    context: float
    available: float | None  # None: a CPU's is not known here
    host: float  # of host memory, for this device's share of what is offloaded
    largest_micro_batch_size: int | None  # rows that fit and divide the step; None: not one row, or a CPU

    @property
    def total(self) -> float:
        return self.peak.total + self.allocator + self.context

    @property
    def fits(self) -> bool:
        return self.available is None or self.total <= self.available


def audio_share(options: PlanConfig) -> float:
    """Frames among the positions of a row."""
    return FRAME_RATE / (FRAME_RATE + options.text_tokens_per_second)


def precision(config: TrainConfig, on_gpu: bool) -> Precision:
    """Raises ValueError for a precision that training does not know."""
    bf16 = Precision.autocast if config.strategy.name in WHOLE else Precision.bf16
    known = {"32-true": Precision.fp32, "bf16-mixed": bf16, "auto": bf16 if on_gpu else Precision.fp32}
    if config.trainer.precision not in known:
        raise ValueError(f"no plan for trainer.precision={config.trainer.precision}; choose from {', '.join(known)}")
    return known[config.trainer.precision]


def slots(config: TrainConfig, share: float) -> int:
    """Frames of a row that the depth decoder computes; share: of audio among the positions."""
    if config.loss.decoder_frame_ratio == 1:  # all of them: slots that no frame fills are cut off
        return math.ceil(config.data.max_seq_len * share)
    return num_slots(config.data.max_seq_len, config.loss.decoder_frame_ratio)


def _blocks(config: TrainConfig, on_gpu: bool) -> Blocks:
    if config.trainer.compile:
        return Blocks.compiled if on_gpu else Blocks.fused
    # Adapters are called as plain modules.
    return Blocks.plain if on_gpu or config.lora.rank else Blocks.fused


def _allocator(config: TrainConfig, on_gpu: bool) -> float:
    if not on_gpu:
        return CPU_ALLOCATOR
    return GPU_ALLOCATOR if config.strategy.name is StrategyName.single else GPU_ALLOCATOR_COMMUNICATING


def memory_plan(
    config: TrainConfig,
    device: Device,
    parameters: Parameters,
    rows: int,
    micro_batch_size: int,
    level: ActivationCheckpointing,
) -> MemoryPlan:
    """rows: of one data rank in a step, a multiple of `micro_batch_size`."""
    sharing = config.strategy.tensor_parallel_size
    own = parameters.on_each_of(sharing, config.model)
    computation = precision(config, device.is_gpu)
    blocks = _blocks(config, device.is_gpu)
    context = (CONTEXT_GIB + (NCCL_GIB if device.gpus > 1 else 0)) * GIB if device.is_gpu else 0.0

    def plan_of(size: int, largest: int | None = None) -> MemoryPlan:
        state = training_state(config.strategy, own, device.data_ranks, computation, rows > size)
        frames = size * slots(config, device.audio_share)
        microbatch = Microbatch(size, config.data.max_seq_len, frames, config.loss.decoder_chunk)
        peak = peak_memory(config.model, own, state, microbatch, computation, level, blocks, sharing)
        allocator = _allocator(config, device.is_gpu) * peak.total
        return MemoryPlan(peak, allocator, context, device.memory, state.host, largest)

    sizes = [size for size in range(rows, 0, -1) if rows % size == 0] if device.is_gpu else []
    return plan_of(micro_batch_size, next((size for size in sizes if plan_of(size).fits), None))


def microbatch_advice(config: TrainConfig, memory: float, gpus: int) -> str:
    """One line for the start of a run on GPUs of so many bytes: the microbatch, and the largest that would fit."""
    data_ranks = gpus // config.strategy.tensor_parallel_size
    device = Device(memory, gpus, data_ranks, audio_share(PlanConfig()))
    parameters = Parameters.of(config.model, config.lora, config.freeze)
    rows, size = config.data.global_batch_size // data_ranks, config.data.micro_batch_size
    plan = memory_plan(config, device, parameters, rows, size, config.trainer.activation_checkpointing)
    largest = plan.largest_micro_batch_size
    return (
        f"data.micro_batch_size={size} needs {plan.total / GIB:.0f} of {memory / GIB:.0f} GiB as planned; "
        f"the largest that fits is {largest or 'not even 1'}"
    )
