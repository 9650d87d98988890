"""All steps in one call, for datasets that a single machine prepares, and the checks of option values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path

from csm.data.dataset import DATASET_FILE, DatasetInfo, ShardedDataset
from csm.judges.recognition import BUNDLED
from data_prep.config import DataPrepConfig, TranscribeBackend
from data_prep.execution.pipeline import build_stages, check_codec, run_codec
from data_prep.execution.run import RunSummary, run
from data_prep.inputs.plan import Plan, check_inputs, make_plan
from data_prep.packing.output import check_replaceable
from data_prep.packing.pack import pack, prep_hash
from data_prep.report.report import REPORT_FILE, write_report


class UnitsFailed(RuntimeError):
    """Units of a run failed; another attempt may succeed."""


def prepare(cfg: DataPrepConfig, on_plan: Callable[[Plan], None] = lambda plan: None) -> tuple[DatasetInfo, RunSummary]:
    """plan -> run -> pack -> report. After an interruption, the same call resumes.

    A finished dataset of the same options that lacks its report gets it. `on_plan` is told what is planned.

    Raises:
        FileNotFoundError: an input, the codec's weights or a model is missing.
        ValueError: an input breaks its format, the plan changed, the output exists, or nothing was kept.
        UnitsFailed: units failed; the message names the first.
    """
    check_options(cfg)
    finished = lacks_report(cfg)
    if not finished:
        check_replaceable(cfg.output, cfg.overwrite)
    check_inputs(cfg)
    check_codec(cfg)
    plan = make_plan(cfg)
    on_plan(plan)
    summary = run(cfg)
    if summary.failures:
        first = summary.failures[0]
        raise UnitsFailed(f"{len(summary.failures)} units failed; the first, {first.unit}: {first.message}")
    dataset = ShardedDataset(cfg.output).info if finished and _same_options(cfg) else pack(cfg)
    write_report(cfg.output, cfg.seed, cfg.report.conversations)
    return dataset, summary


def lacks_report(cfg: DataPrepConfig) -> bool:
    """Whether the output is a dataset that was packed, but whose report was not written."""
    output = Path(cfg.output)
    return (output / DATASET_FILE).is_file() and not (output / REPORT_FILE).is_file() and not cfg.overwrite


def _same_options(cfg: DataPrepConfig) -> bool:
    """Whether the dataset was packed with these options. If not, `pack` refuses to replace it."""
    stages = build_stages(cfg, run_codec(cfg))
    return ShardedDataset(cfg.output).read(0).prep == prep_hash(cfg, stages)


_POSITIVE = {
    "plan": ("unit_hours", "max_hours"),
    "transcribe": ("batch_size", "beam_size", "max_clip_seconds"),
    "turns": ("max_seconds", "max_given_seconds"),
    "encode": ("batch_seconds", "fit_minutes", "shifts"),
    "conversation": ("max_seq_len", "max_seconds", "max_turns"),
    "pack": ("shard_mb",),
    "executor": ("cpus_per_worker", "max_attempts", "timeout_factor"),
}


def check_options(cfg: DataPrepConfig) -> None:
    """Raises ValueError for a value that no command can use, before any work begins."""
    for group, names in _POSITIVE.items():
        for name in names:
            value = getattr(getattr(cfg, group), name)
            if value is not None and not value > 0:
                raise ValueError(f"{group}.{name}={value} must be greater than 0")
    for group in (field.name for field in fields(cfg) if is_dataclass(getattr(cfg, field.name))):
        for name in (
            *("min_seconds", "min_speech_seconds", "min_silence_seconds", "pad_seconds", "trim_given_seconds"),
            "workers",
        ):
            value = getattr(getattr(cfg, group), name, None)
            if value is not None and value < 0:
                raise ValueError(f"{group}.{name}={value} must not be negative")
    if not 0 <= cfg.pack.val_fraction <= 1:
        raise ValueError(f"pack.val_fraction={cfg.pack.val_fraction} must lie in 0..1")
    if cfg.limit is not None and cfg.limit <= 0:
        raise ValueError(f"limit={cfg.limit} must be greater than 0, or null for all recordings")
    if cfg.score.dnsmos_hop_seconds < 4.5:
        raise ValueError(f"score.dnsmos_hop_seconds={cfg.score.dnsmos_hop_seconds} must be at least 4.5")
    if cfg.transcribe.max_clip_seconds > 30:
        raise ValueError(f"transcribe.max_clip_seconds={cfg.transcribe.max_clip_seconds}: Whisper's window is 30 s")
    languages = {f"sources.{name}.lang": source.lang for name, source in cfg.sources.items()} or {"lang": cfg.lang}
    cer_model = cfg.score.cer_model
    if cer_model is not None and _knows_only_english(cer_model) and not {"en", None} & set(languages.values()):
        option, lang = next(iter(languages.items()))
        raise ValueError(
            f"{option}={lang}: score.cer_model={cer_model} knows only English, so no text would be compared; set "
            "another model, or null"
        )
    if cfg.transcribe.backend is not TranscribeBackend.none:
        for option, lang in languages.items():
            _check_language(option, lang, cfg.transcribe.model)


def _knows_only_english(model: str) -> bool:
    return model == BUNDLED or model.endswith(".en")


def _check_language(option: str, lang: str | None, model: str) -> None:
    """Raises ValueError for a language that Whisper, or an English-only Whisper `model`, does not know or detect."""
    if lang == "en":
        return
    english = _knows_only_english(model)
    if lang is None:
        if english:
            raise ValueError(
                f"{option}=null: transcribe.model={model} knows only English and detects no language; "
                f"set {option}=en, or another model"
            )
        return
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE  # slow to import

    remedy = "or transcribe=none if all texts are given"
    if lang not in LANGUAGES:
        name = lang.strip().lower()
        code = TO_LANGUAGE_CODE.get(name, name.replace("_", "-").partition("-")[0])
        known = f"{option}={code}" if code in LANGUAGES else f"one of {', '.join(sorted(LANGUAGES))}"
        raise ValueError(f"{option}={lang}: not a language code of the speech recognizer; set {known}, {remedy}")
    if english:
        raise ValueError(f"{option}={lang}: transcribe.model={model} knows only English; set another model, {remedy}")
