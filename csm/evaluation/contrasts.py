"""Paired differences of the model between conditions of one evaluation, such as with and without context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from csm.evaluation.metrics import Terms, metric
from csm.evaluation.statistics import Difference, compare_ratios, holm
from csm.evaluation.utterances import System, Utterance


@dataclass
class Contrast:
    """`condition` minus `baseline` of a metric, on the same turns and seeds. p_holm: adjusted for all contrasts."""

    metric: str
    baseline: str
    condition: str
    difference: Difference
    p_holm: float | None = None


def contrasts(utterances: Sequence[Utterance], names: Sequence[str], control_suffix: str = "") -> list[Contrast]:
    """Every condition against the first, for each metric; none if there is but one condition.

    control_suffix: ends the names of control conditions, which are also held against the condition without it
    """
    spoken = [u for u in utterances if u.system is System.model]
    conditions = list(dict.fromkeys(u.condition for u in spoken))
    pairs = [(condition, conditions[0]) for condition in conditions[1:]]
    controls = [name for name in conditions if control_suffix and name.endswith(control_suffix)]
    pairs += [(name, name.removesuffix(control_suffix)) for name in controls]
    found = []
    for name in names:
        for condition, baseline in pairs:
            difference = _difference(name, _terms(spoken, name, condition), _terms(spoken, name, baseline))
            if difference is not None:
                found.append(Contrast(name, baseline, condition, difference))
    tested = [contrast for contrast in found if contrast.difference.p is not None]
    adjusted = holm([contrast.difference.p for contrast in tested if contrast.difference.p is not None])
    for contrast, p in zip(tested, adjusted, strict=True):
        contrast.p_holm = p
    return found


def _terms(spoken: Sequence[Utterance], name: str, condition: str) -> dict[tuple[str, int | None], tuple[str, Terms]]:
    """Cluster and terms by turn and seed; the id of a prompt under a condition is `turn@condition`."""
    found = {}
    for u in spoken:
        terms = metric(name).terms(u)
        if u.condition == condition and terms is not None:
            found[u.prompt.removesuffix(f"@{condition}"), u.seed] = (u.cluster, terms)
    return found


def _difference(
    name: str,
    a: dict[tuple[str, int | None], tuple[str, Terms]],
    b: dict[tuple[str, int | None], tuple[str, Terms]],
) -> Difference | None:
    shared = [item for item in a if item in b]
    sides = [tuple(zip(*(side[item][1] for item in shared), strict=True)) for side in (a, b)]
    if not shared or not all(sum(denominators) > 0 for _, denominators in sides):
        return None
    clusters = [a[item][0] for item in shared]
    (left, left_den), (right, right_den) = sides
    return compare_ratios((left, left_den), (right, right_den), clusters, pool=metric(name).pool)
