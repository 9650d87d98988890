"""All steps in a row, for sets that one machine prepares in one go."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

from csm.data.dataset import DatasetInfo
from data_prep.config import DataPrepConfig
from data_prep.execution.run import RunSummary, run
from data_prep.inputs.plan import make_plan
from data_prep.packing.output import check_replaceable
from data_prep.packing.pack import pack
from data_prep.report.report import write_report


def prepare(cfg: DataPrepConfig) -> tuple[DatasetInfo, RunSummary]:
    """plan -> run -> pack -> report. Run again after any interruption: it goes on where it was.

    Once the dataset is in place it is not touched again; a report that is still missing then is written by `report`.

    Raises:
        FileNotFoundError: an input, the codec's weights or a model are not there.
        ValueError: an input breaks its format, the plan changed, the output exists, or nothing could be kept.
        RuntimeError: units could not be brought to their end; the message names the first.
    """
    check_options(cfg)
    check_replaceable(cfg.output, cfg.overwrite)
    make_plan(cfg)
    summary = run(cfg)
    if summary.failures:
        first = summary.failures[0]
        raise RuntimeError(f"{len(summary.failures)} units failed; the first, {first.unit}: {first.message}")
    dataset = pack(cfg)
    write_report(cfg.output, cfg.seed, cfg.report.conversations)
    return dataset, summary


_POSITIVE = {
    "plan": ("unit_hours", "max_hours"),
    "transcribe": ("batch_size", "beam_size", "max_clip_seconds"),
    "turns": ("max_seconds", "max_given_seconds"),
    "encode": ("batch_seconds", "fit_minutes"),
    "conversation": ("max_seq_len", "max_seconds", "max_turns"),
    "pack": ("shard_mb",),
    "executor": ("cpus_per_worker", "max_attempts", "timeout_factor"),
}


def check_options(cfg: DataPrepConfig) -> None:
    """Raises ValueError for values that no command could work with, before any work begins."""
    for group, names in _POSITIVE.items():
        for name in names:
            value = getattr(getattr(cfg, group), name)
            if not value > 0:
                raise ValueError(f"{group}.{name}={value} must be greater than 0")
    for group in (field.name for field in fields(cfg) if is_dataclass(getattr(cfg, field.name))):
        for name in ("min_seconds", "min_speech_seconds", "min_silence_seconds", "pad_seconds", "workers"):
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
        raise ValueError(f"transcribe.max_clip_seconds={cfg.transcribe.max_clip_seconds}: Whisper hears 30 s at most")
