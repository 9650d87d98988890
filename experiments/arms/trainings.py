"""One training of an experiment: a normal run of train.py, then its held-out scores. Each part is kept once it is done,
and an interrupted training resumes from its last checkpoint."""

from __future__ import annotations

import json
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from csm.compose import TRAIN
from csm.data.dataset import ShardedDataset
from csm.files import read_json_lines, write_atomically
from csm.formats.open import open_checkpoint
from csm.training.build import train
from experiments.arms.clock import StepClock, seconds_per_step
from experiments.arms.experiment import View
from experiments.arms.scores import Item, score

CURVES = ("val/loss_c0", "val/loss_c1_7", "val/loss_decoder", "train/loss_c0", "train/loss_decoder")
"""Metrics of metrics.jsonl that results keep."""
CLOCK = "${run_dir}/seconds.jsonl"


@dataclass(frozen=True)
class Training:
    """An arm with a length and a seed. words: for train.py, without the folder"""

    arm: str
    seed: int
    steps: int
    words: list[str]
    folder: Path


def finish(training: Training, views: list[View]) -> dict[str, Any]:
    """Result of the training, trained and scored where that has not been done yet.

    Raises ValueError if its folder holds a training with other options or of other data, and what `train` raises.
    """
    done = training.folder / "training.json"
    options = TRAIN.compose(training.words).data
    data = ShardedDataset(options.path)
    if done.is_file():
        record = json.loads(done.read_text(encoding="utf-8"))
        if record["words"] != training.words or record["fingerprint"] != data.info.fingerprint:
            raise ValueError(
                f"{training.folder}: holds a training with other options or of other data; remove it, or choose "
                "another folder with --runs"
            )
    else:
        record = _train(training) | {"fingerprint": data.info.fingerprint}
        write_atomically(done, lambda file: file.write_text(json.dumps(record, indent=1), encoding="utf-8"))
    return record | {"scores": {view.value: _scores(training, data, options.max_seq_len, view) for view in views}}


def _train(training: Training) -> dict[str, Any]:
    run_dir = training.folder
    clock = [f"+callbacks.clock._target_={StepClock.__module__}.{StepClock.__name__}", f"+callbacks.clock.path={CLOCK}"]
    train(TRAIN.options(TRAIN.compose([*training.words, *clock, f"run_dir={run_dir}", "ckpt_path=last"])))
    processor, wall = seconds_per_step(run_dir / "seconds.jsonl")
    kept = [
        {name: _short(value) for name, value in record.items() if name in CURVES or name == "step"}
        for _, record in read_json_lines(run_dir / "metrics.jsonl")
    ]
    return {
        "arm": training.arm,
        "seed": training.seed,
        "steps": training.steps,
        "words": training.words,
        "processor_seconds_per_step": _short(processor),
        "wall_seconds_per_step": _short(wall),
        "hardware": hardware(),
        "curves": [record for record in kept if len(record) > 1],
    }


def _scores(training: Training, data: ShardedDataset, limit: int, view: View) -> dict[str, Any]:
    file = training.folder / f"scores-{view.value}.json"
    if not file.is_file():
        checkpoint = open_checkpoint(training.folder / "export")
        items = score(checkpoint.load_to_score(dtype=torch.float32), data, checkpoint.read_tokenizer(), limit, view)
        text = json.dumps({key: asdict(item) for key, item in items.items()})
        write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return json.loads(file.read_text(encoding="utf-8"))


def items_of(record: dict[str, Any], view: View) -> dict[str, Item]:
    """Scores of a record of `finish`, by conversation."""
    return {key: Item(**item) for key, item in record["scores"][view.value].items()}


def hardware() -> dict[str, Any]:
    """Where and with what this process computes."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", info.read_text(encoding="utf-8")) if info.is_file() else None
    return {
        "processor": model[1].strip() if model else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.partition("+")[0],
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
