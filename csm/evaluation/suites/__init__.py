"""Suites by the names that eval.suite knows."""

from csm.evaluation.suites import context, intrinsic, librispeech_pc, pronunciation, scripts, seedtts, speed, turns
from csm.evaluation.suites.suite import Suite

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        turns.SUITE,
        intrinsic.SUITE,
        seedtts.SUITE_EN,
        seedtts.SUITE_ZH,
        librispeech_pc.SUITE,
        scripts.SUITE_DIALOGS,
        scripts.SUITE_MONOLOGS,
        scripts.SUITE_COVOMIX,
        context.SUITE,
        pronunciation.SUITE_HOMOGRAPH,
        pronunciation.SUITE_CONSISTENCY,
        speed.SUITE,
    )
}


def find_suite(name: str) -> Suite:
    """Raises ValueError, naming those there are, for another name."""
    if name not in SUITES:
        raise ValueError(f"eval.suite: no suite is called {name!r}; known: {', '.join(sorted(SUITES))}")
    return SUITES[name]
