"""Arms of an experiment on speech, compared on the same sentences: means, and paired differences from the reference."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from csm.evaluation.compare import Run
from csm.evaluation.paired import paired_row
from csm.evaluation.statistics import Difference, holm
from experiments.arms.results import LEVEL

NORMAL_95, NORMAL_80 = 1.960, 0.842
"""Quantiles of the normal distribution: of a two-sided test at 5 %, and of a power of 80 %."""
METRICS = ("wer_corpus", "cosine_recording", "failed", "speed")
RECORDED = {"ground_truth": "recordings", "codec_resynthesis": "codec's resynthesis"}

Item = tuple[int, str]
"""Number of the model, and id of the prompt."""
Terms = tuple[float, float]


def compare_arms(reports: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Metrics of all arms, for results.json.

    reports: of every arm, the reference first, a report for each model
    """
    reference, *others = reports
    first = reports[reference][0]
    clusters = {
        (number, prompt): cluster
        for number, run in enumerate(reports[reference])
        for prompt, cluster in run.clusters.items()
    }
    rows = []
    for name in METRICS:
        metric = first.results["metrics"][name]
        terms = [_by_prompt(runs, name) for runs in reports.values()]
        row = paired_row(name, metric["title"], metric["percent"], terms, clusters, metric["pool"])
        if row is not None:
            rows.append(row)
    tests = [difference.p for row in rows for difference in row.differences if difference.p is not None]
    adjusted = iter(holm(tests))
    metrics: dict[str, Any] = {}
    for row in rows:
        differences = {}
        for arm, difference in zip(others, row.differences, strict=True):
            p = None if difference.p is None else next(adjusted)
            separated = p is not None and p < LEVEL
            needed = None if separated else needed_items(difference)
            differences[arm] = asdict(difference) | {"p_holm": p, "separated": separated, "needed": needed}
        metrics[row.metric] = {
            "title": row.title,
            "percent": row.percent,
            "items": row.items,
            "arms": {arm: asdict(found) for arm, found in zip(reports, row.estimates, strict=True)},
            "differences": differences,
            "recorded": {
                title: first.results["systems"][system]["metrics"][row.metric].get("value")
                for system, title in RECORDED.items()
                if system in first.results["systems"]
            },
        }
    return {"metrics": metrics, "suite": first.results["suite"], "sentences": len(first.clusters)}


def needed_items(difference: Difference) -> int | None:
    """Sentences with which a difference of this size would be found in 80 % of repetitions, by a single test at 5 %:
    the squared standard error falls as 1 / sentences. None where there is no difference or no interval."""
    if difference.low is None or difference.high is None or not difference.value:
        return None
    error = (difference.high - difference.low) / (2 * NORMAL_95)
    return math.ceil(difference.items * ((NORMAL_95 + NORMAL_80) * error / difference.value) ** 2)


def _by_prompt(runs: Sequence[Run], metric: str) -> dict[Item, Terms]:
    """Terms of every prompt, the mean over its seeds, so that arms of one seed and of several are paired."""
    spoken: dict[Item, list[Terms]] = defaultdict(list)
    for number, run in enumerate(runs):
        for (prompt, _), terms in run.terms.get(metric, {}).items():
            spoken[number, prompt].append(terms)
    return {item: _mean(found) for item, found in spoken.items()}


def _mean(terms: Sequence[Terms]) -> Terms:
    return sum(one[0] for one in terms) / len(terms), sum(one[1] for one in terms) / len(terms)
