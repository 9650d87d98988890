"""Work spread over processes of this machine, with results in the order of the work."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


LITTLE_BYTES = 64 << 20
"""Reading and writing these takes less time than starting processes."""


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
    # Forked from a server that has loaded the libraries, and not from this process, which may hold threads (of torch,
    # of pyarrow) that forking would cut off.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.dataset.shard"])
    with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
        yield from pool.map(function, jobs)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # on Ctrl-C the first process speaks for all
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Else a worker would go on writing into a folder that the next run may have begun to fill."""
    multiprocessing.parent_process().join()
    os._exit(1)
