"""The checkpoints that a run may continue: looked at before anything else happens, and loaded, by all ranks the same.

Damage may be seen by one rank alone: only that one reads a part of a sharded checkpoint, or its disk is at fault.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lightning.pytorch.utilities import rank_zero_only

from csm.checkpoint.checksums import check_archive
from csm.checkpoint.sharded import check_parts, is_sharded
from csm.checkpoint.zero import is_zero, read_zero
from csm.parallel.ranks import RankAgreement

log = logging.getLogger(__name__)

T = TypeVar("T")


class Candidates:
    """Paths of checkpoints, the best first: one that is missing or damaged gives way to the next, with a warning.

    check: raises ValueError if a whole checkpoint is of another run, which is a mistake and no reason to go on
    """

    def __init__(self, paths: list[Path], check: Callable[[Path], None]) -> None:
        self._paths, self._check = paths, check
        self._number = 0
        self._looked_at = -1  # number of the last one that was found whole
        self._problem = ""  # of the one before the chosen one

    @property
    def chosen(self) -> Path | None:
        """The one that the run continues; None for a new run."""
        return self._paths[self._number] if self._paths else None

    def look(self) -> None:
        """Chooses the first that looks whole to this process, which need not be one of several yet. Raises
        FileNotFoundError or ValueError if none does, and ValueError if it is of another run."""
        if not self._paths:
            return
        while (problem := self._problem_of(self._look_at_chosen)) is not None:
            if self._number + 1 == len(self._paths):
                raise problem
            self._give_up(str(problem))
        self._check(self.chosen)

    def load(self, read: Callable[[Path], T], look_into: Callable[[Path], None] = lambda _: None) -> T:
        """`read(path)` of the first that is whole to all ranks, on all of them. All must call it together.

        look_into: called with the path before, may raise ValueError on any rank
        read: may raise ValueError on any rank if it does not communicate, otherwise on all or none

        Raises ValueError on all ranks if no candidate is left, naming what some rank has found.
        """
        agreement = RankAgreement()
        number, problem = max(agreement.gather((self._number, self._problem)))
        while self._number < number:  # another rank has seen more
            self._give_up(problem)
        found: list[T] = []
        while not found:
            unseen = self._looked_at != self._number
            problem = self._problem_of_any(agreement, self._look_at_chosen)
            problem = problem or self._problem_of_any(agreement, lambda: look_into(self.chosen))
            if problem is None and unseen:
                self._check(self.chosen)
            problem = problem or self._problem_of_any(agreement, lambda: found.append(read(self.chosen)))
            if problem is not None:
                found.clear()  # of this rank, where others have failed
                if self._number + 1 == len(self._paths):
                    raise ValueError(problem)
                self._give_up(problem)
        return found[0]

    def _look_at_chosen(self) -> None:
        if self._looked_at != self._number:
            check_whole(self.chosen)
            self._looked_at = self._number

    def _problem_of_any(self, agreement: RankAgreement, task: Callable[[], None]) -> str | None:
        """What the first rank that has a problem says."""
        problem = self._problem_of(task)
        problems = agreement.gather(None if problem is None else str(problem))
        return next((text for text in problems if text is not None), None)

    def _problem_of(self, task: Callable[[], None]) -> Exception | None:
        try:
            task()
        except (ValueError, OSError) as error:
            return error
        return None

    def _give_up(self, problem: str) -> None:
        """Goes on to the next one."""
        self._number, self._problem = self._number + 1, problem
        if rank_zero_only.rank == 0:
            log.warning("%s; continuing from the one before it, %s", problem, self.chosen)


def check_whole(path: Path) -> None:
    """Raises FileNotFoundError or ValueError, saying what is wrong, if a checkpoint is missing or damaged.

    A file is read in full, by the CRC-32 of its records. The folder of a sharded checkpoint, which may be too large for
    that, must have all its parts, those of FSDP in full length; their contents are checked by the ranks that load them.
    """
    if path.is_dir():
        if is_zero(path):
            read_zero(path)
        elif is_sharded(path):
            check_parts(path)
        else:
            raise ValueError(f"{path} is a folder, but not of a sharded checkpoint")
        return
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        check_archive(path)
    except ValueError as error:
        raise ValueError(f"checkpoint {path} is damaged or not a checkpoint ({error})") from None
