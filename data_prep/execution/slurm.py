"""Units as Slurm jobs, through submitit: one job array, each task with a share of the units.

submitit requeues a task that is preempted or reaches its time limit. The requeued task resumes: it skips units that are
done, and the finished stages of the unit in progress.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from data_prep.config import DataPrepConfig, ExecutorConfig, work_folder
from data_prep.execution.executor import UNIT_ERRORS, OnProgress, UnitFailure
from data_prep.execution.pipeline import Worker
from data_prep.execution.unit import UnitReport

MAX_TASKS = 1000
"""Size of the array; many clusters allow no more (MaxArraySize is 1001 by default)."""


class UnitTask:
    """The function that one task of the array runs."""

    def __call__(self, cfg: DataPrepConfig, units: list[str]) -> list[UnitReport | UnitFailure]:
        worker = Worker(cfg)
        outcomes: list[UnitReport | UnitFailure] = []
        for unit in units:
            try:
                outcomes.append(worker.run(unit))
            except UNIT_ERRORS as error:
                failure = UnitFailure.of(unit, error)
                outcomes.append(failure)
                if failure.ends_run:
                    break
        return outcomes

    def checkpoint(self, cfg: DataPrepConfig, units: list[str]) -> object:
        """Called by submitit before the task is stopped; the returned submission repeats the task."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, cfg, units)


def task_parameters(options: ExecutorConfig) -> dict[str, Any]:
    """Of one task, as submitit names them. Slurm gives whole GPUs: shares are rounded up."""
    parameters: dict[str, Any] = {"name": "data_prep", "cpus_per_task": options.cpus_per_worker}
    if options.gpus_per_worker:
        parameters["gpus_per_node"] = math.ceil(options.gpus_per_worker)
    return parameters


def run_slurm(
    cfg: DataPrepConfig, units: list[str], on_report: Callable[[UnitReport], None], on_progress: OnProgress
) -> list[UnitFailure]:
    """Submits the array and waits for it; see `Executor`. Jobs outlive this process. A later `run` does not attach to
    them: it submits the units that are not done by then.

    Raises ModuleNotFoundError if submitit is not installed.
    """
    try:
        import submitit
        from submitit.helpers import as_completed
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("executor.kind=slurm needs submitit: pip install 'csm-train[slurm]'") from error
    options = cfg.executor
    tasks = min(len(units), options.workers or MAX_TASKS, MAX_TASKS)
    shares = [units[task::tasks] for task in range(tasks)]
    executor = submitit.AutoExecutor(work_folder(cfg) / options.slurm_folder, cluster=options.slurm_cluster)
    executor.update_parameters(**task_parameters(options))
    executor.update_parameters(**options.slurm)
    jobs = executor.map_array(UnitTask(), [cfg] * tasks, shares)
    share_of = {job.job_id: share for job, share in zip(jobs, shares, strict=True)}
    failures: list[UnitFailure] = []
    for job in as_completed(jobs):
        share = share_of[job.job_id]
        problem = job.exception()
        outcomes = (
            job.result() if problem is None else [UnitFailure(unit, f"job {job.job_id}: {problem}") for unit in share]
        )
        for outcome in outcomes:
            if isinstance(outcome, UnitFailure):
                failures.append(outcome)
            else:
                on_report(outcome)
                on_progress("unit", outcome.seconds)
    return failures
