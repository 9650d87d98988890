"""The record of a run: its validations, with the training losses of the steps before each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from csm.training.loggers import read_lines

TRAINING = ("train/loss_c0", "train/loss_c1_7", "train/eos_recall")
"""Averaged over the lines since the validation before."""
HELD_OUT = ("val/loss_c0", "val/loss_c1_7", "val/accuracy_c0", "val/eos_recall")
SAMPLES = ("samples/wer", "samples/similarity", "samples/ended", "samples/rate")
OPTIONS = ("data.path", "data.max_seq_len", "data.global_batch_size", "trainer.max_steps", "optim.lr", "seed")


def record(run_dir: Path) -> dict[str, Any]:
    """Options and curves of a run. Raises ValueError if it has no validation with a loss of codebook 0.

    positions: of all steps up to a validation, padding included
    """
    path = run_dir / "metrics.jsonl"
    lines = read_lines(path)
    if not any("val/loss_c0" in line for line in lines):
        raise ValueError(
            f"{path}: holds no validation; is {run_dir} the folder of a run, and trainer.val_every_steps set?"
        )
    config = OmegaConf.load(run_dir / "config.yaml")
    options = {name: OmegaConf.select(config, name) for name in OPTIONS}
    per_step = options["data.max_seq_len"] * options["data.global_batch_size"]
    points: dict[int, dict[str, Any]] = {}
    since: list[dict[str, Any]] = []
    for line in lines:
        since.append(line)
        if "val/loss_c0" in line:
            points[line["step"]] = {"step": line["step"], "positions": line["step"] * per_step, **_means(since)}
            since = []
    for line in lines:  # losses and samples of a validation are lines of their own
        if line["step"] in points:
            kept = {name: line[name] for name in (*HELD_OUT, *SAMPLES) if line.get(name) is not None}
            points[line["step"]] |= {name: round(value, 4) for name, value in kept.items()}
    return {"options": options, "points": list(points.values())}


def _means(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    values = {name: [line[name] for line in lines if line.get(name) is not None] for name in TRAINING}
    return {name: round(sum(found) / len(found), 4) for name, found in values.items() if found}
