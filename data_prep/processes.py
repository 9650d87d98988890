"""Work spread over processes of this machine, with results in the order of the work."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """`map(function, jobs)` in `workers` processes (0: as many as processors); one works in this process.

    `function` and what it takes and returns are pickled. An error ends the work not yet begun and is raised here.
    """
    workers = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    if workers <= 1:
        yield from map(function, jobs)
        return
    # Spawned: this process may hold threads (of torch, of pyarrow) that forking would cut off.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(function, jobs)
