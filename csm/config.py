"""Every option of the project, typed, in one place.

The dataclasses below are registered with Hydra as schemas (`register_schemas`), so the YAML files under
`configs/` only set values: an unknown key or a value of the wrong type fails when the configuration is composed,
with the key's name. Objects of other libraries (loggers, extra callbacks) are the only `_target_` nodes.

    train.py       -> TrainConfig
    evaluate.py    -> EvaluateConfig

Those of data preparation are in data_prep/config.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

RENAMED_OPTIONS = {
    "data.max_positions": "data.max_seq_len",
    "data.rows_per_microbatch": "data.micro_batch_size",
    "data.rows_per_step": "data.global_batch_size",
    "model.max_positions": "model.max_seq_len",
    "trainer.recompute": "trainer.activation_checkpointing",
}
"""Earlier names of options of train.py, as they stand in old checkpoints."""

RESERVED_CODES = 3
"""Ids per codebook beyond the codec's own: the released CSM has 2051 = 2048 + 3 (unused start/stop/pad ids)."""


# ---------------------------------------------------------------------------------------------------- model


@dataclass
class RopeConfig:
    """Llama-3 scaled rotary embedding (the released CSM uses the same values in both stacks)."""

    base: float = 500_000.0
    scale_factor: float = 32.0  # 1.0 switches the scaling off
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    old_context: int = 8192


@dataclass
class TransformerConfig:
    """One Llama-style stack."""

    layers: int = MISSING
    dim: int = MISSING
    heads: int = MISSING
    kv_heads: int = MISSING  # grouped-query attention: must divide `heads`
    ffn_dim: int = MISSING


@dataclass
class CSMConfig:
    """Shape of a CSM: a backbone over positions and a depth decoder over the codebooks of one frame."""

    backbone: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: TransformerConfig = field(default_factory=TransformerConfig)
    text_vocab_size: int = MISSING
    codebook_size: int = MISSING  # the codec's entries per codebook, without the reserved ids
    num_codebooks: int = MISSING  # K
    max_seq_len: int = 2048  # longest sequence the backbone is used with
    norm_eps: float = 1e-5
    rope: RopeConfig = field(default_factory=RopeConfig)
    initializer_std: float = 0.02

    @property
    def audio_vocab_size(self) -> int:
        """V: ids per codebook, reserved ones included."""
        return self.codebook_size + RESERVED_CODES


# ------------------------------------------------------------------------------------- codec and tokenizer


class CodecKind(Enum):
    mimi = "mimi"
    spectral = "spectral"


@dataclass
class CodecConfig:
    """Audio codec. `spectral` is fitted to the user's recordings and needs no download; `mimi` is Kyutai's."""

    kind: CodecKind = CodecKind.mimi
    path: str | None = None  # weights file; mimi: null = the hub repository; spectral: null = the dataset's own
    repo: str = "kyutai/moshiko-pytorch-bf16"  # mimi only
    num_codebooks: int = 32
    codebook_size: int = 2048
    device: str = "cpu"


class TokenizerKind(Enum):
    hf = "hf"
    bytes = "bytes"


@dataclass
class TokenizerConfig:
    """Text tokenizer. `hf`: any Hugging Face tokenizer directory, tokenizer.json or repo id; `bytes`: built in."""

    kind: TokenizerKind = TokenizerKind.hf
    path: str | None = None  # directory, tokenizer.json or hub repo id (hf only)
    vocab_size: int = 128_256


# ----------------------------------------------------------------------------------------------- training


@dataclass
class SourceConfig:
    """One dataset of a mixture."""

    path: str = MISSING
    weight: float = 1.0  # its share of the rows is weight / sum of the weights of all sources that are not finished
    max_epochs: int | None = None  # passes over it before it leaves the mixture; null: as many as the run takes


@dataclass
class DataConfig:
    """Prepared datasets (folders with dataset.json, written by `python -m data_prep`) and how rows are made of them.

    Either `path` or `sources` is set. A path is a folder or an fsspec URL (s3://, gs://, hf://, https://, ...).
    """

    path: str | None = None  # one dataset, passed over for as long as the run takes
    sources: dict[str, SourceConfig] = field(default_factory=dict)  # a mixture: name -> dataset, weight, max_epochs
    max_seq_len: int = 2048  # length S of a packed row
    global_batch_size: int = 8  # rows of one optimizer step, over all ranks and microbatches
    micro_batch_size: int = 8  # rows of one forward/backward pass on one rank
    window_shards: int = 16  # shards whose samples are shuffled together; no others are read meanwhile
    permute_speakers: bool = True  # shuffle speaker ids within each conversation, so that ids carry no voice
    context_dropout: float = 0.0  # chance, at each turn, that training reads it without what came before
    num_workers: int = 2
    cache_dir: str = "~/.cache/csm"  # node-local: remote datasets, and lengths of samples where they cannot lie beside
    cache_gb: float = 100.0  # remote shards kept in cache_dir, in 10^9 bytes, over all datasets
    demo: bool = False  # prepare the bundled demo recordings into `path` first if it holds no dataset


@dataclass
class LossConfig:
    """loss = c0_weight * CE(c0) + decoder_weight * mean over c1..c{K-1} of CE; see csm/model/loss.py."""

    c0_weight: float = 1.0
    decoder_weight: float = 1.0
    decoder_frame_ratio: int = 16  # the depth decoder trains on 1/ratio of the positions of a row
    decoder_chunk: int = 512  # frames per pass of the depth decoder: bounds its memory (not under fsdp, deepspeed)


@dataclass
class LoraConfig:
    """Low-rank adapters beside frozen linear layers (csm/model/lora.py)."""

    rank: int = 0  # 0: no adapters, all weights are trained
    alpha: float = 32.0  # the update is scaled by alpha / rank
    dropout: float = 0.0  # on the adapters' input; not drawn again bit for bit when a run is resumed
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    stacks: list[str] = field(default_factory=lambda: ["backbone", "decoder"])
    train_modules: list[str] = field(default_factory=list)  # trained in full beside them, such as codebook0_head


class ActivationCheckpointing(Enum):
    """What the backward pass computes again instead of keeping it (activation checkpointing)."""

    none = "none"
    selective = "selective"  # all but matrix products and attention: much less memory for a few percent of time
    full = "full"  # whole blocks: least memory, a third more time


class Schedule(Enum):
    cosine = "cosine"
    wsd = "wsd"


@dataclass
class OptimConfig:
    """AdamW in three parameter groups, each with its own multiple of `lr`."""

    lr: float = 3e-4
    backbone_lr_scale: float = 1.0
    decoder_lr_scale: float = 1.0  # depth decoder, projection and all heads
    embeddings_lr_scale: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1  # not on norms and embeddings
    grad_clip: float = 1.0  # global norm; 0: no clipping
    schedule: Schedule = Schedule.cosine
    warmup_steps: int = 100
    decay_steps: int = 0  # wsd only: length of the final decay
    min_lr_ratio: float = 0.1  # final learning rate as a share of `lr`


@dataclass
class TrainerConfig:
    """What of Lightning's Trainer one sets here, plus our own cadences (all counted in optimizer steps)."""

    accelerator: str = "auto"
    devices: Any = 1  # as in Lightning: a number, a list, or "auto"
    num_nodes: int = 1
    precision: str = "auto"  # bf16-mixed, 32-true, or auto: bf16-mixed where the processor computes in bf16
    max_steps: int = MISSING
    log_every_steps: int = 10
    val_every_steps: int = 500
    checkpoint_every_steps: int = 500
    keep_every_steps: int = 0  # besides the newest and the best, keep step-*.ckpt this often; 0: none
    async_checkpoint: bool = True  # write checkpoint files in the background, from a copy in host memory
    requeue: bool = True  # under Slurm: SIGUSR1 puts the job back into the queue once it has saved
    sample_every_steps: int = 0  # 0: no audio samples during validation
    sample_prompts: int = 2
    max_skipped_in_a_row: int = 5  # non-finite gradients skip a step; this many in a row stop the run
    spike_sigmas: float = 6.0  # a loss this many standard deviations above its running mean is recorded; 0: off
    ema_decay: float = 0.0  # of an exponential moving average of the weights, such as 0.9999; 0: none
    validate_ema: bool = False  # validation, audio samples and the final export use the averaged weights
    deterministic: bool = False
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none  # in the blocks of both stacks
    compile: bool = False  # torch.compile on the blocks of both stacks


class StrategyName(Enum):
    single = "single"
    ddp = "ddp"
    fsdp = "fsdp"
    deepspeed_zero2 = "deepspeed_zero2"
    deepspeed_zero3 = "deepspeed_zero3"


@dataclass
class StrategyConfig:
    """How the step is spread over devices (docs/strategies.md)."""

    name: StrategyName = StrategyName.single
    cpu_offload: bool = False  # fsdp, deepspeed: optimizer state (fsdp, zero3: weights too) lives in host memory
    tensor_parallel_size: int = 1  # fsdp: ranks that share every backbone matrix; divides the number of devices
    reduce_every_microbatch: bool = False  # fsdp: more traffic, but no whole fp32 gradients kept between microbatches


@dataclass
class TrainConfig:
    """Root of `python train.py`."""

    name: str = "csm"
    run_dir: str = MISSING
    seed: int = 1234
    ckpt_path: str | None = None  # checkpoint to resume from; "last" = the newest one of run_dir, if any
    resume_anyway: list[str] = field(default_factory=list)  # settings that may differ from the checkpoint's
    init_from: str | None = (
        None  # weights to start from: a CSM in any layout, or a Llama for the backbone; path or hub id
    )
    model: CSMConfig = field(default_factory=CSMConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    logger: dict[str, Any] = field(default_factory=dict)  # name -> {_target_: a Lightning logger, ...}


# ----------------------------------------------------------------------------------------------- planning


@dataclass
class PlanConfig:
    """Own keys of `csm plan`; the other words on its command line are those of train.py."""

    gpu: str = "h100"  # a key of csm/model/flops.py's table, or "cpu"
    gpus: int | None = None  # null: trainer.devices x trainer.num_nodes
    gpus_per_node: int = 8
    hours: float = 1000.0  # of audio in the dataset
    epochs: float = 1.0
    mfu: float = 0.4  # share of the peak that a device reaches, by what it computes (csm/model/flops.py)
    text_tokens_per_second: float = 3.0  # of audio


# --------------------------------------------------------------------------------------------- evaluation


class AsrKind(Enum):
    whisper_hf = "whisper_hf"
    faster_whisper = "faster_whisper"


class SpeakerKind(Enum):
    wavlm = "wavlm"
    resemblyzer = "resemblyzer"


@dataclass
class EvalConfig:
    """What is evaluated, and by whom."""

    name: str = MISSING
    prompts: str | None = None  # JSONL of prompts; null: turns of the dataset the checkpoint was trained on
    dataset: str | None = None  # dataset folder for prompts taken from it; null: the one named in the checkpoint
    split: str = "val"
    speaker: int | None = None  # only turns of this stored speaker id; null: every turn
    max_prompts: int = 16
    context_turns: int = 8  # earlier turns of the conversation given as context
    max_audio_seconds: float = 20.0
    temperature: float = 0.9  # 0 = greedy
    topk: int = 50
    seeds: list[int] = field(default_factory=lambda: [0])
    asr: AsrKind = AsrKind.whisper_hf
    asr_model: str | None = None  # null: the backend's default
    speaker_model_kind: SpeakerKind = SpeakerKind.wavlm
    speaker_model: str | None = None
    language: str = "en"
    bootstrap_samples: int = 2000


@dataclass
class EvaluateConfig:
    """Root of `python evaluate.py`."""

    checkpoint: str = MISSING  # in any layout, local or on the hub
    codec_path: str | None = None  # local Mimi weights (moshi's file), where the checkpoint carries no codec
    tokenizer_path: str | None = None  # for a checkpoint in Sesame's layout without a tokenizer
    output: str | None = None  # report folder; null: <checkpoint>/../eval-<eval.name>
    device: str = "cpu"
    eval: EvalConfig = field(default_factory=EvalConfig)


def register_schemas() -> None:
    """Makes the root schemas known to Hydra; call before `hydra.main` composes."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
