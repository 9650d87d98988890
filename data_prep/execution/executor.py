"""What executors have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from csm.judges.hub import ModelUnavailable
from data_prep.config import DataPrepConfig
from data_prep.execution.unit import UnitLocked, UnitReport


@dataclass
class UnitFailure:
    """A unit that could not be brought to its end."""

    unit: str
    message: str
    ends_run: bool = False  # a full disk, a missing model, a dead device: other units would meet it too

    @classmethod
    def of(cls, unit: str, error: BaseException) -> UnitFailure:
        of_this_unit = isinstance(error, (UnitLocked, ValueError)) and not isinstance(error, ModelUnavailable)
        return cls(unit, str(error), not of_this_unit)


UNIT_ERRORS = (OSError, RuntimeError, ValueError, ImportError)
"""What `run_unit` lets through."""

OnProgress = Callable[[str, float], None]
"""Called with a stage's name and the seconds of audio that it is done with, as far as the executor hears of it."""


class Executor(Protocol):
    def __call__(
        self,
        cfg: DataPrepConfig,
        units: list[str],
        on_report: Callable[[UnitReport], None],
        on_progress: OnProgress,
    ) -> list[UnitFailure]:
        """Runs `units`, which are not done, longest first; see the package's docstring."""
        ...
