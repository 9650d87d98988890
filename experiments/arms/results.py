"""results.json of an experiment: every training with its curves and held-out sums, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from csm.evaluation.statistics import compare_ratios, holm
from experiments.arms.effects import Effect, Floats, effect, needed, variances
from experiments.arms.experiment import Experiment, Measure, read_measure
from experiments.arms.scores import Item
from experiments.arms.trainings import items_of

LEVEL = 0.05
"""Of all tests of a comparison together (Holm 1979)."""

Record = dict[str, Any]
"""Facts that experiments.arms.trainings.finish knows about a training."""


def results(experiment: Experiment, more: Sequence[str], comparisons: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Content of results.json.

    more:        words for train.py that were given on the command line, for all arms
    comparisons: name ("steps", "time") -> its trainings, of every arm and seed
    """
    found = {name: compare(experiment, records) for name, records in comparisons.items()}
    return {
        "experiment": asdict(experiment) | {"words": list(more)},
        "comparisons": found,
        "runs": [_kept(record) for record in _distinct(comparisons)],
    }


def compare(experiment: Experiment, records: Sequence[Record]) -> dict[str, Any]:
    """Means of all arms and differences from the reference, for every measure."""
    measures = [read_measure(name) for name in experiment.measures]
    found = {measure.name: _measure(experiment, measure, records) for measure in measures}
    tested = [one for block in found.values() for one in block["differences"].values()]
    for one, p in zip(tested, holm([one["p"] for one in tested]), strict=True):
        one["p_holm"] = p
        one["separated"] = p < LEVEL
    arms = {}
    for arm in experiment.arms:
        mine = [record for record in records if record["arm"] == arm]
        processor = [record["processor_seconds_per_step"] * record["steps"] for record in mine]
        wall = [record["wall_seconds_per_step"] * record["steps"] for record in mine]
        arms[arm] = {
            "steps": mine[0]["steps"],
            "processor_seconds": float(np.mean(processor)),
            "wall_seconds": float(np.mean(wall)),
        }
    return {"arms": arms, "measures": found}


def _measure(experiment: Experiment, measure: Measure, records: Sequence[Record]) -> dict[str, Any]:
    items = {(record["arm"], record["seed"]): items_of(record, measure.view) for record in records}
    _check_same_frames(items)
    first = next(iter(items.values()))
    clusters = sorted({item.cluster for item in first.values()})
    frames = _by_cluster([(item.cluster, item.frames) for item in first.values()], clusters)

    def sums(arm: str) -> Floats:  # [S, C]
        rows = (items[arm, seed].values() for seed in experiment.seeds)
        return np.stack(
            [_by_cluster([(one.cluster, one.nats[measure.group]) for one in row], clusters) for row in rows]
        )

    reference = sums(experiment.reference)
    others = [arm for arm in experiment.arms if arm != experiment.reference]
    level = LEVEL / (len(others) * len(experiment.measures))
    return {
        "means": {arm: asdict(effect(sums(arm), frames)) for arm in experiment.arms},
        "differences": {arm: _difference(sums(arm), reference, frames, clusters, level) for arm in others},
    }


def _difference(sums: Floats, reference: Floats, frames: Floats, clusters: list[str], level: float) -> dict[str, Any]:
    """conversations_alone: the interval if the models as trained are taken as given, by bootstrap over conversations"""
    found: Effect = effect(sums - reference, frames)
    size = needed(variances(sums - reference, frames), found.value, len(sums), len(frames), level)
    every = [*clusters] * len(sums)
    terms = [(side.flatten().tolist(), np.tile(frames, len(sums)).tolist()) for side in (sums, reference)]
    alone = compare_ratios(terms[0], terms[1], every)
    return asdict(found) | {"conversations_alone": [alone.low, alone.high], "needed": asdict(size)}


def _by_cluster(pairs: Sequence[tuple[str, float]], clusters: list[str]) -> Floats:
    place = {cluster: number for number, cluster in enumerate(clusters)}
    sums = np.zeros(len(clusters))
    for cluster, value in pairs:
        sums[place[cluster]] += value
    return sums


def _check_same_frames(items: Mapping[tuple[str, int], Mapping[str, Item]]) -> None:
    """Raises ValueError unless all trainings were scored on the same frames."""
    (first, expected), *rest = (
        (run, {key: (item.frames, item.codes) for key, item in found.items()}) for run, found in items.items()
    )
    for run, seen in rest:
        if seen != expected:
            raise ValueError(
                f"arm {run[0]!r}, seed {run[1]}: its held-out frames are not those of arm {first[0]!r}; arms that are "
                "compared need the same validation conversations in the same first codebooks"
            )


def _distinct(comparisons: Mapping[str, Sequence[Record]]) -> list[Record]:
    """Trainings of all comparisons; the reference's are part of both."""
    found = {(r["arm"], r["steps"], r["seed"]): r for records in comparisons.values() for r in records}
    return list(found.values())


def _kept(record: Record) -> Record:
    return record | {
        "scores": {
            view: {key: [item["frames"], *item["nats"].values()] for key, item in items.items()}
            for view, items in record["scores"].items()
        }
    }
