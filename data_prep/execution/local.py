"""Units on this machine: in the calling process, or in worker processes that are replaced when they die."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from data_prep.config import DataPrepConfig
from data_prep.execution.executor import UNIT_ERRORS, OnProgress, UnitFailure
from data_prep.execution.gpus import gpus_of, visible_gpus, workers_with_a_share
from data_prep.execution.pipeline import Worker
from data_prep.execution.processes import end_with_parent, worker_context
from data_prep.execution.unit import UnitReport

MAX_DEATHS = 20
"""Limit on the deaths of workers on one unit in one run. Each death counts against the recording in progress, which is
rejected after `executor.max_attempts` of them; this many deaths have another cause."""


def run_inline(
    cfg: DataPrepConfig, units: list[str], on_report: Callable[[UnitReport], None], on_progress: OnProgress
) -> list[UnitFailure]:
    worker = Worker(cfg)
    failures = []
    for unit in units:
        try:
            on_report(worker.run(unit, on_progress))
        except UNIT_ERRORS as error:
            failures.append(UnitFailure.of(unit, error))
            if failures[-1].ends_run:
                break
    return failures


def number_of_workers(cfg: DataPrepConfig) -> int:
    """`executor.workers`, or by default one for each GPU share or for each `cpus_per_worker` processors."""
    options = cfg.executor
    if options.workers:
        return options.workers
    if options.gpus_per_worker > 0:
        return workers_with_a_share(options.gpus_per_worker, len(visible_gpus()))
    return max(1, len(os.sched_getaffinity(0)) // options.cpus_per_worker)


def run_local(
    cfg: DataPrepConfig, units: list[str], on_report: Callable[[UnitReport], None], on_progress: OnProgress
) -> list[UnitFailure]:
    """Runs units in one process per worker, each with its own models; see `Executor`.

    A process that dies (a decoder's segmentation fault, the kernel's out-of-memory killer, a timeout) is replaced, and
    the new one resumes its unit.
    """
    waiting = list(reversed(units))
    deaths: dict[str, int] = {}
    failures: list[UnitFailure] = []
    workers = [_Process(cfg, slot) for slot in range(min(number_of_workers(cfg), len(units)))]
    try:
        for worker in workers:
            worker.give(waiting.pop())
        while busy := [worker for worker in workers if worker.unit is not None]:
            for ready in wait([worker.connection for worker in busy]):
                worker = next(worker for worker in busy if worker.connection is ready)
                unit = worker.unit
                assert unit is not None, "an idle worker sends nothing"
                message = worker.receive()
                if isinstance(message, tuple):
                    on_progress(*message)
                    continue
                if message is None:
                    deaths[unit] = deaths.get(unit, 0) + 1
                    code = worker.end()
                    workers[workers.index(worker)] = worker = _Process(cfg, worker.slot)
                    if deaths[unit] < MAX_DEATHS:
                        worker.give(unit)
                        continue
                    failures.append(UnitFailure(unit, f"{MAX_DEATHS} workers died on it, the last with code {code}"))
                elif isinstance(message, UnitFailure):
                    failures.append(message)
                    if message.ends_run:
                        waiting = []
                else:
                    on_report(message)
                worker.give(waiting.pop() if waiting else None)
    finally:
        for worker in workers:
            worker.end()
    return failures


@dataclass
class _Setup:
    cfg: DataPrepConfig
    gpus: list[str] | None  # None: all that this machine has


class _Process:
    """A worker process and its current unit."""

    def __init__(self, cfg: DataPrepConfig, slot: int) -> None:
        self.slot = slot
        self.unit: str | None = None
        context = worker_context()
        self.connection, theirs = context.Pipe()
        share = cfg.executor.gpus_per_worker
        gpus = gpus_of(slot, share, visible_gpus()) if share else None
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, _Setup(cfg, gpus)), daemon=True)
        self.process.start()
        theirs.close()  # so that the death of the process closes the connection

    def give(self, unit: str | None) -> None:
        self.unit = unit
        if unit is not None:
            with suppress(BrokenPipeError):  # it is dead already, which `receive` will notice
                self.connection.send(unit)

    def receive(self) -> Any:
        """Progress (a tuple), a report, a failure, or None if the process is dead."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            return None

    def end(self) -> int | None:
        self.connection.close()  # which makes an idle worker exit
        if self.unit is None:
            self.process.join(10)
        self.process.terminate()
        self.process.join()
        return self.process.exitcode


def _serve(connection: Connection, setup: _Setup) -> None:
    """Runs units as they arrive, until the other end of the connection is closed."""
    end_with_parent()
    if setup.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(setup.gpus)
    worker = None
    while True:
        try:
            unit = connection.recv()
        except (EOFError, OSError):
            return
        try:
            worker = worker or Worker(setup.cfg)
            connection.send(worker.run(unit, lambda stage, seconds: connection.send((stage, seconds))))
        except UNIT_ERRORS as error:
            connection.send(UnitFailure.of(unit, error))
