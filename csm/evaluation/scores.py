"""The scores of a system over many utterances. A number that cannot be computed is kept as the reason why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from csm.evaluation.metrics import Metric, metric
from csm.evaluation.statistics import Estimate, estimate_ratio, wilson
from csm.evaluation.utterances import Flag, System, Utterance


@dataclass(frozen=True)
class NotRun:
    """A number that does not exist, and why."""

    reason: str

    def __str__(self) -> str:
        return f"not run: {self.reason}"


Score = Estimate | NotRun


@dataclass
class SystemScores:
    """The report's headline numbers of one system, under one condition of the prompts ("" where there is but one)."""

    system: System
    condition: str
    expected: int  # utterances there should be
    scored: int
    flags: dict[Flag, int]
    empty_references: int  # texts without a word after normalization: no mean-WER term
    metrics: dict[str, Score]

    @property
    def name(self) -> str:
        return f"{self.system.name}/{self.condition}" if self.condition else self.system.name

    @property
    def title(self) -> str:
        return f"{self.system.value}, {self.condition}" if self.condition else self.system.value


def score_system(
    system: System,
    utterances: Sequence[Utterance],
    expected: int,
    names: Sequence[str],
    *,
    unavailable: Mapping[str, str] | None = None,
    bootstrap_samples: int = 2000,
    condition: str = "",
    missing: str | None = None,
) -> SystemScores:
    """Pools one system's utterances (all seeds; a prompt's seeds share its cluster).

    Args:
        names: the metrics, in the report's order.
        unavailable: reasons by the needs of metrics ("recognizer", "embedder", a measure) of judges that did not run.
        missing: why there are fewer utterances than `expected`.
    """

    def score(name: str) -> Score:
        found = metric(name)
        if not utterances:
            return NotRun(missing or "no utterances")
        for undefined, reason in found.undefined:
            if undefined is system:
                return NotRun(reason)
        if system is System.control and not found.controlled:
            return NotRun("the control has another text and another voice only")
        if unavailable and found.needs in unavailable:
            return NotRun(unavailable[found.needs])
        return pool_terms(found, utterances, bootstrap_samples)

    counts = Counter(flag for u in utterances for flag in u.flags)
    return SystemScores(
        system=system,
        condition=condition,
        expected=expected,
        scored=len(utterances),
        flags={flag: counts[flag] for flag in Flag},
        empty_references=sum(u.errors is not None and u.errors.rate is None for u in utterances),
        metrics={name: score(name) for name in names},
    )


def pool_terms(found: Metric, utterances: Sequence[Utterance], bootstrap_samples: int) -> Score:
    """A metric over utterances."""
    terms = [(u.cluster, pair) for u in utterances if (pair := found.terms(u)) is not None]
    if not sum(pair[1] for _, pair in terms) > 0:
        return NotRun(found.nothing)
    numerators, denominators = [pair[0] for _, pair in terms], [pair[1] for _, pair in terms]
    clusters = [cluster for cluster, _ in terms]
    estimate = estimate_ratio(numerators, denominators, clusters, pool=found.pool, samples=bootstrap_samples)
    if found.name == "failed" and sum(numerators) in (0, len(terms)):  # where the bootstrap sees no spread
        low, high = wilson(int(sum(numerators)), len(terms))
        return Estimate(estimate.value, low, high, estimate.items, estimate.clusters)
    return estimate


def score_to_dict(score: Score) -> dict[str, Any]:
    """Plain values for results.json."""
    return {"not_run": score.reason} if isinstance(score, NotRun) else asdict(score)
