"""Answers of a listening test: means with intervals, tests, agreement, and what may be wrong with them.

Scores are turned so that above 0 the first system is preferred. Ratings of one rater resemble each other, and so do
those of one item: intervals resample raters and items, both (two-way bootstrap, Owen 2007), and the sign test counts
items, not ratings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from csm.evaluation.listening.kit import SCHEMA

SCALE = range(-3, 4)


@dataclass(frozen=True)
class Rating:
    """One answer. score: -3..3, above 0 for the first system; shown: as given, above 0 for the side on the right."""

    rater: int
    item: str
    score: int
    shown: int


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Results:
    """Results over the raters who passed the catch trials.

    cmos:        mean score
    win, tie, loss: shares of ratings above, at and below 0, with Wilson intervals, for which ratings are independent
    items_won, items_lost, sign_test: items whose mean is above and below 0, and the two-sided p-value of that
    alpha:       Krippendorff's alpha for interval data, the agreement of raters; None if no item has two ratings
    order_bias:  mean preference for the side on the right, 0 without a bias
    left_out:    numbers of the raters (from 1) who failed the catch trials
    cmos_of_all: `cmos` with these
    unanswered:  trials without an answer
    """

    first: str
    second: str
    question: str
    kit: str
    raters: int
    ratings: int
    items: int
    cmos: Interval
    win: Interval
    tie: Interval
    loss: Interval
    items_won: int
    items_lost: int
    sign_test: float
    alpha: float | None
    order_bias: Interval
    left_out: list[int]
    cmos_of_all: Interval
    unanswered: int


def read_results(key_path: Path, answers: Sequence[Path], samples: int = 2000, seed: int = 0) -> Results:
    """Results from the key of a kit and the files that its raters sent.

    Raises:
        ValueError: a file is not an answer file, belongs to another kit, or answers for a rater a second time; or no
            rater passed the catch trials.
    """
    key = _read(key_path)
    if key.get("schema") != SCHEMA or "raters" not in key:
        raise ValueError(f"{key_path}: is not the key.json of a listening kit of this version")
    ratings: list[Rating] = []
    failed: list[int] = []
    seen: dict[int, Path] = {}
    for path in answers:
        rater, scores = _answers(path, key)
        if rater in seen:
            raise ValueError(f"{path}: answers for rater {rater + 1}, as {seen[rater]} does; keep one of them")
        seen[rater] = path
        trials = key["raters"][rater]
        if not _passed(trials, scores):
            failed.append(rater)
        for number, shown in scores.items():
            trial = trials[number]
            if trial["catch"] is None:
                score = shown if trial["right"] == key["first"] else -shown
                ratings.append(Rating(rater, trial["item"], score, shown))
    kept = [rating for rating in ratings if rating.rater not in failed]
    if not kept:
        raise ValueError(
            f"{key_path}: no answers to report: {len(seen)} raters answered, {len(failed)} of them failed the catch "
            "trials"
        )
    expected = sum(len(key["raters"][rater]) for rater in seen)
    answered = len(ratings) + sum(
        _catches(key["raters"][rater], _answers(path, key)[1]) for rater, path in seen.items()
    )
    counts = [sum(compare(r.score) for r in kept) for compare in (_above, _zero, _below)]
    means = item_means(kept)
    won, lost = sum(mean > 0 for mean in means.values()), sum(mean < 0 for mean in means.values())
    return Results(
        first=key["first"],
        second=key["second"],
        question=key["question"],
        kit=key["kit"],
        raters=len({rating.rater for rating in kept}),
        ratings=len(kept),
        items=len(means),
        cmos=two_way(kept, [r.score for r in kept], samples, seed),
        win=_wilson(counts[0], len(kept)),
        tie=_wilson(counts[1], len(kept)),
        loss=_wilson(counts[2], len(kept)),
        items_won=won,
        items_lost=lost,
        sign_test=float(binomtest(won, won + lost).pvalue) if won + lost else 1.0,
        alpha=krippendorff_alpha(_by_item(kept)),
        order_bias=two_way(kept, [r.shown for r in kept], samples, seed),
        left_out=sorted(rater + 1 for rater in failed),
        cmos_of_all=two_way(ratings, [r.score for r in ratings], samples, seed),
        unanswered=expected - answered,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: is not a JSON object")
    return found


def _answers(path: Path, key: dict[str, Any]) -> tuple[int, dict[int, int]]:
    """Rater (from 0), and the score shown for each trial that was answered."""
    found = _read(path)
    if found.get("kit") != key["kit"]:
        raise ValueError(f"{path}: answers kit {found.get('kit')!r}, the key is of {key['kit']!r}")
    rater, given = found.get("rater"), found.get("answers")
    if not isinstance(rater, int) or not 0 <= rater < len(key["raters"]) or not isinstance(given, list):
        raise ValueError(f"{path}: is not an answer file of the listening page")
    scores: dict[int, int] = {}
    for answer in given:
        number: Any
        score: Any
        number, score = (answer.get("trial"), answer.get("score")) if isinstance(answer, dict) else (None, None)
        whole = isinstance(number, int) and isinstance(score, int) and score in SCALE
        if not whole or number not in range(len(key["raters"][rater])) or number in scores:
            raise ValueError(f"{path}: {answer!r} is not an answer to one trial, with a score of -3..3")
        scores[number] = score
    return rater, scores


def _passed(trials: Sequence[dict[str, Any]], scores: dict[int, int]) -> bool:
    """The rule in the key; a catch trial that was not answered is not passed."""
    for number, trial in enumerate(trials):
        if trial["catch"] is None:
            continue
        score = scores.get(number)
        if score is None:
            return False
        if trial["catch"] == "identical" and abs(score) > 1:
            return False
        if trial["catch"] == "degraded" and (score if trial["left"] == "degraded" else -score) <= 0:
            return False
    return True


def _catches(trials: Sequence[dict[str, Any]], scores: dict[int, int]) -> int:
    return sum(trials[number]["catch"] is not None for number in scores)


def _above(score: int) -> bool:
    return score > 0


def _zero(score: int) -> bool:
    return score == 0


def _below(score: int) -> bool:
    return score < 0


def _wilson(count: int, total: int) -> Interval:
    found = binomtest(count, total).proportion_ci(method="wilson")
    return Interval(count / total, float(found.low), float(found.high))


def _by_item(ratings: Sequence[Rating]) -> list[list[int]]:
    grouped: dict[str, list[int]] = {}
    for rating in ratings:
        grouped.setdefault(rating.item, []).append(rating.score)
    return list(grouped.values())


def item_means(ratings: Sequence[Rating]) -> dict[str, float]:
    """Mean score of each item."""
    names = sorted({rating.item for rating in ratings})
    return {name: float(np.mean([r.score for r in ratings if r.item == name])) for name in names}


def two_way(ratings: Sequence[Rating], values: Sequence[float], samples: int = 2000, seed: int = 0) -> Interval:
    """Mean of `values`, one for each rating, with the 95 % percentile interval of a bootstrap of raters and items.

    A rating counts as often as its rater was drawn, times as often as its item was: a little too wide rather than too
    narrow, as the noise of single ratings is counted twice.
    """
    _, rater = np.unique([r.rater for r in ratings], return_inverse=True)
    _, item = np.unique([r.item for r in ratings], return_inverse=True)
    numbers = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)

    def drawn(count: int) -> np.ndarray:  # [samples, count]
        return rng.multinomial(count, np.full(count, 1 / count), size=samples)

    weights = drawn(int(rater.max()) + 1)[:, rater] * drawn(int(item.max()) + 1)[:, item]  # [samples, ratings]
    totals = weights.sum(axis=1)
    means = (weights @ numbers)[totals > 0] / totals[totals > 0]
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(numbers.mean()), float(low), float(high))


def krippendorff_alpha(units: Sequence[Sequence[float]]) -> float | None:
    """Krippendorff's alpha for interval data: 1 - observed / expected disagreement; 1 where all agree.

    units: the values of each item, any number of them; None if no item has two
    """
    pairable = [np.asarray(unit, dtype=np.float64) for unit in units if len(unit) > 1]
    if not pairable:
        return None
    # the sum over ordered pairs of (a - b)^2 is 2 (n sum a^2 - (sum a)^2)
    every = np.concatenate(pairable)
    count = len(every)
    observed = sum(_squares(unit) / (len(unit) - 1) for unit in pairable) / count
    expected = _squares(every) / (count * (count - 1))
    return float(1 - observed / expected) if expected else 1.0


def _squares(values: np.ndarray) -> float:
    return float(2 * (len(values) * np.square(values).sum() - values.sum() ** 2))


def as_text(results: Results) -> str:
    """The results for people."""

    def share(interval: Interval) -> str:
        return f"{100 * interval.value:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"

    def score(interval: Interval) -> str:
        return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"

    left_out = ", ".join(map(str, results.left_out)) or "none"
    agreement = "unknown: no item has two ratings" if results.alpha is None else f"{results.alpha:.3f}"
    return "\n".join(
        (
            f"{results.first} against {results.second}: {results.question}",
            f"{results.raters} raters, {results.ratings} ratings, {results.items} items, {results.unanswered} trials "
            "unanswered",
            f"CMOS                    {score(results.cmos)}   (above 0: {results.first})",
            f"{results.first} preferred  {share(results.win)}",
            f"no difference           {share(results.tie)}",
            f"{results.second} preferred  {share(results.loss)}",
            f"items won, lost         {results.items_won}, {results.items_lost}   sign test p = "
            f"{results.sign_test:.4g}",
            f"agreement (alpha)       {agreement}",
            f"order bias              {score(results.order_bias)}   (above 0: for B, whatever it is)",
            f"left out by catch trials: raters {left_out}; CMOS with them {score(results.cmos_of_all)}",
        )
    )


def as_json(results: Results) -> dict[str, Any]:
    """Plain values."""
    return {"schema": SCHEMA, **asdict(results)}
