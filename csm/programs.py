"""The Hydra programs `csm-train` and `csm-evaluate`; train.py and evaluate.py run them from a checkout.

Nothing here imports torch before Hydra has composed the configuration, so `--help` and mistakes do not wait for it.

Exit codes:  0   done: trained to the last step, or the report is written.
             2   something in the request or on disk is wrong; one line on stderr says what and how to fix it.
             130 interrupted by Ctrl-C.
             75  training was stopped by SIGTERM or SIGUSR1 and has saved a checkpoint; the same command resumes it.
             1   anything else, with a traceback. torchrun turns every code but 0 into 1.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from csm.compose import EVALUATE, TRAIN, config_folder
from csm.errors import user_errors

log = logging.getLogger(__name__)

# torch 2.9 reads segments under the first name only; later versions still know it, and call it the second.
_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def train() -> None:
    """Entry point of `csm-train`."""
    allocate_expandable_segments()
    try:
        with user_errors():
            sys.argv[1:] = TRAIN.read_words(sys.argv[1:])
            _train()
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def allocate_expandable_segments() -> None:
    """Has PyTorch's CUDA allocator grow its segments, so that less memory is lost between blocks of different sizes,
    unless the user has configured it. It reads this when torch is imported, which therefore comes later."""
    if not any(name in os.environ for name in _ALLOCATOR):
        os.environ[_ALLOCATOR[0]] = "expandable_segments:True"


def evaluate() -> None:
    """Entry point of `csm-evaluate`."""
    with user_errors():
        if sys.argv[1:2] == ["compare"]:
            from csm.evaluation.compare import main

            main(sys.argv[2:])
            return
        if sys.argv[1:2] == ["index"]:
            from csm.evaluation.index import main as index

            index(sys.argv[2:])
            return
        if sys.argv[1:2] == ["listening"]:
            from csm.evaluation.listening.command import main as listening

            listening(sys.argv[2:])
            return
        sys.argv[1:] = EVALUATE.read_words(sys.argv[1:])
        _evaluate()


@hydra.main(version_base="1.3", config_path=str(config_folder("train")), config_name="train")
def _train(config: DictConfig) -> float | None:
    job = HydraConfig.get()
    if job.mode is RunMode.MULTIRUN:  # otherwise all jobs of a sweep would share, and resume, one run
        config.run_dir = job.runtime.output_dir
    log.info("%s: training in %s", config.name, config.run_dir)  # before the seconds that importing PyTorch takes
    from csm.training.build import train

    with user_errors():
        return train(TRAIN.options(config))


@hydra.main(version_base="1.3", config_path=str(config_folder("evaluate")), config_name="evaluate")
def _evaluate(config: DictConfig) -> None:
    with user_errors():
        if OmegaConf.is_missing(config, "checkpoint"):
            raise ValueError(
                "no checkpoint given; usage: python evaluate.py checkpoint=PATH (exported model, .ckpt or hub id)"
            )
        from csm.evaluation.run import evaluate

        folder = evaluate(EVALUATE.options(config))
        if folder is not None:
            print_headline(folder)


HEADLINE = 4
"""Metrics that the terminal shows, the first of the suite's; the report has them all."""


def print_headline(folder: Path) -> None:
    """Prints the headline numbers of the report in `folder`."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    metrics = dict(list(results["metrics"].items())[:HEADLINE])
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", max_width=14)
    for metric in metrics.values():
        table.add_column(metric["short"])
    table.add_column("failed")
    for row in results["systems"].values():
        values = [_cell(metric["percent"], row["metrics"][name]) for name, metric in metrics.items()]
        table.add_row(row["title"], *values, _failed(row))
    console = Console()
    if metrics:
        console.print(table)
        judges = f"{results['error_rate']} by {results['recognizer']}, cosines by {results['speaker_embedder']}"
        console.print(f"{judges}, 95 % intervals")
    if scores := results["teacher_forced"]:
        console.print(_teacher_forced(scores), markup=False, highlight=False)
    for note in results["notes"]:
        console.print(f"- {note}", markup=False)
    console.print(f"Report with audio: {folder / 'report.html'}", soft_wrap=True)


def _teacher_forced(scores: dict[str, Any]) -> str:
    if "not_run" in scores:
        return f"Teacher-forced scores: not run: {scores['not_run']}"

    def number(value: dict[str, Any]) -> str:
        interval = "" if value["low"] is None else f" [{value['low']:.3f}, {value['high']:.3f}]"
        return f"{value['value']:.3f}{interval}"

    gain, frames = scores["context_gain"], f"{scores['frames']} frames of split {scores['split']}"
    saved = gain["not_run"] if "not_run" in gain else f"{number(gain['none']['loss'])} nats a frame"
    return f"Teacher-forced loss: {number(scores['loss'])} nats, {frames}; gain from context: {saved}"


def _failed(row: dict[str, Any]) -> str:
    """Utterances with a failure, of those that were scored; one may have several."""
    share = row["metrics"].get("failed", {})
    return f"{round(share['value'] * share['items'])}/{share['items']}" if "value" in share else ""


def _cell(percent: bool, metric: dict[str, Any]) -> str:
    if "not_run" in metric:
        return "not run"
    scale, digits = (100, 1) if percent else (1, 3)
    text = f"{scale * metric['value']:.{digits}f}"
    if metric["low"] is not None:
        text += f"\n{scale * metric['low']:.{digits}f}..{scale * metric['high']:.{digits}f}"
    return text
