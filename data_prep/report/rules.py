"""A rule of thumb for a dataset, and its application to a measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Check:
    """One rule, applied."""

    rule: str
    found: str  # the measure, in words
    broken: bool | None  # None: not checked
    warning: str  # consequence and remedy, shown if the rule is broken


def percent(share: float) -> str:
    """One decimal, or two near 0 and 100 %, so that small shares are not rounded away."""
    digits = 0 if share in (0, 1) else 2 if share < 0.01 or share > 0.99 else 1
    return f"{100 * share:.{digits}f} %"


def limit(share: float) -> str:
    """A share as the limit of a rule: "5 %"."""
    return f"{100 * share:.0f} %"


def share_check(rule: str, share: float | None, broken: Callable[[float], bool], what: str, warning: str) -> Check:
    """Applies a rule to a share; None: it is not known. `what` is written behind it."""
    if share is None:
        return Check(rule, "not known", None, "")
    return Check(rule, f"{percent(share)} {what}", broken(share), warning)
