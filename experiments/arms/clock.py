"""A callback of train.py that notes the time of optimizer steps, validation and checkpoints left out."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from csm.training.loggers import JsonLines, read_lines


class StepClock:
    """Appends processor and wall-clock seconds of optimizer steps to a file, one JSON object a step.

    Processor time is that of all threads of this process: on a busy machine it still says what a step costs, where the
    clock on the wall says how busy the machine was. It does not count data-loading processes (data.num_workers) or a
    GPU. A step that follows a checkpoint is not noted, since nobody says when the checkpoint was done.
    """

    def __init__(self, path: str) -> None:
        self._lines = JsonLines(path)
        self._before: tuple[float, float] | None = None

    def on_train_start(self) -> None:
        self._before = _now()

    def on_train_batch_end(self, trainer: Any) -> None:
        now = _now()
        if self._before is not None:
            processor, wall = now[0] - self._before[0], now[1] - self._before[1]
            self._lines.append({"step": trainer.step, "processor": processor, "wall": wall})
        self._before = now

    def on_save_checkpoint(self) -> None:
        self._before = None

    def on_validation_end(self) -> None:  # and of the checkpoint that belongs to it
        self._before = _now()


def _now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def seconds_per_step(path: Path) -> tuple[float, float]:
    """(processor, wall-clock) seconds of a step: medians, which the first step of a process hardly moves."""
    steps = read_lines(path)
    return (
        statistics.median(step["processor"] for step in steps),
        statistics.median(step["wall"] for step in steps),
    )
