"""Progress of long work on stderr: a bar in a terminal, plain lines elsewhere (nohup, Slurm, CI)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

LINE_SECONDS = 10.0
"""Seconds between two plain lines; the first comes at once."""


class TerminalProgress(Progress):
    """A rich `Progress` whose columns also make the plain lines, without bars and spinners."""

    def __init__(self, *columns: str | ProgressColumn) -> None:
        console = Console(stderr=True)
        super().__init__(*columns, console=console, disable=not console.is_terminal)
        self._next = 0.0

    def update(self, task_id: TaskID, **fields: Any) -> None:
        super().update(task_id, **fields)
        self._line(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._line(task_id)

    def _line(self, task_id: TaskID) -> None:
        task = self._tasks[task_id]
        ended = task.total is not None and task.completed >= task.total
        if self.disable and (ended or time.monotonic() >= self._next):
            self._next = time.monotonic() + LINE_SECONDS
            parts = [
                getattr(column(task), "plain", "") for column in self.columns if isinstance(column, ProgressColumn)
            ]
            self.console.print(" ".join(part for part in parts if part), highlight=False, soft_wrap=True)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yields `items` and shows how many of `total` (their length if they have one) have been dealt with."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with TerminalProgress(*columns) as progress:
        yield from progress.track(items, total, description=description)
