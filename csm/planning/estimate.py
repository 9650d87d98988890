"""From a training configuration and an amount of audio to memory, time and storage."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from csm.config import ActivationCheckpointing, CodeLayout, PlanConfig, StrategyConfig, StrategyName, TrainConfig
from csm.model.flops import GPUS, Gpu, Work, training_flops
from csm.planning.activations import Precision
from csm.planning.device import FRAME_RATE, GIB, Device, MemoryPlan, audio_share, memory_plan, precision, slots
from csm.planning.state import Parameters
from csm.validate import validate_tensor_parallel

CONVERSATION_SECONDS = 120.0  # of data_prep/config/packing.py, ConversationConfig.max_seconds
TURN_SECONDS = 5.0
SAMPLE_OVERHEAD = 2 * 512 + 2 * 256 + 128 + 522  # tar headers and padding, npy header, the sample's own JSON fields
TURN_OVERHEAD = 195  # JSON of a turn without its text and without the times of words, where it was recognized
BYTES_PER_TEXT_TOKEN = 4.0


@dataclass(frozen=True)
class Plan:
    """Everything `csm plan` prints; bytes, seconds and FLOPs unless a name says otherwise."""

    parameters: int
    trained_parameters: int
    gpu: str
    gpus: int
    nodes: int
    strategy: StrategyConfig
    precision: Precision
    global_batch_size: int
    micro_batch_size: int
    microbatches: int  # on one device
    data_ranks: int  # devices, or groups of tensor-parallel devices, that train on different rows
    memory: dict[str, MemoryPlan]  # by trainer.activation_checkpointing
    host_memory_per_node: float
    positions_per_step: int
    audio_frames_per_step: float
    decoder_frames_per_step: float
    flops_per_step: float  # each counted once, as for MFU
    device_flops_per_step: float  # of one device, with the parts that every tensor-parallel rank computes
    hardware_flops_per_step: float  # of all devices, with trainer.activation_checkpointing=full
    step_seconds: float | None
    positions_per_second: float | None
    steps: int
    days: float | None
    gpu_hours: float | None
    codes_storage: float
    shards_storage: float
    checkpoint_storage: float
    export_storage: float
    notes: list[str]


def make_plan(config: TrainConfig, options: PlanConfig) -> Plan:
    """Raises ValueError for an unknown processor, strategy or precision, naming the choices, a wrong amount, or a model
    without a depth decoder."""
    layout = config.model.layout
    if layout is not CodeLayout.depth:
        raise ValueError(f"model.layout={layout.value} has no plan: memory is known of CSM alone, model.layout=depth")
    gpu = _gpu(options.gpu)
    gpus = _gpus(config, options)
    strategy = config.strategy
    if strategy.name is StrategyName.single and gpus > 1:
        raise ValueError(f"strategy=single is for one device, and gpus={gpus}; choose strategy=ddp or strategy=fsdp")
    validate_tensor_parallel(config, gpus)
    for name in ("hours", "epochs", "mfu", "gpus_per_node"):
        if getattr(options, name) <= 0:
            raise ValueError(f"{name}={getattr(options, name)} must be greater than 0")
    if options.mfu > 1:
        raise ValueError(f"mfu={options.mfu} is a share of the peak: at most 1")
    data, notes = config.data, []
    rows, per_microbatch = data.global_batch_size, data.micro_batch_size
    sharing = strategy.tensor_parallel_size
    data_ranks = gpus // sharing
    if rows % (per_microbatch * data_ranks):
        rows = math.ceil(rows / (per_microbatch * data_ranks)) * per_microbatch * data_ranks
        groups = f"{data_ranks} devices" if sharing == 1 else f"{data_ranks} groups of {sharing} devices"
        notes.append(
            f"data.global_batch_size={data.global_batch_size} is no multiple of {groups} x data.micro_batch_size="
            f"{per_microbatch}; planned with data.global_batch_size={rows}"
        )
    microbatches = rows // (per_microbatch * data_ranks)
    if sharing > options.gpus_per_node:
        notes.append(
            f"strategy.tensor_parallel_size={sharing} exceeds gpus_per_node={options.gpus_per_node}: activations would "
            "travel between nodes in every block, for which no time is planned"
        )

    parameters = Parameters.of(config.model, config.lora, config.freeze)
    available = None if gpu is None else gpu.memory_gib * GIB
    device = Device(available, gpus, data_ranks, audio_share(options))
    memory = {
        level.value: memory_plan(config, device, parameters, rows // data_ranks, per_microbatch, level)
        for level in ActivationCheckpointing
    }

    positions = rows * data.max_seq_len
    audio_frames = positions * device.audio_share
    decoder_frames = rows * slots(config, device.audio_share)
    # One document to a row: the most that attention can cost.
    flops = training_flops(
        config.model, Work(positions, rows * data.max_seq_len**2, round(audio_frames), decoder_frames)
    )
    on_device = flops.on_each_of(sharing)  # of all rows; a device has those of its data rank
    seconds = None if gpu is None else on_device.model / data_ranks / (gpu.peak_flops * options.mfu)
    frames = options.hours * 3600 * FRAME_RATE
    steps = math.ceil(frames * options.epochs / device.audio_share / positions)
    if config.lora.rank or config.freeze:
        notes.append("FLOPs are those of training all weights; with adapters or frozen parts, up to a third less")
    codes = frames * config.model.num_codebooks * 2
    return Plan(
        parameters=parameters.count,
        trained_parameters=parameters.trained_count,
        gpu="cpu" if gpu is None else gpu.key,
        gpus=gpus,
        nodes=math.ceil(gpus / options.gpus_per_node),
        strategy=strategy,
        precision=precision(config, gpu is not None),
        global_batch_size=rows,
        micro_batch_size=per_microbatch,
        microbatches=microbatches,
        data_ranks=data_ranks,
        memory=memory,
        host_memory_per_node=memory["none"].host * min(gpus, options.gpus_per_node),
        positions_per_step=positions,
        audio_frames_per_step=audio_frames,
        decoder_frames_per_step=decoder_frames,
        flops_per_step=flops.model,
        device_flops_per_step=on_device.model / data_ranks,
        hardware_flops_per_step=on_device.hardware_full_checkpointing * sharing,
        step_seconds=seconds,
        positions_per_second=None if seconds is None else positions / seconds,
        steps=steps,
        days=None if seconds is None else steps * seconds / 86400,
        gpu_hours=None if seconds is None else steps * seconds * gpus / 3600,
        codes_storage=codes,
        shards_storage=codes + _overhead(options),
        checkpoint_storage=4 * parameters.count + 8 * parameters.trained_count,
        export_storage=4 * parameters.count,
        notes=notes,
    )


def remedy(config: TrainConfig, options: PlanConfig, plan: Plan) -> str | None:
    """The smallest change of the batch or the strategy with which the plan fits, as overrides; None if none does."""
    if any(memory.fits for memory in plan.memory.values()):
        return None
    strategies, sharing = {"": config.strategy}, config.strategy.tensor_parallel_size
    if plan.gpus > 1:
        strategies["strategy=fsdp"] = StrategyConfig(StrategyName.fsdp, tensor_parallel_size=sharing)
    strategies["strategy=fsdp_offload"] = StrategyConfig(
        StrategyName.fsdp, cpu_offload=True, tensor_parallel_size=sharing, reduce_every_microbatch=True
    )
    fewer = [rows for rows in (4, 2, 1) if rows < config.data.micro_batch_size]
    for word, strategy in strategies.items():
        for rows in (config.data.micro_batch_size, *fewer):
            data = replace(config.data, micro_batch_size=rows)
            changed = make_plan(replace(config, data=data, strategy=strategy), options)
            if any(memory.fits for memory in changed.memory.values()):
                words = [word] if word else []
                words += [f"data.micro_batch_size={rows}"] if rows in fewer else []
                return " ".join(words)
    return None


def _gpu(key: str) -> Gpu | None:
    if key == "cpu":
        return None
    found = next((gpu for gpu in GPUS if gpu.key == key.lower()), None)
    if found is None:
        raise ValueError(f"gpu={key} is not in the table; choose from cpu, {', '.join(gpu.key for gpu in GPUS)}")
    return found


def _gpus(config: TrainConfig, options: PlanConfig) -> int:
    gpus = options.gpus
    if gpus is None:
        devices = config.trainer.devices
        if not isinstance(devices, int) or devices < 1:
            raise ValueError(f"trainer.devices={devices} does not say how many there are; give gpus=N")
        gpus = devices * config.trainer.num_nodes
    if gpus < 1:
        raise ValueError(f"gpus={gpus} must be at least 1")
    return gpus


def _overhead(options: PlanConfig) -> float:
    """Bytes in shards other than codes."""
    seconds = options.hours * 3600
    per_second = SAMPLE_OVERHEAD / CONVERSATION_SECONDS + TURN_OVERHEAD / TURN_SECONDS
    return seconds * (per_second + options.text_tokens_per_second * BYTES_PER_TEXT_TOKEN)
