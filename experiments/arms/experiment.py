"""The description of an experiment, `experiments/NAME/experiment.yaml`: arms as words for train.py, and a budget."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from omegaconf import MISSING, OmegaConf

EXPERIMENTS = Path(__file__).parents[1]
DESCRIPTION = "experiment.yaml"

GROUPS = {"c0": "codebook 0", "c1-7": "codebooks 1 to 7", "others": "all codebooks but 0"}
"""Groups of codebooks whose mean cross entropy is measured."""


class View(Enum):
    """How held-out conversations are read for a measure; all frames that are predicted count."""

    whole = "whole"
    """As they are stored."""
    last = "last"
    """The same, but only their last turns are predicted."""
    no_context = "no_context"
    """Every turn alone."""
    no_text = "no_text"
    """All texts empty, as the unconditional half of classifier-free guidance reads them."""


VIEWS = {
    View.whole: "",
    View.last: ", last turns",
    View.no_context: ", turns without context",
    View.no_text: ", turns without text",
}


@dataclass(frozen=True)
class Measure:
    """A mean cross entropy in nats per frame. name: `GROUP`, or `GROUP/VIEW`"""

    name: str
    group: str
    view: View

    @property
    def title(self) -> str:
        return GROUPS[self.group] + VIEWS[self.view]


def read_measure(name: str) -> Measure:
    """Raises ValueError for an unknown group or view."""
    group, _, view = name.partition("/")
    known = [view.value for view in View]
    if group not in GROUPS or (view and view not in known):
        raise ValueError(f"measure {name!r}: write one of {', '.join(GROUPS)}, or it with one of /{', /'.join(known)}")
    return Measure(name, group, View(view or "whole"))


@dataclass
class Experiment:
    """Content of experiment.yaml."""

    title: str = MISSING
    """Heading of the page."""
    question: str = MISSING
    """Question of the experiment."""
    base: list[str] = field(default_factory=list)
    """Words for train.py that all arms have in common."""
    arms: dict[str, list[str]] = field(default_factory=dict)
    """Name of each arm -> its words, which follow those of `base`."""
    reference: str = MISSING
    """The arm that the others are compared with."""
    steps: int = MISSING
    """Optimizer steps of every arm."""
    equal_time: bool = False
    """Train every arm a second time, for the processor time that the reference takes for `steps`."""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """Seeds; those of one number are paired."""
    measures: list[str] = field(default_factory=lambda: list(GROUPS))
    """Held-out losses that are compared: c0, c1-7 or others, alone or with /last, /no_context or /no_text."""


def read_experiment(folder: Path) -> Experiment:
    """Reads `folder`/experiment.yaml. Raises ValueError, and OmegaConf's errors, for what cannot be run."""
    path = folder / DESCRIPTION
    if not path.is_file():
        named = ", ".join(sorted(file.parent.name for file in EXPERIMENTS.glob(f"*/{DESCRIPTION}")))
        raise ValueError(f"{path} does not exist; experiments are {named}, or a folder with a file of that name")
    merged = OmegaConf.merge(OmegaConf.structured(Experiment), OmegaConf.load(path))
    experiment = OmegaConf.to_object(merged)
    assert isinstance(experiment, Experiment)
    check(experiment, str(path))
    return experiment


def check(experiment: Experiment, where: str) -> None:
    """Raises ValueError, beginning with `where`, for what cannot be run or compared."""
    for measure in experiment.measures:
        read_measure(measure)
    check_arms(list(experiment.arms), experiment.reference, where)
    if len(set(experiment.seeds)) < max(2, len(experiment.seeds)):
        raise ValueError(f"{where}: seeds {experiment.seeds} must be two or more different ones; three are the least")
    if experiment.steps < 1 or not experiment.measures:
        raise ValueError(f"{where}: steps must be at least 1, and measures not empty")


def check_arms(arms: Sequence[str], reference: str, where: str) -> None:
    """Raises ValueError, beginning with `where`, for names of arms that cannot be compared, or that share a folder."""
    if reference not in arms or len(arms) < 2:
        raise ValueError(f"{where}: needs two arms or more, and reference={reference} must be one of them")
    if len({slug(arm) for arm in arms}) < len(arms):
        raise ValueError(f"{where}: names of arms must differ in their letters and digits: they name folders")


def slug(arm: str) -> str:
    """An arm's name as part of a folder's."""
    return "-".join(re.findall(r"[\w.]+", arm)) or "arm"


def words_of(experiment: Experiment, arm: str, steps: int, seed: int, more: Sequence[str]) -> list[str]:
    """The words for train.py of one training, without its folder."""
    return [*experiment.base, *experiment.arms[arm], *more, f"trainer.max_steps={steps}", f"seed={seed}"]
