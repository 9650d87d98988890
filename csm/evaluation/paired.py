"""One metric of several runs on the items that all have: estimates, and paired differences from the first run."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from csm.evaluation.statistics import Difference, Estimate, Pool, compare_ratios, estimate_ratio

Key = TypeVar("Key", bound=Hashable)


@dataclass
class Row:
    """One metric of all runs.

    differences: of each run but the first, from the first; p_holm: over all tested rows, None where there is no test
    """

    metric: str
    title: str
    percent: bool
    items: int
    estimates: list[Estimate]
    differences: list[Difference]
    p_holm: list[float | None] = field(default_factory=list)


def paired_row(
    metric: str,
    title: str,
    percent: bool,
    runs: Sequence[Mapping[Key, tuple[float, float]]],
    clusters: Mapping[Key, str],
    pool: Pool = "items",
) -> Row | None:
    """The row over the items of all runs; None if there is none with a denominator.

    runs: numerator and denominator by item; clusters: of every item of the first run
    """
    shared = [item for item in runs[0] if all(item in terms for terms in runs)]
    if not shared or not all(sum(terms[item][1] for item in shared) > 0 for terms in runs):
        return None
    names = [clusters[item] for item in shared]
    sides = [([terms[item][0] for item in shared], [terms[item][1] for item in shared]) for terms in runs]
    return Row(
        metric,
        title,
        percent,
        len(shared),
        [estimate_ratio(numerators, denominators, names, pool=pool) for numerators, denominators in sides],
        [compare_ratios(side, sides[0], names, pool=pool) for side in sides[1:]],
    )
