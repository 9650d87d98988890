"""Processes of this machine: how workers are started, and work spread over them, results in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import ForkServerContext
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

LITTLE_BYTES = 64 << 20
"""Reading and writing these takes less time than starting processes."""


def worker_context() -> ForkServerContext:
    """Workers are forked from a server that has loaded the libraries once, which takes seconds, and not from this
    process, which may hold threads (of torch, of pyarrow) or a GPU that forking would cut off."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.execution.pipeline", "data_prep.dataset.shard"])
    return context


def end_with_parent() -> None:
    """Ends this process as soon as the one that started it is gone, however it ended: else a worker would go on writing
    into a folder that the next run may have begun to fill."""
    threading.Thread(target=_wait_for_the_end, daemon=True).start()


def _wait_for_the_end() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def ordered_map(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, size: int) -> Iterator[Result]:
    """`map(function, jobs)` in `workers` processes, or in this one alone if `workers` is 1.

    workers: 0: as many as processors, or one if all jobs together read no more than LITTLE_BYTES
    size: bytes that all jobs together read

    `function` and what it takes and returns are pickled. An error ends the work not yet begun and is raised here; if
    this process is killed, the others end at once.
    """
    by_default = 1 if size <= LITTLE_BYTES else len(os.sched_getaffinity(0))
    workers = min(workers or by_default, len(jobs))
    if workers <= 1:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(workers, worker_context(), initializer=_start_worker) as pool:
        yield from pool.map(function, jobs)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # on Ctrl-C the first process speaks for all
    end_with_parent()
