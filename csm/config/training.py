"""Options of train.py and of `csm plan`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from csm.config.evaluation import SpeakerKind
from csm.config.model import CodecConfig, CSMConfig, TokenizerConfig


@dataclass
class SourceConfig:
    """One dataset of a mixture."""

    path: str = MISSING
    """Folder or URL of the dataset."""
    weight: float = 1.0
    """Relative share of the rows: weight / sum of the weights of all sources that are not finished."""
    final_weight: float | None = None
    """Weight that `weight` has moved to, in equal steps, after `data.mix_steps`; null: it stays."""
    max_epochs: int | None = None
    """Passes over the dataset before it leaves the mixture; null: as many as the run needs."""


@dataclass
class DataConfig:
    """Prepared datasets (folders with dataset.json, written by `python -m data_prep`) and how they are batched.

    Set either `path` or `sources`. A path is a folder or an fsspec URL (s3://, gs://, hf://, https://, ...).
    """

    path: str | None = None
    """A single dataset, repeated for as long as the run lasts."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """A mixture: name -> dataset, weight, final_weight and max_epochs."""
    mix_steps: int = 0
    """Optimizer steps over which the weights of the mixture move to their `final_weight`; 0: they stay."""
    max_seq_len: int = 2048
    """Length S of a row (a packed sequence), in positions."""
    global_batch_size: int = 8
    """Rows per optimizer step, over all ranks and microbatches; a multiple of `micro_batch_size` x data-parallel
    ranks."""
    micro_batch_size: int = 8
    """Rows per forward and backward pass on one rank; `csm plan` says how many fit."""
    window_shards: int = 16
    """Shards whose samples are shuffled together; only these are read at a time."""
    permute_speakers: bool = True
    """Shuffle the speaker ids within each conversation, so that an id does not stand for a voice."""
    context_dropout: float = 0.0
    """Probability, at each turn, that the turn is trained on without the turns before it."""
    text_dropout: float = 0.0
    """Probability, for each turn, that its text is empty ("[speaker]" alone): for classifier-free guidance."""
    frame_dropout: float = 0.0
    """Probability, for each frame, that it is hidden from the input: it is still predicted, and later frames have to be
    predicted from the text and the other frames. Against memorizing small datasets; validation sees all frames."""
    codebook_dropout: float = 0.0
    """Probability, for each document (a conversation, or a part that `context_dropout` leaves of it), that the model
    sees only the first n codebooks of its frames, ln(n) being uniform; all are predicted. It then also knows frames of
    fewer codebooks, as generation with `num_codebooks` makes them."""
    code_noise: float = 0.0
    """Probability, for each code of a frame, that the backbone reads another one drawn at random; what is predicted
    stays. So it learns to go on after mistakes, its own included; ends of speech are read as they are."""
    loss_turns: str = "all"
    """Turns that are predicted, in training and validation: `all`, `last` of each conversation (or of the part that
    `context_dropout` leaves of it), or `speaker:N`, those of a stored speaker id. The others are read as context."""
    num_workers: int = 2
    """Data-loading processes per rank; 0 loads in the training process."""
    cache_dir: str = "~/.cache/csm"
    """Node-local folder for remote shards, and for token counts that cannot be stored next to their dataset."""
    cache_gb: float = 100.0
    """Limit of the remote shards kept in `cache_dir`, in 10^9 bytes, over all datasets."""
    prepare: Any = None
    """A `_target_` called with the configuration before training, to make the dataset if it does not exist yet."""


@dataclass
class LossConfig:
    """loss = c0_weight * CE(c0) + decoder_weight * mean over c1..c{K-1} of CE; see csm/model/loss.py."""

    c0_weight: float = 1.0
    """Weight of the backbone's loss (codebook 0)."""
    decoder_weight: float = 1.0
    """Weight of the depth decoder's mean loss (codebooks 1 to K-1)."""
    eos_weight: float = 1.0
    """Weight of end-of-speech frames in both terms; validation has no weights."""
    decoder_frame_ratio: int = 16
    """The depth decoder is trained on 1/ratio of the positions of a row; 1 trains it on every frame. Models without one
    (`model.layout`) are trained on every code."""
    decoder_chunk: int = 512
    """Frames per pass of the depth decoder, which bounds the memory of its activations."""


@dataclass
class LoraConfig:
    """Low-rank adapters on frozen linear layers (csm/model/lora.py)."""

    rank: int = 0
    """Rank of the adapters; 0: none, all weights are trained."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout on the adapters' input; its random numbers are not reproduced when a run is resumed."""
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Linear layers that get an adapter."""
    stacks: list[str] = field(default_factory=lambda: ["backbone", "decoder"])
    """Stacks whose layers get adapters."""
    train_modules: list[str] = field(default_factory=list)
    """Modules trained in full next to the adapters, such as codebook0_head."""


class ActivationCheckpointing(Enum):
    """Activations that the backward pass recomputes instead of keeping."""

    none = "none"
    """Keep everything."""
    selective = "selective"
    """Recompute all but matrix products and attention: much less memory for a few percent of time."""
    full = "full"
    """Recompute whole blocks: least memory, a third more time."""


class Schedule(Enum):
    cosine = "cosine"
    """Cosine decay from the end of the warm-up to the last step."""
    wsd = "wsd"
    """Warm-up, stable, decay: constant, then linear over the last `decay_steps`."""


@dataclass
class OptimConfig:
    """AdamW in three parameter groups, each with its own multiple of `lr`."""

    lr: float = 3e-4
    """Peak learning rate."""
    backbone_lr_scale: float = 1.0
    """Multiple of `lr` for the backbone."""
    decoder_lr_scale: float = 1.0
    """Multiple of `lr` for the depth decoder, the projection into it and all heads."""
    embeddings_lr_scale: float = 1.0
    """Multiple of `lr` for the text and audio embeddings."""
    beta1: float = 0.9
    """Decay of AdamW's first moment."""
    beta2: float = 0.95
    """Decay of AdamW's second moment."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.1
    """Decoupled weight decay; not applied to norms and embeddings."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0 disables clipping."""
    schedule: Schedule = Schedule.cosine
    """Shape of the learning rate over the run."""
    warmup_steps: int = 100
    """Steps of linear warm-up to `lr`."""
    decay_steps: int = 0
    """Length of the final decay; `wsd` only."""
    min_lr_ratio: float = 0.1
    """Final learning rate as a share of `lr`."""


class Profile(Enum):
    """Profiling of the training loop."""

    off = "off"
    """None."""
    steps = "steps"
    """A few steps, with torch.profiler."""


@dataclass
class EarlyStopConfig:
    """Ending a run by what validation finds, and choosing best.ckpt by it."""

    metric: str | None = None
    """A metric of validation or samples (docs/metrics.md), such as samples/wer or samples/similarity; its name
    says whether more is better. null: best.ckpt has the lowest val/loss, and nothing ends the run early."""
    patience: int = 5
    """The run ends after this many values in a row that are no better than the best; the export is then the best."""


@dataclass
class TrainerConfig:
    """Hardware, precision, length of the run and cadences. All cadences count optimizer steps."""

    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu, ..."""
    devices: Any = 1
    """Devices per node, as in Lightning: a number, a list of indices, or "auto"."""
    num_nodes: int = 1
    """Number of machines."""
    precision: str = "auto"
    """`bf16-mixed`, `32-true`, or `auto`: bf16-mixed on hardware that computes in bf16, else 32-true."""
    max_steps: int = MISSING
    """Optimizer steps of the run."""
    log_every_steps: int = 10
    """Steps between two records of training metrics; 0: none."""
    val_every_steps: int = 500
    """Steps between two validations; 0: none."""
    checkpoint_every_steps: int = 500
    """Steps between two checkpoints; 0: only after validations and at the end."""
    keep_every_steps: int = 0
    """Keep step-*.ckpt this often, in addition to the newest and the best checkpoint; 0: none."""
    async_checkpoint: bool = True
    """Write checkpoint files in the background, from a copy in host memory."""
    requeue: bool = True
    """Under Slurm: on SIGUSR1, put the job back into the queue once it has saved."""
    sample_every_steps: int = 0
    """Steps between two sets of audio samples, generated during validation, so with a split "val" only; 0: none."""
    sample_prompts: int = 2
    """Turns that are spoken for audio samples, each the last one of a conversation of split "val" that is trained on
    (`data.loss_turns`); of a mixture, from its sources by their weights."""
    sample_asr: str | None = None
    """Recognizer of samples/wer, through faster-whisper: `bundled` (small, English), a size, folder or repository."""
    sample_language: str = "en"
    """Language of the samples, for `sample_asr`."""
    sample_similarity: SpeakerKind | None = None
    """Speaker encoder of samples/similarity."""
    early_stop: EarlyStopConfig = field(default_factory=EarlyStopConfig)
    """Early stop."""
    max_skipped_in_a_row: int = 5
    """A step with non-finite gradients is skipped; this many in a row stop the run."""
    spike_sigmas: float = 6.0
    """Record a loss this many standard deviations above its running mean as a spike; 0: off."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, such as 0.9999; 0: none."""
    validate_ema: bool = False
    """Use the averaged weights for validation, audio samples and the final export."""
    deterministic: bool = False
    """Restrict PyTorch to deterministic algorithms: on CUDA, resumed runs then repeat bit for bit."""
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none
    """Activation checkpointing in the blocks of both stacks."""
    compile: bool = False
    """Apply torch.compile to the blocks of both stacks."""
    profile: Profile = Profile.off
    """`steps`: torch.profiler records steps 4 to 6 of this process and writes run_dir/profile/."""


class StrategyName(Enum):
    single = "single"
    """One device."""
    ddp = "ddp"
    """Data parallel: every device holds the whole model."""
    fsdp = "fsdp"
    """Fully sharded data parallel (FSDP2), optionally with tensor parallelism."""
    deepspeed_zero2 = "deepspeed_zero2"
    """DeepSpeed ZeRO stage 2: gradients and optimizer state are sharded."""
    deepspeed_zero3 = "deepspeed_zero3"
    """DeepSpeed ZeRO stage 3: weights are sharded as well."""


@dataclass
class StrategyConfig:
    """Distribution of the optimizer step over devices (docs/strategies.md)."""

    name: StrategyName = StrategyName.single
    """Name of the strategy."""
    cpu_offload: bool = False
    """fsdp, deepspeed: keep the optimizer state (fsdp and zero3: the weights too) in host memory."""
    tensor_parallel_size: int = 1
    """fsdp: ranks that share every matrix of the backbone; divides the number of devices."""
    reduce_every_microbatch: bool = False
    """fsdp: reduce gradients after every microbatch: more traffic, but no unsharded fp32 gradients in between."""


@dataclass
class TrainConfig:
    """Options of `python train.py`."""

    name: str = "csm"
    """Name of the run; part of the default `run_dir` and shown by loggers."""
    run_dir: str = MISSING
    """Folder for checkpoints, metrics, samples and the final export."""
    seed: int = 1234
    """Seed of weights, data order and every random draw of the run."""
    ckpt_path: str | None = None
    """Checkpoint to resume from; "last": the newest one in `run_dir`, if any; null: start anew."""
    resume_anyway: list[str] = field(default_factory=list)
    """Options that may differ from the checkpoint's although a resumed run refuses that, such as
    [data.global_batch_size]; see docs/checkpoints.md for those that may always change, and never."""
    init_from: str | None = None
    """Weights to start from: a CSM in any format, or a Llama for the backbone; a path or hub id."""
    model: CSMConfig = field(default_factory=CSMConfig)
    """Shape of the model."""
    codec: CodecConfig = field(default_factory=CodecConfig)
    """Audio codec; must match the dataset's."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Text tokenizer."""
    data: DataConfig = field(default_factory=DataConfig)
    """Datasets and batches."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Terms of the objective."""
    freeze: list[str] = field(default_factory=list)
    """Parts that stay as they are: backbone, decoder (with projection and heads), embeddings, text_embeddings."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Low-rank adapters."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and learning-rate schedule."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Hardware, precision, length and cadences."""
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    """Distribution over devices."""
    logger: dict[str, Any] = field(default_factory=dict)
    """Loggers: name -> {_target_: a Lightning logger, ...}."""
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Name -> {_target_: ...}: objects whose methods on_train_start, on_train_batch_end, on_validation_end,
    on_save_checkpoint and on_train_end are called (docs/training.md)."""


@dataclass
class PlanConfig:
    """Options of `csm plan` itself; all others on its command line are those of train.py."""

    gpu: str = "h100"
    """A key of the table in csm/model/flops.py, or "cpu"."""
    gpus: int | None = None
    """Number of devices; null: trainer.devices x trainer.num_nodes."""
    gpus_per_node: int = 8
    """Devices of one machine."""
    hours: float = 1000.0
    """Hours of audio in the dataset."""
    epochs: float = 1.0
    """Passes over the dataset."""
    mfu: float = 0.4
    """Share of its peak that a device reaches, counting the FLOPs of csm/model/flops.py."""
    text_tokens_per_second: float = 3.0
    """Text tokens per second of audio."""
