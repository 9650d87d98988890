"""The interface of executors, and failures of units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from csm.judges.hub import ModelUnavailable
from data_prep.config import DataPrepConfig
from data_prep.execution.unit import UnitLocked, UnitReport


@dataclass
class UnitFailure:
    """A unit that did not finish."""

    unit: str
    message: str
    ends_run: bool = False  # a full disk, a missing model, a dead device: other units would fail as well

    @classmethod
    def of(cls, unit: str, error: BaseException) -> UnitFailure:
        of_this_unit = isinstance(error, (UnitLocked, ValueError)) and not isinstance(error, ModelUnavailable)
        return cls(unit, str(error), not of_this_unit)


UNIT_ERRORS = (OSError, RuntimeError, ValueError, ImportError)
"""Exceptions that `run_unit` raises."""

OnProgress = Callable[[str, float], None]
"""Called with the name of a stage and the seconds of audio it has processed, or with "unit" and the seconds of a
finished unit by executors that only see whole units."""


class Executor(Protocol):
    def __call__(
        self,
        cfg: DataPrepConfig,
        units: list[str],
        on_report: Callable[[UnitReport], None],
        on_progress: OnProgress,
    ) -> list[UnitFailure]:
        """Runs `units`, none of which is done, longest first; see the package's docstring."""
        ...
