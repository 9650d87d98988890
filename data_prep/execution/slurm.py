"""Units as Slurm jobs, through submitit: one array, each task with a share of the units.

A task that runs into its time limit, or is preempted, is queued again by submitit and goes on where it was: units
that are done are skipped, and so are the finished stages of the unit that it was at.
"""

from __future__ import annotations

from collections.abc import Callable

from data_prep.config import DataPrepConfig, work_folder
from data_prep.execution.executor import UNIT_ERRORS, OnProgress, UnitFailure
from data_prep.execution.pipeline import Worker
from data_prep.execution.unit import UnitReport

MAX_TASKS = 1000
"""Of the array; many clusters allow no more (MaxArraySize is 1001 by default)."""


class UnitTask:
    """What one task of the array runs."""

    def __call__(self, cfg: DataPrepConfig, units: list[str]) -> list[UnitReport | UnitFailure]:
        worker = Worker(cfg)
        outcomes: list[UnitReport | UnitFailure] = []
        for unit in units:
            try:
                outcomes.append(worker.run(unit))
            except UNIT_ERRORS as error:
                outcomes.append(UnitFailure.of(unit, error))
                if outcomes[-1].ends_run:
                    break
        return outcomes

    def checkpoint(self, cfg: DataPrepConfig, units: list[str]) -> object:
        """Called by submitit when the task is about to be stopped: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, cfg, units)


def run_slurm(
    cfg: DataPrepConfig, units: list[str], on_report: Callable[[UnitReport], None], on_progress: OnProgress
) -> list[UnitFailure]:
    """Submits the array and waits for it; see `Executor`. Jobs outlive this process: `run` again later joins nothing,
    but does what they left.

    Raises ModuleNotFoundError with the remedy if submitit is not installed.
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
    executor.update_parameters(cpus_per_task=options.cpus_per_worker, name="data_prep")
    if options.gpus_per_worker:
        executor.update_parameters(gpus_per_node=round(options.gpus_per_worker))
    executor.update_parameters(**options.slurm)
    jobs = executor.map_array(UnitTask(), [cfg] * tasks, shares)
    share_of = {job.job_id: share for job, share in zip(jobs, shares, strict=True)}
    failures: list[UnitFailure] = []
    for job in as_completed(jobs):
        share = share_of[job.job_id]
        error = job.exception()
        outcomes = (
            job.result() if error is None else [UnitFailure(unit, f"job {job.job_id}: {error}") for unit in share]
        )
        failures += [outcome for outcome in outcomes if isinstance(outcome, UnitFailure)]
        for outcome in outcomes:
            if not isinstance(outcome, UnitFailure):
                on_report(outcome)
                on_progress("unit", outcome.seconds)
    return failures
