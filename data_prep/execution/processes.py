"""Worker processes on this machine: start-up, and an ordered parallel map."""

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
"""Reading and writing this much takes less time than starting processes."""


def worker_context() -> ForkServerContext:
    """A context that forks workers from a server process with all libraries loaded, which takes seconds. Forking this
    process instead is unsafe: it may hold threads (of torch, of pyarrow) or a CUDA context."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.execution.pipeline", "data_prep.dataset.shard"])
    return context


def end_with_parent() -> None:
    """Makes this worker process exit as soon as its parent is gone, for whatever reason. Otherwise it would continue to
    write into a folder that the next run may be using."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a worker"

    def exit_after_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_after_parent, daemon=True).start()


def ordered_map(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, size: int) -> Iterator[Result]:
    """`map(function, jobs)` in `workers` processes, or in this process if `workers` is 1.

    Args:
        workers: 0: one per processor, or one in total if all jobs together read at most LITTLE_BYTES.
        size: bytes read by all jobs together.

    `function`, its arguments and its results are pickled. An exception cancels the jobs not yet started and is raised
    here. If this process is killed, its workers exit at once.
    """
    by_default = 1 if size <= LITTLE_BYTES else len(os.sched_getaffinity(0))
    workers = min(workers or by_default, len(jobs))
    if workers <= 1:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(workers, worker_context(), initializer=_start_worker) as pool:
        yield from pool.map(function, jobs)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # on Ctrl-C only the main process reports
    end_with_parent()
