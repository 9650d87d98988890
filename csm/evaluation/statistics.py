"""Confidence intervals by bootstrap over clusters.

Utterances of one speaker or one show resemble each other. Resampling single utterances ignores that and gives
intervals that are too narrow, so whole clusters are drawn with replacement, and numerator and denominator of a rate
are resampled together (Bisani & Ney 2004 for WER; Field & Welsh 2007 for clusters).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A ratio of sums with its percentile interval; `low` and `high` are None with fewer than two clusters."""

    value: float
    low: float | None
    high: float | None
    items: int
    clusters: int


def estimate_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    clusters: Sequence[str],
    *,
    samples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """`sum(numerators) / sum(denominators)` with a percentile bootstrap interval over clusters.

    A plain mean is the case of all denominators being 1.

    Args:
        numerators, denominators: `[n]`, one pair per item (e.g. word errors and reference words).
        clusters: `[n]` names; items of one name are resampled together.
        samples: bootstrap replicates.
        seed: of the resampling; equal arguments give equal intervals.
        confidence: nominal coverage of the interval.

    Raises:
        ValueError: the lengths differ, or the denominators do not sum to a positive number.
    """
    num, den = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if not len(num) == len(den) == len(clusters):
        raise ValueError(f"estimate_ratio: lengths differ: {len(num)}, {len(den)}, {len(clusters)}")
    if not den.sum() > 0:
        raise ValueError("estimate_ratio: the denominators must have a positive sum")

    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    cluster_count = int(index.max()) + 1
    value = float(num.sum() / den.sum())
    if cluster_count < 2:
        return Estimate(value, None, None, len(num), cluster_count)

    cluster_num = np.bincount(index, weights=num)
    cluster_den = np.bincount(index, weights=den)
    # Drawing C clusters with replacement = drawing how often each one occurs.
    draws = np.random.default_rng(seed).multinomial(
        cluster_count, np.full(cluster_count, 1 / cluster_count), size=samples
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = (draws @ cluster_num) / (draws @ cluster_den)
    # A replicate of clusters without any denominator has no ratio (possible only with empty references).
    ratios = ratios[np.isfinite(ratios)]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return Estimate(value, float(low), float(high), len(num), cluster_count)
