"""Suites by the names that eval.suite knows, one module each."""

from csm.evaluation.suites import turns
from csm.evaluation.suites.suite import Suite

SUITES: dict[str, Suite] = {suite.name: suite for suite in (turns.SUITE,)}


def find_suite(name: str) -> Suite:
    """Raises ValueError, naming those there are, for another name."""
    if name not in SUITES:
        raise ValueError(f"eval.suite: no suite is called {name!r}; known: {', '.join(sorted(SUITES))}")
    return SUITES[name]
