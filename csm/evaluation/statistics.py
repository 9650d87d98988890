"""Intervals and tests for speech that comes in clusters: seeds within items within shows, calls or voices.

Utterances of one speaker or one show resemble each other, and those of one prompt with several seeds still more.
Treating them as independent gives intervals that are too narrow, so whole clusters are drawn with replacement (seeds
and items come with their cluster), and numerator and denominator of a rate are drawn together (Bisani & Ney 2004 for
WER; Field & Welsh 2007 for clusters). Two systems are compared on the same items, by differences within clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Pool = Literal["items", "clusters"]
"""How a number is made of its terms: "items" = sum of numerators / sum of denominators; "clusters" = the mean over
clusters of that ratio within each (such as the mean WER of documents)."""

Floats = NDArray[np.float64]

EXACT_CLUSTERS = 12
"""Up to so many clusters, a permutation test goes through all sign flips."""
PERMUTATIONS = 5000


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; `low` and `high` are None with fewer than two clusters."""

    value: float
    low: float | None
    high: float | None
    items: int
    clusters: int


@dataclass(frozen=True)
class Difference:
    """A - B of two systems on the same items, its interval, and the p-value of "there is no difference".

    p is None with fewer than two clusters.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    items: int
    clusters: int


def estimate_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    clusters: Sequence[str],
    *,
    pool: Pool = "items",
    samples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """`sum(numerators) / sum(denominators)`, or the mean of that over clusters, with an interval over clusters.

    A plain mean is the case of all denominators being 1.

    Args:
        numerators, denominators: `[n]`, one pair per item (e.g. word errors and reference words).
        clusters: `[n]` names; items of one name are resampled together.
        pool: see `Pool`; "clusters" leaves out clusters whose denominators sum to zero.
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
    sums = _cluster_sums(num, den, clusters, pool)
    count = len(sums)
    value = float(sums[:, 0].sum() / sums[:, 1].sum())
    if count < 2:
        return Estimate(value, None, None, len(num), count)
    drawn = _draws(count, samples, seed) @ sums  # [samples, 2]
    low, high = _interval(_ratios(drawn), count, confidence)
    return Estimate(value, low, high, len(num), count)


def compare_ratios(
    a: tuple[Sequence[float], Sequence[float]],
    b: tuple[Sequence[float], Sequence[float]],
    clusters: Sequence[str],
    *,
    pool: Pool = "items",
    samples: int = 2000,
    seed: int = 0,
) -> Difference:
    """The difference of two systems' ratios on the same items.

    The interval is a bootstrap over clusters, each with both systems' terms. The test flips which system is which
    within whole clusters: if there is no difference, every such exchange is as likely as what was seen.

    Args:
        a, b: numerators and denominators of each system, `[n]`, the same item at the same place.
        clusters, pool, samples, seed: as of `estimate_ratio`.

    Raises:
        ValueError: the lengths differ, or one system's denominators do not sum to a positive number.
    """
    terms = [np.asarray(values, dtype=np.float64) for values in (*a, *b)]
    if len({len(values) for values in terms} | {len(clusters)}) != 1:
        raise ValueError(f"compare_ratios: lengths differ: {[len(v) for v in terms]}, {len(clusters)}")
    if not (terms[1].sum() > 0 and terms[3].sum() > 0):
        raise ValueError("compare_ratios: the denominators must have a positive sum")
    left = _cluster_sums(terms[0], terms[1], clusters, pool)
    right = _cluster_sums(terms[2], terms[3], clusters, pool)
    value = float(left[:, 0].sum() / left[:, 1].sum() - right[:, 0].sum() / right[:, 1].sum())
    count = len(left)
    if count < 2 or len(right) != count:
        return Difference(value, None, None, None, len(clusters), count)
    draws = _draws(count, samples, seed)
    low, high = _interval(_ratios(draws @ left) - _ratios(draws @ right), count, 0.95)
    return Difference(value, low, high, _exchange_test(left, right, value, seed), len(clusters), count)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in the same order: below 0.05 all hold at once."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion of independent trials (Wilson 1927); also meaningful at 0 and 1."""
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    share, extra = successes / trials, z * z / trials
    center = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / trials + extra / (4 * trials)) / (1 + extra)
    return max(0.0, center - half), min(1.0, center + half)


def cohen_kappa(a: Sequence[str], b: Sequence[str]) -> float:
    """Agreement of two sequences of labels beyond chance (Cohen 1960); nan if both always say one and the same."""
    if len(a) != len(b) or not a:
        raise ValueError(f"cohen_kappa: needs two equally long, non-empty sequences, got {len(a)} and {len(b)}")
    labels = set(a) | set(b)
    seen = sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
    chance = sum(list(a).count(label) * list(b).count(label) for label in labels) / len(a) ** 2
    return math.nan if chance == 1 else (seen - chance) / (1 - chance)


def _cluster_sums(num: Floats, den: Floats, clusters: Sequence[str], pool: Pool) -> Floats:
    """`[C, 2]`: the numerator and the denominator of each cluster."""
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.stack([np.bincount(index, weights=num), np.bincount(index, weights=den)], axis=1).astype(np.float64)
    if pool == "clusters":
        sums = sums[sums[:, 1] > 0]
        sums = np.stack([sums[:, 0] / sums[:, 1], np.ones(len(sums))], axis=1)
    return sums


@lru_cache(maxsize=8)  # the metrics of a report share them
def _draws(clusters: int, samples: int, seed: int) -> NDArray[np.int64]:
    """`[samples, C]`: drawing C clusters with replacement = drawing how often each one occurs."""
    return np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), size=samples)


def _ratios(sums: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def _interval(replicates: Floats, clusters: int, confidence: float) -> tuple[float, float]:
    """Percentiles, moved outwards for few clusters (the expanded percentile interval of Hesterberg 2015).

    Plain percentiles are too narrow by the factor sqrt((C - 1) / C) and by normal instead of Student quantiles.
    """
    # A replicate of clusters without any denominator has no ratio (possible only with empty references).
    replicates = replicates[np.isfinite(replicates)]
    student = stats.t.ppf((1 - confidence) / 2, clusters - 1)
    tail = 100 * stats.norm.cdf(math.sqrt(clusters / (clusters - 1)) * student)
    low, high = np.percentile(replicates, [tail, 100 - tail])
    return float(low), float(high)


def _exchange_test(left: Floats, right: Floats, value: float, seed: int) -> float:
    """Two-sided p-value of exchanging the systems within clusters; exact for few clusters."""
    exact = len(left) <= EXACT_CLUSTERS
    flips = _flips(len(left), seed)
    swapped = flips @ (right - left)  # [N, 2], what the exchange adds to the left sums
    differences = _ratios(left.sum(axis=0) + swapped) - _ratios(right.sum(axis=0) - swapped)
    extreme = int(np.sum(np.abs(differences) >= abs(value) - 1e-12))
    # The exchange that changes nothing is among all; among drawn ones it is added.
    return extreme / len(flips) if exact else (extreme + 1) / (len(flips) + 1)


@lru_cache(maxsize=8)
def _flips(clusters: int, seed: int) -> Floats:
    """`[N, C]`, 1 where a cluster is exchanged: all ways for few clusters, else PERMUTATIONS drawn ones."""
    if clusters <= EXACT_CLUSTERS:
        return np.array(list(product((0.0, 1.0), repeat=clusters)))
    return (np.random.default_rng(seed + 1).random((PERMUTATIONS, clusters)) < 0.5).astype(np.float64)
