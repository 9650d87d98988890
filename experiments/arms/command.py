"""The command of experiments: `python -m experiments.arms NAME`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from csm.errors import user_errors
from csm.files import write_atomically
from experiments.arms.experiment import EXPERIMENTS, Experiment, check, read_experiment, read_measure, slug, words_of
from experiments.arms.figure import figure
from experiments.arms.page import page
from experiments.arms.results import Record, results
from experiments.arms.trainings import Training, finish

RESULTS = "results.json"
REMARKS = "remarks.md"


def main(words: Sequence[str] | None = None) -> None:
    """Entry point; `words` are the command line's, by default this process's own."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.arms",
        description="Runs an experiment, or what is missing of it: trainings, results.json, page and plot.",
    )
    parser.add_argument("name", help="folder below experiments/, or an absolute path, with an experiment.yaml")
    parser.add_argument("overrides", nargs="*", help="words for train.py, for all arms, such as data.path=DATASET")
    parser.add_argument("--steps", type=int, help="optimizer steps instead of the description's")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds instead of the description's")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"), help="folder of the trainings")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the pages")
    parser.add_argument(
        "--threads", type=int, default=1, help="of PyTorch; times of trainings are those of all threads"
    )
    parser.add_argument("--page", action="store_true", help="write page and plot from results.json, without trainings")
    arguments = parser.parse_intermixed_args(words)
    folder = EXPERIMENTS / arguments.name
    try:
        with user_errors():
            if not arguments.page:
                _run(arguments, folder)
            _write_page(folder, arguments.docs)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)


def _run(arguments: argparse.Namespace, folder: Path) -> None:
    """Trains and scores what is missing, and writes results.json."""
    experiment = read_experiment(folder)
    experiment = replace(
        experiment, steps=arguments.steps or experiment.steps, seeds=arguments.seeds or experiment.seeds
    )
    check(experiment, "command line")
    torch.set_num_threads(arguments.threads)
    runs, more = arguments.runs / folder.name, arguments.overrides
    comparisons = {"steps": _train(experiment, dict.fromkeys(experiment.arms, experiment.steps), more, runs)}
    if experiment.equal_time:
        lengths = steps_of_equal_time(experiment, comparisons["steps"])
        comparisons["time"] = _train(experiment, lengths, more, runs)
    text = _json(results(experiment, more, comparisons))
    write_atomically(folder / RESULTS, lambda file: file.write_text(text, encoding="utf-8"))


def _train(experiment: Experiment, lengths: dict[str, int], more: Sequence[str], runs: Path) -> list[Record]:
    """Seed by seed, so that the arms of a seed, whose times are compared, run one after another."""
    views = list(dict.fromkeys(read_measure(name).view for name in experiment.measures))
    records = []
    for seed in experiment.seeds:
        for arm, steps in lengths.items():
            print(f"seed {seed}, {arm}: {steps} steps", file=sys.stderr, flush=True)
            run_dir = runs / f"{slug(arm)}-{steps}steps-seed{seed}"
            words = words_of(experiment, arm, steps, seed, more)
            records.append(finish(Training(arm, seed, steps, words, run_dir), views))
    return records


def steps_of_equal_time(experiment: Experiment, records: Sequence[Record]) -> dict[str, int]:
    """Steps of each arm in the processor time of the reference, by the mean over seeds of what a step has cost."""
    costs: dict[str, float] = dict.fromkeys(experiment.arms, 0.0)
    for record in records:
        costs[record["arm"]] += record["processor_seconds_per_step"]
    return {arm: max(1, round(experiment.steps * costs[experiment.reference] / cost)) for arm, cost in costs.items()}


def _write_page(folder: Path, docs: Path) -> None:
    path = folder / RESULTS
    if not path.is_file():
        raise ValueError(f"{path} does not exist; leave --page out to run the experiment")
    found = json.loads(path.read_text(encoding="utf-8"))
    remarks = folder / REMARKS
    image = Path("images") / f"experiment_{folder.name}.svg"
    text = page(found, folder.name, image, remarks.read_text(encoding="utf-8") if remarks.is_file() else "")
    written = docs / "experiments" / f"{folder.name}.md"
    write_atomically(docs / image, lambda file: file.write_text(figure(found), encoding="utf-8"))
    write_atomically(written, lambda file: file.write_text(text, encoding="utf-8"))
    print(f"{path}, {written}", file=sys.stderr)


def _json(found: dict[str, Any]) -> str:
    """A line for each training and each arm of a comparison; numbers to six digits."""
    runs = ",\n".join(json.dumps(_rounded(run)) for run in found["runs"])
    head = json.dumps(_rounded({key: found[key] for key in ("experiment", "comparisons")}), indent=1)
    return f'{head[:-2]},\n "runs": [\n{runs}\n]}}\n'


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value
