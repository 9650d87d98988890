"""Records of a run: JSON Lines in its folder, W&B runs that are continued with the run, progress, a profile.

A line is appended in one write, so a killed run leaves whole lines. A resumed run that comes back to a step already
written removes the lines from there on before it writes them anew: every step is there once.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, WandbLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.profiler import ProfilerActivity, profile, schedule

from csm.files import write_atomically
from csm.parallel.ranks import global_rank

log = logging.getLogger(__name__)


SHOWN = {
    "c0": ("train/loss_c0", ".3f"),
    "decoder": ("train/loss_decoder", ".3f"),
    "positions/s": ("throughput/positions_per_second", ".0f"),
    "MFU": ("throughput/mfu", ".1%"),
    "skipped": ("train/skipped_steps", "d"),
}
"""Metrics in the progress display, and their format; skipped steps once there are any."""


def build_loggers(nodes: dict[str, Any]) -> list[Logger]:
    """The loggers of a configuration, started. Raises ValueError with the cause if one cannot be started."""
    loggers = []
    for name, node in nodes.items():
        try:
            logger = instantiate(node)
            if global_rank() == 0:
                getattr(logger, "experiment", None)  # W&B logs in here
        except Exception as error:
            cause = str(error.__cause__ or error).strip().splitlines()[0]
            remedy = "; run `wandb login`, or set WANDB_MODE=offline" if "wandb" in name else ""
            raise ValueError(f"logger {name} cannot start: {cause}{remedy}") from error
        loggers.append(logger)
    return loggers


class TrainingProgress:
    """A progress bar over the optimizer steps with the latest metrics, or plain lines where there is no terminal."""

    def __init__(self, max_steps: int, enabled: bool) -> None:
        self._max_steps, self._enabled = max_steps, enabled
        console = Console()
        self._bar: Progress | None = None
        if enabled and console.is_terminal:
            self._bar = Progress(
                TextColumn("Training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("•"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}"),
                console=console,
            )
            self._task = self._bar.add_task("Training", total=max_steps, metrics="")

    def start(self, step: int) -> None:
        if self._bar is not None:
            self._bar.start()
            self._bar.update(self._task, completed=step)

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """step: finished; metrics: of a step that is logged, else empty"""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
        if not metrics:
            return
        text = "  ".join(
            f"{name} {format(metrics[key], form)}" for name, (key, form) in SHOWN.items() if metrics.get(key)
        )
        if self._bar is not None:
            self._bar.update(self._task, metrics=text)
        elif self._enabled:
            print(f"step {step}/{self._max_steps}  {text}", flush=True)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def step_profiler(folder: Path) -> profile:
    """A profiler to be entered around the loop and told of every step: records steps 4 to 6 of this process, then
    writes a trace for chrome://tracing and a table of the costliest operations."""

    def write(result: profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"rank-{global_rank()}"
        result.export_chrome_trace(str(folder / f"{name}.json.gz"))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        table = result.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=30)
        (folder / f"{name}.txt").write_text(table)
        log.info("profile of three steps: %s", folder / f"{name}.txt")

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    return profile(
        activities=activities,
        schedule=schedule(wait=1, warmup=2, active=3, repeat=1),
        on_trace_ready=write,
        profile_memory=True,
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file of `JsonLines`, without a last line that was cut short because the machine went down."""
    content = path.read_bytes() if path.is_file() else b""
    whole, _, _ = content.rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()]


class JsonLines:
    """An append-only file of records that each have a "step". One process writes."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._began = False

    def append(self, record: dict[str, Any]) -> None:
        """Writes one line. NaN and infinity, which JSON does not know, become null."""
        record = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.items()}
        if not self._began:
            self._go_back_to(record)
            self._began = True
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def _go_back_to(self, record: dict[str, Any]) -> None:
        """Cuts the file at the first line that is written again: of this kind and step, or of a later step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.is_file():
            return
        before = read_lines(self.path)
        # Training and validation share the file: of one step, the lines before this kind of record stay.
        again = (line["step"] > record["step"] or _same_kind(line, record) for line in before)
        kept = before[: next((number for number, replaced in enumerate(again) if replaced), len(before))]
        if len(kept) < len(before):
            log.info("%s: %d lines removed, their steps are run again", self.path, len(before) - len(kept))
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        write_atomically(self.path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _same_kind(line: dict[str, Any], record: dict[str, Any]) -> bool:
    return line["step"] == record["step"] and bool((line.keys() & record.keys()) - {"step"})


class JsonLinesLogger(Logger):
    """Lightning logger: the whole history of a run in one file, whatever it was interrupted by."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._lines = JsonLines(path)

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._lines.append({"step": step, **metrics})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: they are in run_dir/config.yaml."""


def wandb_logger(run_dir: str, ckpt_path: str | None, **options: Any) -> WandbLogger:
    """A W&B logger that continues the W&B run of this folder, whose id is kept in run_dir/wandb_id.

    ckpt_path: None starts the training anew, and so does W&B; options: of Lightning's WandbLogger.
    """
    file = Path(run_dir) / "wandb_id"
    if global_rank() == 0 and (ckpt_path is None or not file.is_file()):  # the only rank that logs
        write_atomically(file, lambda temporary: temporary.write_text(secrets.token_hex(4)))
    identity = file.read_text() if file.is_file() else None
    return WandbLogger(save_dir=run_dir, id=identity, resume="allow", **options)


def due(step: int, every: int) -> bool:
    """Whether what happens every so many steps (0: never) happens after `step`."""
    return every > 0 and step % every == 0
