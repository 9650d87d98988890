"""The stages of a run, built from its options, and the worker that runs them on units."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from csm.codec import Codec, SpectralCodec, load_codec
from csm.config import CodecKind
from data_prep.config import DataPrepConfig, work_folder
from data_prep.execution.unit import Progress, StageTable, UnitReport, fingerprints, run_unit
from data_prep.execution.unit_files import write_json
from data_prep.inputs.plan import load_plan
from data_prep.stages.base import Stage
from data_prep.stages.diarize import DiarizeStage
from data_prep.stages.encode import EncodeStage
from data_prep.stages.score import ScoreStage
from data_prep.stages.transcribe import TranscribeStage
from data_prep.stages.turns import TurnsStage
from data_prep.stages.vad import VadStage

CODEC_FILE = "codec.safetensors"
STAGES_FILE = "stages.json"
STAGES: tuple[type[Stage], ...] = (VadStage, DiarizeStage, TranscribeStage, TurnsStage, ScoreStage, EncodeStage)


def run_codec(cfg: DataPrepConfig) -> Codec:
    """The codec of a run; a spectral codec without a path is fitted to the plan, see `fit_codec.py`."""
    if cfg.codec.kind is CodecKind.spectral and cfg.codec.path is None:
        fitted = work_folder(cfg) / CODEC_FILE
        if not fitted.is_file():
            raise FileNotFoundError(f"{fitted}: the codec is not fitted yet; run first: python -m data_prep run")
        return SpectralCodec.load(fitted, cfg.codec.device)
    return load_codec(cfg.codec)


def check_codec(cfg: DataPrepConfig) -> None:
    """Loads the codec once, to find out before any work whether `run` can; one that is fitted first needs no weights.

    Raises FileNotFoundError or ValueError as `load_codec` does.
    """
    if cfg.codec.kind is not CodecKind.spectral or cfg.codec.path is not None:
        load_codec(cfg.codec)


def build_stages(cfg: DataPrepConfig, codec: Codec) -> list[Stage]:
    """All stages, in order; each loads its models on first use."""
    return [
        VadStage(cfg.vad),
        DiarizeStage(cfg.diarize),
        TranscribeStage(cfg.transcribe),
        TurnsStage(cfg.turns, cfg.vad),
        ScoreStage(cfg.score, cfg.transcribe),
        EncodeStage(cfg.encode, cfg.loose, codec),
    ]


def remember_stages(cfg: DataPrepConfig, work: Path, stages: list[Stage]) -> None:
    """Writes down the fingerprints of a run's stages, for commands that only look at its results."""
    write_json(work / STAGES_FILE, {"options": _options_hash(cfg), "stages": fingerprints(stages)})


@dataclass(frozen=True)
class LastRun:
    """The stages of the last run in a work folder."""

    tables: list[StageTable]
    same_options: bool  # as the command that asks


def last_run(cfg: DataPrepConfig, work: Path) -> LastRun | None:
    """Record of the last run, for which neither codec nor models are needed; None: nothing has run."""
    file = work / STAGES_FILE
    if not file.is_file():
        return None
    last = json.loads(file.read_text())
    tables = [StageTable(stage.name, last["stages"][stage.name], stage.result) for stage in STAGES]
    return LastRun(tables, last["options"] == _options_hash(cfg))


def _options_hash(cfg: DataPrepConfig) -> str:
    """Of everything that `build_stages` is given, and the stages' versions."""
    parts: list[Any] = [cfg.vad, cfg.diarize, cfg.transcribe, cfg.turns, cfg.score, cfg.encode, cfg.loose, cfg.codec]
    values = [[stage.version for stage in STAGES], *(asdict(part) for part in parts)]
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()


class Worker:
    """Runs units in this process, one after another; models are loaded once."""

    def __init__(self, cfg: DataPrepConfig) -> None:
        self.cfg, self.work = cfg, work_folder(cfg)
        self.plan = load_plan(self.work)
        self.stages = build_stages(cfg, run_codec(cfg))

    def run(self, unit: str, progress: Progress = lambda stage, seconds: None) -> UnitReport:
        threads = torch.get_num_threads()
        # A fixed number: summing over other partitions changes the last bits, and with them possibly codes.
        torch.set_num_threads(self.cfg.executor.cpus_per_worker)
        try:
            options = self.cfg.executor
            recordings = self.plan.recordings(unit)
            return run_unit(
                self.work, unit, recordings, self.stages, options.max_attempts, options.timeout_factor, progress
            )
        finally:
            torch.set_num_threads(threads)
