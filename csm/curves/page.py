"""Curves of a training on one page that works from disk: `csm curves RUN_DIR`, from what its run folder holds.

    metrics.jsonl, skipped_steps.jsonl, loss_spikes.jsonl  ->  read_run  ->  plots, warnings  ->  RUN_DIR/curves.html

The warnings are those that training logged, about labels without the losses that it named: they follow from the metrics
of validations and samples (csm/stability).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from csm.curves.plots import CurvePlot, end_plot, gradient_plot, label_plots, loss_plot, sample_plots
from csm.files import write_atomically
from csm.stability.labels import metric_faults
from csm.stability.sample_metrics import EndRecall, drift

_EVENTS = ("skipped_steps", "loss_spikes")
"""Files of steps that went wrong."""


@dataclass(frozen=True)
class Run:
    """records: the lines of metrics.jsonl, each with its "step"; skipped, spikes: steps"""

    name: str
    records: list[dict[str, Any]]
    skipped: list[int]
    spikes: list[int]

    @property
    def last_step(self) -> int:
        return max(record["step"] for record in self.records)


def read_run(folder: Path) -> Run:
    """Reads a run so far. Raises FileNotFoundError or ValueError, naming the file, if it has no metrics."""
    from csm.training.loggers import read_lines  # brings Lightning, which takes seconds

    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; give the run_dir of a training with logger=jsonl, the default")
    try:
        records = read_lines(file)
        skipped, spikes = ([line["step"] for line in read_lines(folder / f"{name}.jsonl")] for name in _EVENTS)
        if not records:
            raise ValueError("it has no line yet; the first comes after trainer.log_every_steps steps")
        if not all(isinstance(record, dict) and "step" in record for record in records):
            raise ValueError("it has lines without a step")
        return Run(folder.resolve().name, records, skipped, spikes)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: holds no metrics of a training ({error})") from error


def end_warnings(records: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """(step, sentence) for each validation in which the model had unlearned ends of speech."""
    watch, found = EndRecall(), []
    for record in records:
        if record.get("val/eos_recall") is not None:
            found.append((record["step"], watch.see(record["step"], record["val/eos_recall"])))
    return [(step, sentence) for step, sentence in found if sentence is not None]


def label_warnings(records: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """(step, sentence) for the first validation that showed each fault of the labels or the attention mask."""
    found: dict[str, tuple[int, str]] = {}
    for record in records:
        for name, sentence in metric_faults(record).items():
            found.setdefault(name, (record["step"], sentence))
    return list(found.values())


def all_warnings(records: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """(step, sentence), by their steps."""
    return sorted(end_warnings(records) + label_warnings(records) + sample_warnings(records))


def sample_warnings(records: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """(step, sentence) for each time that the samples had got worse."""
    found: list[tuple[int, str]] = []
    earlier: list[tuple[int, dict[str, float]]] = []
    for record in records:
        if "samples/ended" in record:
            now = {name: math.nan if value is None else value for name, value in record.items()}
            found += [(record["step"], sentence) for sentence in drift(earlier, now)]
            earlier.append((record["step"], now))
    return found


def page(run: Run) -> str:
    """The page: HTML without anything from elsewhere."""
    of_ends, of_samples = end_warnings(run.records), sample_warnings(run.records)
    plots: list[CurvePlot] = [
        loss_plot(run.records, run.skipped, run.spikes),
        *gradient_plot(run.records),
        *end_plot(run.records, of_ends),
        *label_plots(run.records),
        *sample_plots(run.records, of_samples),
    ]
    template = jinja2.Environment(
        loader=jinja2.PackageLoader("csm", "curves"), autoescape=True, undefined=jinja2.StrictUndefined
    ).get_template("curves.html.j2")
    return template.render(
        name=run.name,
        last_step=run.last_step,
        plots=plots,
        warnings=all_warnings(run.records),
        sampled=any("samples/ended" in record for record in run.records),
        skipped=run.skipped,
        spikes=run.spikes,
    )


def draw(arguments: argparse.Namespace) -> None:
    folder: Path = arguments.run_dir
    run = read_run(folder)
    out: Path = arguments.out or folder / "curves.html"
    content = page(run)
    write_atomically(out, lambda temporary: temporary.write_text(content, encoding="utf-8"))
    count = len(all_warnings(run.records))
    print(f"{out}: {run.last_step} steps, {count} warning{'' if count == 1 else 's'}")


def add_parser(commands: Any) -> None:
    """Adds `curves` to the subcommands of `csm`."""
    parser = commands.add_parser("curves", help="losses, gradient norms and sample metrics of a run on one page")
    parser.add_argument("run_dir", type=Path, help="of a training, finished or not")
    parser.add_argument("--out", type=Path, help="an HTML file (default: curves.html in the run's folder)")
    parser.set_defaults(run=draw)
