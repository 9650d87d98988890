"""The commands of `python -m data_prep` and their output; the program itself is in data_prep/main.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from csm.data.dataset import DatasetInfo, ShardedDataset
from csm.data.lengths import load_lengths
from csm.text import load_tokenizer
from data_prep.config import DataPrepCommand, DataPrepConfig, work_folder
from data_prep.dataset.mix import describe, mix
from data_prep.dataset.rebuild import rebuild
from data_prep.dataset.takedown import read_names, takedown
from data_prep.dataset.verify import verify
from data_prep.demo import prepare_demo_dataset
from data_prep.execution.run import RunSummary, retry, run, status
from data_prep.execution.unit_files import TRANSIENT_REASONS
from data_prep.export.command import export
from data_prep.inputs.notes import listed
from data_prep.inputs.plan import Plan, make_plan
from data_prep.packing.output import REPORT_FILE
from data_prep.packing.pack import pack
from data_prep.prepare import UnitsFailed, check_options, prepare
from data_prep.reasons import Reason
from data_prep.report.report import write_report


def run_command(cfg: DataPrepConfig) -> int:
    """Runs `cfg.command` and returns the exit code of the program."""
    check_options(cfg)
    return _RUN[cfg.command](cfg)


def _all(cfg: DataPrepConfig) -> int:
    try:
        dataset, summary = prepare(cfg, lambda plan: _print_plan(cfg, plan))
    except UnitsFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _print_dataset(cfg, dataset)
    return _print_run(cfg, summary)


def _demo(cfg: DataPrepConfig) -> int:
    _print_dataset(cfg, prepare_demo_dataset(cfg))
    return 0


def _plan(cfg: DataPrepConfig) -> int:
    _print_plan(cfg, make_plan(cfg))
    return 0


def _print_plan(cfg: DataPrepConfig, plan: Plan) -> None:
    """Prints the plan, and the account of each source."""
    hours = sum(unit.seconds for unit in plan.units) / 3600
    recordings = sum(unit.recordings for unit in plan.units)
    print(f"{work_folder(cfg)}: {recordings} recordings, {hours:.2f} hours in {len(plan.units)} units")
    if plan.rejections:
        print(f"  rejected: {len(plan.rejections)} recordings, see rejects.parquet there")
    if plan.corrected:
        print(f"  annotated otherwise than before: {listed(plan.corrected)}; their units are run again")
    for source in plan.understood:
        for line in source.lines():
            print(_printable(line))


def _printable(text: str) -> str:
    r"""A text that may hold the name of a file that is not UTF-8, with invalid bytes as \udcNN."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _run(cfg: DataPrepConfig) -> int:
    return _print_run(cfg, run(cfg))


def _status(cfg: DataPrepConfig) -> int:
    found = status(cfg)
    share = found.seconds_done / found.seconds if found.seconds else 1.0
    hours = found.seconds / 3600
    print(f"{found.done} of {found.units} units done, {found.started} started; {share:.1%} of {hours:.2f} h")
    _print_rejected(found.rejected)
    if not found.same_options:
        print("of the last run, whose options were others than those given here")
    if found.retryable:
        print(f"{found.retryable} of them may succeed on another attempt: python -m data_prep retry, then run")
    return 0


def _retry(cfg: DataPrepConfig) -> int:
    print(f"{len(retry(cfg))} recordings re-queued for the next run")
    return 0


def _pack(cfg: DataPrepConfig) -> int:
    _print_dataset(cfg, pack(cfg))
    return 0


def _index(cfg: DataPrepConfig) -> int:
    _print_dataset(cfg, rebuild(Path(cfg.output), cfg.pack.workers))
    return 0


def _verify(cfg: DataPrepConfig) -> int:
    problems = verify(cfg.output, cfg.pack.workers)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"OK: no problems found in {cfg.output}")
    return 1 if problems else 0


def _report(cfg: DataPrepConfig) -> int:
    print(write_report(cfg.output, cfg.seed, cfg.report.conversations))
    return 0


def _export(cfg: DataPrepConfig) -> int:
    done = export(cfg)
    print(f"{done.folder}: {done.conversations} conversations")
    for line in done.without_audio[:10]:
        print(f"  without its audio, left out: {line}", file=sys.stderr)
    if len(done.without_audio) > 10:
        print(f"  and {len(done.without_audio) - 10} more", file=sys.stderr)
    return 0


def _take_down(cfg: DataPrepConfig) -> int:
    if cfg.takedown is None:
        raise ValueError("takedown is not set; give takedown=FILE with one name of a recording or group per line")
    taken = takedown(cfg.output, read_names(Path(cfg.takedown)))
    print(f"{cfg.output}: {taken.samples} conversations, {taken.hours:.3f} hours taken down")
    return 0


def _mix(cfg: DataPrepConfig) -> int:
    print(describe(mix(cfg.weights, Path(cfg.output), cfg.overwrite)))
    return 0


def _lengths(cfg: DataPrepConfig) -> int:
    dataset = ShardedDataset(cfg.output)
    lengths = load_lengths(dataset, load_tokenizer(cfg.tokenizer), cache_dir=None)
    print(f"{cfg.output}: {len(dataset)} conversations, {int(lengths[0].sum(dtype='int64'))} positions")
    return 0


_RUN: dict[DataPrepCommand, Callable[[DataPrepConfig], int]] = {
    DataPrepCommand.all: _all,
    DataPrepCommand.demo: _demo,
    DataPrepCommand.plan: _plan,
    DataPrepCommand.run: _run,
    DataPrepCommand.status: _status,
    DataPrepCommand.retry: _retry,
    DataPrepCommand.pack: _pack,
    DataPrepCommand.index: _index,
    DataPrepCommand.verify: _verify,
    DataPrepCommand.report: _report,
    DataPrepCommand.takedown: _take_down,
    DataPrepCommand.export: _export,
    DataPrepCommand.mix: _mix,
    DataPrepCommand.lengths: _lengths,
}


def _print_run(cfg: DataPrepConfig, summary: RunSummary) -> int:
    """Prints a summary of the run; returns the exit code: 1 if anything failed that may succeed on another attempt."""
    done = summary.units - len(summary.failures)
    print(f"{work_folder(cfg)}: {done} of {summary.units} units done, {summary.already_done} of them in earlier runs")
    _print_rejected(dict(summary.rejected.most_common()))
    for failure in summary.failures:
        print(f"error: unit {failure.unit}: {failure.message}", file=sys.stderr)
    failed = sum(summary.rejected[reason] for reason in TRANSIENT_REASONS)
    if failed:
        print(f"{failed} recordings failed; fix the cause, then: python -m data_prep retry, and run")
    return 1 if summary.failures or failed else 0


def _print_rejected(rejected: dict[Reason, int]) -> None:
    for reason, recordings in rejected.items():
        print(f"  rejected, {reason}: {recordings} recordings")


def _print_dataset(cfg: DataPrepConfig, dataset: DatasetInfo) -> None:
    print(f"{cfg.output}:")
    for split, totals in dataset.totals.items():
        hours, turns, samples = totals["hours"], totals["turns"], totals["samples"]
        print(f"  {split}: {hours:.3f} hours, {turns} turns in {samples} conversations")
    for reason, turns in dataset.rejected.items():
        print(f"  rejected, {reason}: {turns} turns or recordings")
    if (Path(cfg.output) / REPORT_FILE).is_file():
        print(f"  report: {Path(cfg.output) / REPORT_FILE}")
