"""The definition of a suite: which prompts, which metrics, and which published numbers it may be held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csm.codec.base import Codec
from csm.config import EvalConfig
from csm.data.dataset import ShardedDataset
from csm.evaluation.prompts import AudioSpan, EvalPrompt, PromptSet
from csm.files import sha256_of
from csm.formats.layouts import Checkpoint
from csm.inference.generator import Generator
from csm.inference.segments import Segment


@dataclass(frozen=True)
class Published:
    """A row of somebody else's table. values: as printed there, by the names of this suite's metrics.

    differs: what keeps it from being compared whatever the judges here; "": nothing that is known
    """

    system: str
    values: dict[str, str]
    source: str
    differs: str = ""


@dataclass(frozen=True)
class Suite:
    """A benchmark.

    version:   of the protocol; a change of prompts or of scoring raises it
    scoring:   which errors over what, and who is averaged how
    metrics:   names of metrics (csm/evaluation/metrics.py), the headline's first
    load:      makes the prompts of the options, the model's codec and its checkpoint
    source, licence, checksum: of its data; "" for data of your own
    requires:  what the judges must be for published rows to be comparable: words of their descriptions, and the option
               that makes them so
    timings:   measures the model's speed, for the report's timings
    control_suffix: of the names of conditions that are the control of those without it
    """

    name: str
    version: int
    scoring: str
    metrics: tuple[str, ...]
    load: Callable[[EvalConfig, Codec, Checkpoint], PromptSet]
    source: str = ""
    licence: str = ""
    checksum: str = ""
    requires: tuple[tuple[str, str], ...] = ()
    published: tuple[Published, ...] = ()
    timings: Callable[[Generator, PromptSet, EvalConfig], dict[str, Any]] | None = None
    control_suffix: str = ""

    def facts(self) -> dict[str, Any]:
        """Everything that decides comparability, as plain values."""
        return {"name": self.name, "version": self.version, "scoring": self.scoring, "metrics": list(self.metrics)}


def data_file(settings: EvalConfig, source: str, needed: str) -> Path:
    """`needed` in the folder of `eval.data`. Raises FileNotFoundError that says where the data is to be had."""
    path = Path(settings.data or "") / needed
    if settings.data is None or not path.is_file():
        here = "eval.data is not set" if settings.data is None else f"{settings.data} holds no {needed}"
        raise FileNotFoundError(f"{here}; set eval.data to a folder with {source}")
    return path


def prompt_set(prompts: list[EvalPrompt], settings: EvalConfig, listed: Path, published: int) -> PromptSet:
    """The first `eval.max_prompts` prompts. listed: the file that names them; published: how many its original has."""
    kept = prompts[: settings.max_prompts]
    notes = []
    if len(kept) != published:
        notes.append(
            f"{len(kept)} prompts, the published set has {published}: the numbers are not those of the benchmark."
        )
    origin = {"prompts_file": str(listed), "sha256": sha256_of(listed), "prompts_in_file": len(prompts)}
    return PromptSet(kept, origin, notes)


def voice(path: Path, text: str, speaker: int, codec: Codec, where: str) -> tuple[Segment, AudioSpan]:
    """A recorded prompt as context, and as what voices are compared with. Raises ValueError if it is not there."""
    if not path.is_file():
        raise ValueError(f"{where}: audio file {path} does not exist")
    span = AudioSpan(path)
    return Segment(speaker, text, audio=span.load(codec.sample_rate)), span


def open_dataset(settings: EvalConfig, checkpoint: Checkpoint, split: str) -> ShardedDataset:
    """The dataset of `eval.dataset`, or the first of the checkpoint's that is here and has the split.

    Raises:
        ValueError: the checkpoint names no dataset.
        FileNotFoundError: the datasets are not here.
    """
    paths = checkpoint.datasets if settings.dataset is None else [settings.dataset]
    if not paths:
        raise ValueError(f"{checkpoint.path} names no training data; give eval.dataset=DIR or eval.prompts=FILE.jsonl")
    found = [ShardedDataset(path) for path in paths if Path(path).is_dir()]
    if not found:
        raise FileNotFoundError(
            f"dataset {', '.join(paths)} is not here; give eval.dataset=DIR or eval.prompts=FILE.jsonl"
        )
    return next((dataset for dataset in found if len(dataset.select(split))), found[0])


def comparable(suite: Suite, row: Published, judges: Sequence[str]) -> str:
    """The cell "comparable?" of a published row: "yes", or "no" with every reason."""
    described = " ".join(judges).lower()
    reasons = [row.differs] if row.differs else []
    reasons += [f"needs {option}" for word, option in suite.requires if word.lower() not in described]
    return "yes" if not reasons else "no: " + "; ".join(reasons)
