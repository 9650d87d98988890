"""The commands `run`, `status` and `retry`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from csm.progress import TerminalProgress
from data_prep.config import DataPrepConfig, ExecutorKind, work_folder
from data_prep.execution.executor import Executor, UnitFailure
from data_prep.execution.fit_codec import fit_codec
from data_prep.execution.gpus import check_gpus
from data_prep.execution.local import run_inline, run_local
from data_prep.execution.pipeline import build_stages, last_run, remember_stages, run_codec
from data_prep.execution.ray import run_ray
from data_prep.execution.slurm import run_slurm
from data_prep.execution.unit import DONE_FILE, StageTable, UnitReport, fingerprints, is_done, unit_folder
from data_prep.execution.unit_files import ATTEMPTS_FILE, TRANSIENT_REASONS, StageFiles
from data_prep.inputs.plan import load_plan
from data_prep.reasons import Reason

EXECUTORS: dict[ExecutorKind, Executor] = {
    ExecutorKind.inline: run_inline,
    ExecutorKind.local: run_local,
    ExecutorKind.ray: run_ray,
    ExecutorKind.slurm: run_slurm,
}


@dataclass
class RunSummary:
    """The outcome of a run."""

    units: int  # of the plan
    already_done: int
    failures: list[UnitFailure] = field(default_factory=list)
    rejected: Counter[Reason] = field(default_factory=Counter)  # reason -> recordings, of the units of this run


def run(cfg: DataPrepConfig) -> RunSummary:
    """Runs every unit of the plan that is not done with these options.

    Raises FileNotFoundError or ValueError if there is no plan, if the codec or a model is missing, or if workers would
    not get the GPUs that they need.
    """
    check_gpus(cfg)
    work = work_folder(cfg)
    plan = load_plan(work)
    fit_codec(cfg, plan, work)
    stages = build_stages(cfg, run_codec(cfg))
    remember_stages(cfg, work, stages)
    current = fingerprints(stages)
    waiting = [unit for unit in plan.units if not is_done(work, unit.id, current)]
    waiting.sort(key=lambda unit: (-unit.seconds, unit.id))
    summary = RunSummary(len(plan.units), len(plan.units) - len(waiting))
    if not waiting:
        return summary

    def on_report(report: UnitReport) -> None:
        summary.rejected.update(report.rejected)

    with _progress() as progress:
        bar = progress.add_task("Running stages", total=sum(unit.seconds for unit in waiting))

        def on_progress(stage: str, seconds: float) -> None:
            """Each stage counts for an equal share of a unit."""
            progress.advance(bar, seconds if stage == "unit" else seconds / len(stages))

        ids = [unit.id for unit in waiting]
        summary.failures = EXECUTORS[cfg.executor.kind](cfg, ids, on_report, on_progress)
    return summary


@dataclass
class Status:
    """The progress of a plan."""

    units: int
    done: int
    started: int  # but not done
    seconds: float
    seconds_done: float
    rejected: dict[Reason, int]  # reason -> recordings, of all units and the plan itself
    retryable: int  # recordings that `retry` would re-queue
    same_options: bool  # of the last run, which is told of, and this command


def status(cfg: DataPrepConfig) -> Status:
    """The progress of the last run, whatever its options.

    Raises FileNotFoundError or ValueError if there is no plan.
    """
    work = work_folder(cfg)
    plan = load_plan(work)
    last = last_run(cfg, work)
    tables = last.tables if last else []
    current = {table.stage: table.fingerprint for table in tables}
    found = Status(len(plan.units), 0, 0, 0.0, 0.0, {}, 0, last is None or last.same_options)
    rejected = Counter(rejection.reason for rejection in plan.rejections)
    for unit in plan.units:
        folder = unit_folder(work, unit.id)
        done = is_done(work, unit.id, current)
        found.done += done
        found.started += not done and folder.is_dir()
        found.seconds += unit.seconds
        found.seconds_done += unit.seconds if done else 0.0
        for files in _complete(folder, tables):
            rejected.update(rejection.reason for rejection in files.rejections())
    found.rejected = dict(rejected.most_common())
    found.retryable = sum(rejected[reason] for reason in TRANSIENT_REASONS)
    return found


def retry(cfg: DataPrepConfig) -> list[str]:
    """Re-queues the recordings that crashed, failed or timed out, for the next run; returns their ids.

    The stage in which that happened, and all later ones, are repeated for the whole unit.
    """
    work = work_folder(cfg)
    plan = load_plan(work)
    last = last_run(cfg, work)
    tables = last.tables if last else []
    requeued: list[str] = []
    for unit in plan.units:
        folder = unit_folder(work, unit.id)
        repeat = False
        for files in _complete(folder, tables):
            failed = [rejection.recording for rejection in files.rejections() if rejection.reason in TRANSIENT_REASONS]
            requeued += failed
            repeat = repeat or bool(failed)
            if repeat:
                files.forget()
        if repeat:
            (folder / DONE_FILE).unlink(missing_ok=True)
            (folder / ATTEMPTS_FILE).unlink(missing_ok=True)
    return requeued


def _complete(folder: Path, tables: list[StageTable]) -> list[StageFiles]:
    files = [StageFiles(folder, table.stage, table.fingerprint, table.result) for table in tables]
    return [entry for entry in files if entry.complete()]


class _Hours(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = f", {task.speed / 3600:.4f} hours/s" if task.speed else ""
        return Text(f"{task.completed / 3600:.2f}/{(task.total or 0) / 3600:.2f} hours{speed}")


def _progress() -> TerminalProgress:
    return TerminalProgress(TextColumn("{task.description}"), BarColumn(), _Hours(), TimeRemainingColumn())
