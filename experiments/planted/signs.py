"""Signs of faults on the curves of a run, with the thresholds that docs/experiments/health.md states."""

from __future__ import annotations

import math

import numpy as np

from experiments.planted.faults import Records

LAST = 5  # logged lines at the end of a run that are averaged


def signs(run: Records, vocab_size: int) -> set[str]:
    """Names of the faults whose sign a run shows. vocab_size: codes of a codebook, V"""
    uniform = math.log(vocab_size)  # the loss of a guess
    c0, decoder = numbers(run, "train/loss_c0"), numbers(run, "train/loss_decoder")
    found = {
        "shifted labels": numbers(run, "val/shift_gain").max() > 0.1,
        "dead decoder": decoder[-LAST:].mean() > 0.9 * uniform and c0[-LAST:].mean() < 0.8 * uniform,
        "wrong loss weight": not 0.2 <= share_of_codebook0(run) <= 0.8,
        "missing ends": np.isnan(numbers(run, "train/eos_recall")[-1]),
        "unmasked context": numbers(run, "val/leak").max() > 1e-5,
        "learning rate x10": c0.max() > uniform + 0.1,
        "swapped codebooks": slope_of_codebooks(run) > 0.02,
    }
    return {name for name, shown in found.items() if shown}


def numbers(run: Records, metric: str) -> np.ndarray:
    """float64 [n]: the values of a metric, in order; those that are not finite are NaN."""
    return np.array([record[metric] for record in run if metric in record], dtype=np.float64)


def share_of_codebook0(run: Records) -> float:
    """The part of codebook 0 in the first logged loss. `train/loss` is a weighted sum of the two unweighted losses, so
    least squares over all lines give the weights (end-of-speech frames weighted as others)."""
    parts = np.stack([numbers(run, "train/loss_c0"), numbers(run, "train/loss_decoder")], axis=1)
    weights, *_ = np.linalg.lstsq(parts, numbers(run, "train/loss"), rcond=None)
    return float(weights[0] * parts[0, 0] / (weights @ parts[0]))


def slope_of_codebooks(run: Records) -> float:
    """Change of the loss from one codebook to the next, over codebooks 1 and up at the first validation: nats."""
    first = next(record for record in run if "val/loss" in record)
    losses = [value for name, value in sorted(first.items()) if name.startswith("val_codebooks/loss_")]
    return float(np.polyfit(np.arange(1, len(losses)), np.array(losses[1:], dtype=np.float64), 1)[0])
