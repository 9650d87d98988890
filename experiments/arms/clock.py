"""A callback of train.py that notes the time of every optimizer step, validation and checkpoints left out."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

from csm.files import read_json_lines


class StepClock:
    """Appends processor and wall-clock seconds of optimizer steps to a file, one JSON object a step.

    Processor time is that of all threads of this process: on a busy machine it still says what a step costs, where the
    clock on the wall says how busy the machine was. It does not count data-loading processes (data.num_workers) or a
    GPU. The step after a validation or a checkpoint is not noted, since their end cannot be seen from here.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._before: tuple[float, float] | None = None

    def on_train_start(self) -> None:
        self._before = (time.process_time(), time.perf_counter())

    def on_train_batch_end(self, trainer: Any) -> None:
        now = (time.process_time(), time.perf_counter())
        if self._before is not None:
            processor, wall = now[0] - self._before[0], now[1] - self._before[1]
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": trainer.step, "processor": processor, "wall": wall}) + "\n")
        self._before = now

    def on_validation_end(self) -> None:
        self._before = None

    def on_save_checkpoint(self) -> None:
        self._before = None


def seconds_per_step(path: Path) -> tuple[float, float]:
    """(processor, wall-clock) seconds of a step: medians, which the first steps and repeated ones hardly move."""
    steps = [record for _, record in read_json_lines(path)]
    return (
        statistics.median(step["processor"] for step in steps),
        statistics.median(step["wall"] for step in steps),
    )
