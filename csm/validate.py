"""Every rule across options of train.py, checked before anything is loaded."""

from __future__ import annotations

from csm.config import CodeLayout, StrategyName, TrainConfig, TrainerConfig
from csm.data.rows import predicted_speaker
from csm.data.stream import RankShare
from csm.kernels.cuda import flex_limit
from csm.model.freeze import PARTS
from csm.parallel.plan import DEEPSPEED, SHARDING, precision
from csm.stability.early_stop import UNDIRECTED
from csm.stability.sample_metrics import METRICS


def validate_train_config(config: TrainConfig, num_devices: int, device_type: str) -> None:
    """Raises ValueError, naming option and remedy, for options that do not go together.

    num_devices: of all nodes; device_type: "cuda" or "cpu"
    """
    _validate_intervals(config)
    _validate_layout(config)
    precision(config.trainer)
    _validate_average(config)
    _validate_frozen(config)
    _validate_strategy(config, num_devices, device_type)
    validate_tensor_parallel(config, num_devices)
    _validate_data(config, num_devices)


def _validate_intervals(config: TrainConfig) -> None:
    for name in ("log", "val", "checkpoint", "keep", "sample"):
        value = getattr(config.trainer, f"{name}_every_steps")
        if value < 0:
            raise ValueError(f"trainer.{name}_every_steps={value} must be a number of steps, or 0 for never")
    if config.trainer.sample_every_steps and not config.trainer.val_every_steps:
        raise ValueError(
            "trainer.sample_every_steps needs validation, which is when samples are spoken: set trainer.val_every_steps"
        )
    if config.trainer.sample_prompts < 1:
        raise ValueError(
            f"trainer.sample_prompts={config.trainer.sample_prompts} must be at least 1; without samples, set "
            "trainer.sample_every_steps=0"
        )
    _validate_early_stop(config.trainer)


def _validate_early_stop(options: TrainerConfig) -> None:
    metric, patience = options.early_stop.metric, options.early_stop.patience
    if metric is None:
        return
    kind, _, name = metric.partition("/")
    where = f"trainer.early_stop.metric={metric}"
    if kind not in ("val", "samples") or (kind == "samples" and name not in METRICS):
        raise ValueError(f"{where}: choose val/loss or another val/*, or samples/ with one of {', '.join(METRICS)}")
    if any(name.startswith(part) for part in UNDIRECTED):
        raise ValueError(f"{where}: neither its lowest nor its highest value is the best; choose another metric")
    if patience < 1:
        raise ValueError(f"trainer.early_stop.patience={patience} must be at least 1")
    missing = {"wer": "sample_asr", "similarity": "sample_similarity"}.get(name)
    if kind == "samples" and missing is not None and getattr(options, missing) is None:
        raise ValueError(f"{where} needs its judge: set trainer.{missing}")
    if kind == "samples" and not options.sample_every_steps:
        raise ValueError(f"{where} is measured on audio samples: set trainer.sample_every_steps")
    if not options.val_every_steps:
        raise ValueError(f"{where} needs validation: set trainer.val_every_steps")


def _validate_layout(config: TrainConfig) -> None:
    """Refuses options that need the depth decoder, or a format of checkpoints that only CSM has."""
    if config.model.layout is CodeLayout.depth:
        return
    where = f"model.layout={config.model.layout.value}"
    if config.trainer.sample_every_steps:
        raise ValueError(f"{where} cannot speak samples: set trainer.sample_every_steps=0")
    if config.lora.rank:
        raise ValueError(f"{where} does not go with lora.rank={config.lora.rank}: adapters are for CSM, layout=depth")
    if config.strategy.name in DEEPSPEED:
        raise ValueError(f"{where} does not go with strategy={config.strategy.name.value}; choose strategy=fsdp")


def _validate_strategy(config: TrainConfig, num_devices: int, device_type: str) -> None:
    options, name = config.strategy, config.strategy.name
    if name in DEEPSPEED and device_type != "cuda":
        raise ValueError(f"strategy={name.value} needs CUDA devices; strategy=fsdp shards on any")
    _validate_attention(config, device_type)
    if name is StrategyName.deepspeed_zero3 and config.trainer.compile:
        raise ValueError("trainer.compile=true does not go with deepspeed_zero3, which swaps weights inside the blocks")
    if name is StrategyName.single and num_devices > 1:
        raise ValueError(
            f"strategy=single trains on one device, and trainer.devices={config.trainer.devices} with "
            f"trainer.num_nodes={config.trainer.num_nodes} asks for {num_devices}; choose strategy=ddp or strategy=fsdp"
        )
    if options.cpu_offload and name not in SHARDING:
        raise ValueError(f"strategy.cpu_offload=true needs strategy=fsdp or deepspeed_zero2/3, not {name.value}")
    if name is not StrategyName.fsdp and options.reduce_every_microbatch:
        raise ValueError(f"strategy.reduce_every_microbatch belongs to strategy=fsdp, not to strategy={name.value}")


def _validate_attention(config: TrainConfig, device_type: str) -> None:
    """Without compiled blocks such models attend by other kernels (csm/kernels/cuda.py)."""
    if device_type != "cuda" or not config.trainer.compile:
        return
    backbone = config.model.backbone
    limit = flex_limit(backbone.dim // backbone.heads, precision(config.trainer) == "bf16-mixed")
    if limit is not None:
        raise ValueError(
            f"trainer.compile=true: {limit}, and model.backbone has {backbone.heads} heads in a width of "
            f"{backbone.dim}; set trainer.compile=false"
        )


def validate_tensor_parallel(config: TrainConfig, num_devices: int) -> None:
    """Raises ValueError if the devices cannot form groups of `strategy.tensor_parallel_size` ranks that share the
    backbone's matrices."""
    name, size, backbone = config.strategy.name, config.strategy.tensor_parallel_size, config.model.backbone
    if name is not StrategyName.fsdp and size != 1:
        raise ValueError(f"strategy.tensor_parallel_size belongs to strategy=fsdp, not to strategy={name.value}")
    if size < 1 or num_devices % size:
        raise ValueError(f"strategy.tensor_parallel_size={size} does not divide the number of devices, {num_devices}")
    for dimension in ("heads", "kv_heads", "ffn_dim"):
        value = getattr(backbone, dimension)
        if value % size:
            raise ValueError(f"strategy.tensor_parallel_size={size} does not divide model.backbone.{dimension}={value}")
    if size > 1 and config.lora.rank:
        raise ValueError("LoRA adapters are not split: use strategy.tensor_parallel_size=1 with lora.rank > 0")


def _validate_average(config: TrainConfig) -> None:
    options = config.trainer
    if not 0 <= options.ema_decay < 1:
        raise ValueError(f"trainer.ema_decay={options.ema_decay} must be at least 0 and below 1, such as 0.9999")
    if options.validate_ema and not options.ema_decay:
        raise ValueError("trainer.validate_ema=true needs averaged weights: set trainer.ema_decay, such as 0.9999")
    if options.ema_decay and config.strategy.name in DEEPSPEED:
        raise ValueError(
            f"trainer.ema_decay does not go with strategy={config.strategy.name.value}, which keeps the fp32 weights "
            "to itself; choose strategy=fsdp"
        )


def _validate_frozen(config: TrainConfig) -> None:
    for part in config.freeze:
        if part not in PARTS:
            raise ValueError(f"freeze: {part!r} is unknown; choose from {', '.join(PARTS)}")
    if not config.freeze:
        return
    listed = f"freeze=[{','.join(config.freeze)}]"
    if config.lora.rank:
        raise ValueError(
            f"{listed} does not go with lora.rank={config.lora.rank}: adapters freeze all other weights; choose their "
            "stacks with lora.stacks, and what else is trained with lora.train_modules"
        )
    if {"backbone", "decoder", "embeddings"} <= set(config.freeze):
        raise ValueError(f"{listed} leaves nothing to train; leave one of backbone, decoder and embeddings out")


def _validate_data(config: TrainConfig, num_devices: int) -> None:
    data = config.data
    predicted_speaker(data.loss_turns)  # raises ValueError
    for name in ("context_dropout", "text_dropout", "frame_dropout", "codebook_dropout", "code_noise"):
        value = getattr(data, name)
        if not 0 <= value <= 1:
            raise ValueError(f"data.{name}={value} is a probability: choose 0 to 1, such as 0.1")
    moving = [name for name, source in data.sources.items() if source.final_weight is not None]
    if bool(moving) != (data.mix_steps > 0):
        where = f"data.sources.{moving[0]}.final_weight" if moving else f"data.mix_steps={data.mix_steps}"
        raise ValueError(
            f"{where}: weights of a mixture move over data.mix_steps > 0 steps to the final_weight of one source or "
            "more; set both or neither"
        )
    if config.loss.eos_weight < 0:
        raise ValueError(f"loss.eos_weight={config.loss.eos_weight} must be at least 0; 1 weighs all frames alike")
    if data.max_seq_len > config.model.max_seq_len:
        raise ValueError(f"data.max_seq_len={data.max_seq_len} exceeds model.max_seq_len={config.model.max_seq_len}")
    if data.window_shards < 1:
        raise ValueError(f"data.window_shards={data.window_shards} must be at least 1")
    ranks = num_devices // config.strategy.tensor_parallel_size
    RankShare(data.global_batch_size, data.micro_batch_size, rank=0, world_size=ranks)  # raises ValueError
