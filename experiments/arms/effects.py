"""Differences between two arms, paired by seed and by held-out conversation, with intervals that count both.

Trainings of other seeds would give other differences, and so would other conversations. With d_s the difference of seed
s over all conversations, and d_c that of conversation c over all seeds, the variance of the mean difference is taken as

    var(d_s) / S  +  var(d_c) / C

which counts the interaction of the two twice: too wide rather than too narrow. Student's t has the degrees of freedom
of Satterthwaite (1946). With three seeds that differ much the first term rules, and t is 4.3 for 95 %.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

POWER = 0.8
"""Chance that a difference is shown, if there is one of the size that was seen."""
MOST = 1000
"""Numbers of seeds and multiples of conversations are looked for up to here."""


@dataclass(frozen=True)
class Effect:
    """A mean of nats per frame, or a difference of two.

    p: of "it is zero"; by_seed: the mean of each seed
    """

    value: float
    low: float
    high: float
    p: float
    by_seed: list[float]
    conversations: int


@dataclass(frozen=True)
class Needed:
    """Effort to show the difference with the chance `POWER`; None: more than `MOST` seeds or times the conversations.

    seeds:         with the conversations that there are
    conversations: with the seeds that there are
    smallest:      the difference that the seeds and conversations that there are would show with this chance
    """

    seeds: int | None
    conversations: int | None
    smallest: float


@dataclass(frozen=True)
class Variances:
    """Of a difference, in nats squared: between seeds, between conversations, and of their interaction."""

    seeds: float
    conversations: float
    both: float

    def error(self, seeds: int, conversations: int) -> tuple[float, float]:
        """(standard error, degrees of freedom) of the mean over so many seeds and conversations."""
        by_seed = self.seeds / seeds + self.both / (seeds * conversations)
        by_conversation = self.conversations / conversations + self.both / (seeds * conversations)
        return _error(by_seed, by_conversation, seeds, conversations)


def effect(sums: Floats, frames: Floats) -> Effect:
    """sums: [S, C] nats of each seed and conversation, or differences of two arms; frames: [C]

    Raises ValueError for fewer than two seeds or conversations.
    """
    residuals, value = _residuals(sums, frames)
    seeds, conversations = residuals.shape
    by_seed = residuals.mean(axis=1).var(ddof=1) / seeds
    by_conversation = residuals.mean(axis=0).var(ddof=1) / conversations
    error, freedom = _error(by_seed, by_conversation, seeds, conversations)
    means = (sums.sum(axis=1) / frames.sum()).tolist()
    if error == 0:  # such as two arms that are one and the same
        return Effect(value, value, value, float(value == 0), means, conversations)
    half = float(stats.t.ppf(0.975, freedom)) * error
    p = float(2 * stats.t.sf(abs(value) / error, freedom))
    return Effect(value, value - half, value + half, p, means, conversations)


def variances(sums: Floats, frames: Floats) -> Variances:
    """Components of a two-way layout without repetition, by its mean squares; negative ones are 0."""
    residuals, _ = _residuals(sums, frames)
    seeds, conversations = residuals.shape
    rows, columns = residuals.mean(axis=1), residuals.mean(axis=0)
    rest = residuals - rows[:, None] - columns[None, :] + residuals.mean()
    both = float((rest**2).sum() / ((seeds - 1) * (conversations - 1)))
    return Variances(
        max(0.0, float(rows.var(ddof=1)) - both / conversations),
        max(0.0, float(columns.var(ddof=1)) - both / seeds),
        both,
    )


def needed(found: Variances, difference: float, seeds: int, conversations: int, level: float) -> Needed:
    """How much data would show a difference. level: of the test, such as 0.05"""

    def shown(more_seeds: int, more_conversations: int) -> bool:
        error, freedom = found.error(more_seeds, more_conversations)
        return _power(difference, error, freedom, level) >= POWER

    more_seeds = _least(2, MOST, lambda n: shown(n, conversations))
    factor = _least(1, MOST, lambda n: shown(seeds, n * conversations))
    low, high = 0.0, 1.0
    error, freedom = found.error(seeds, conversations)
    while error and _power(high, error, freedom, level) < POWER:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if _power(middle, error, freedom, level) >= POWER else (middle, high)
    return Needed(more_seeds, None if factor is None else factor * conversations, high)


def _least(first: int, last: int, enough: Callable[[int], bool]) -> int | None:
    """The smallest number that is enough, from first to last; more are never less than enough."""
    place = bisect_left(range(first, last + 1), True, key=enough)
    return None if first + place > last else first + place


def _power(difference: float, error: float, freedom: float, level: float) -> float:
    """Chance that a two-sided t test at `level` finds a true `difference`."""
    if error == 0:
        return float(difference != 0)
    limit, shift = stats.t.ppf(1 - level / 2, freedom), abs(difference) / error
    if shift > limit + 40:  # where the noncentral distribution is hard to compute
        return 1.0
    return float(stats.nct.sf(limit, freedom, shift))


def _residuals(sums: Floats, frames: Floats) -> tuple[Floats, float]:
    """Shares of each seed and conversation in the ratio sum(sums) / sum(frames), linearized: [S, C], and the ratio."""
    seeds, conversations = sums.shape
    if seeds < 2 or conversations < 2:
        raise ValueError(f"an interval needs two seeds and two conversations or more, not {seeds} and {conversations}")
    value = float(sums.mean(axis=0).sum() / frames.sum())
    return (sums - value * frames) / frames.mean(), value


def _error(by_seed: float, by_conversation: float, seeds: int, conversations: int) -> tuple[float, float]:
    total = by_seed + by_conversation
    if total == 0:
        return 0.0, 1.0
    freedom = total**2 / (by_seed**2 / (seeds - 1) + by_conversation**2 / (conversations - 1))
    return math.sqrt(total), freedom
