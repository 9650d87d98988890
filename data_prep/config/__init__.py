"""All options of data preparation, typed and documented; the YAML files under configs/ only set values.

The string below a field documents it; `docs/options.md` is generated from these strings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from omegaconf import MISSING

from csm.compose import Program
from csm.config import CodecConfig, TokenizerConfig
from data_prep.config.execution import (
    ExecutorConfig,
    ExecutorKind,
)
from data_prep.config.packing import (
    ConversationConfig,
    DedupConfig,
    ExportConfig,
    ExportFormat,
    PackConfig,
    ReportConfig,
)
from data_prep.config.sources import (
    PlanConfig,
    SourceConfig,
)
from data_prep.config.stages import (
    DiarizeBackend,
    DiarizeConfig,
    EncodeConfig,
    LimitsConfig,
    ScoreConfig,
    TranscribeBackend,
    TranscribeConfig,
    TurnsConfig,
    VadBackend,
    VadConfig,
)

__all__ = [
    "DATA_PREP",
    "ConversationConfig",
    "DataPrepCommand",
    "DataPrepConfig",
    "DedupConfig",
    "DiarizeBackend",
    "DiarizeConfig",
    "EncodeConfig",
    "ExecutorConfig",
    "ExecutorKind",
    "ExportConfig",
    "ExportFormat",
    "LimitsConfig",
    "PackConfig",
    "PlanConfig",
    "ReportConfig",
    "ScoreConfig",
    "SourceConfig",
    "TranscribeBackend",
    "TranscribeConfig",
    "TurnsConfig",
    "VadBackend",
    "VadConfig",
    "work_folder",
]


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
