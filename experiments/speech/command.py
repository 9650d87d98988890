"""The command: `python -m experiments.speech NAME MODEL [MODEL ...] [words for evaluate.py]`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from csm.compose import EVALUATE
from csm.errors import user_errors
from csm.evaluation.compare import Run, read_run
from csm.evaluation.run import evaluate
from csm.files import atomic_directory, write_atomically
from csm.formats.open import open_checkpoint
from csm.formats.quantize import quantize
from csm.quantization.schemes import PARTS
from experiments.arms.experiment import EXPERIMENTS, slug
from experiments.arms.page import machine_of
from experiments.arms.trainings import hardware
from experiments.speech.comparison import compare_arms
from experiments.speech.description import SpeechExperiment, read_description
from experiments.speech.page import figure, page

RESULTS = "results.json"


def main(words: Sequence[str] | None = None) -> None:
    """Entry point; `words` are the command line's, by default this process's own."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.speech",
        description="Has a model speak held-out sentences in every arm of an experiment; writes results.json, page "
        "and plot. What was spoken and transcribed before is not done again.",
    )
    parser.add_argument("name", help="folder below experiments/, or an absolute path, with a speech.yaml")
    parser.add_argument(
        "words", nargs="+", metavar="MODEL", help="model directories, then words for evaluate.py, such as device=cuda"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"), help="folder of the reports")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the pages")
    arguments = parser.parse_intermixed_args(words)
    models = [Path(word) for word in arguments.words if "=" not in word]
    more = [word for word in arguments.words if "=" in word]
    folder = EXPERIMENTS / arguments.name
    try:
        with user_errors():
            if not models:
                raise ValueError(f"{arguments.name}: name the model directory that is to speak")
            experiment = read_description(folder)
            found = _run(experiment, models, more, arguments.runs / folder.name)
            _write(found, folder, arguments.docs)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)


def _run(experiment: SpeechExperiment, models: Sequence[Path], more: Sequence[str], runs: Path) -> dict[str, Any]:
    """Content of results.json."""
    order = [experiment.reference, *(arm for arm in experiment.arms if arm != experiment.reference)]
    reports: dict[str, list[Run]] = {arm: [] for arm in order}
    for number, model in enumerate(models):
        first = runs / f"{slug(order[0])}-model{number}"
        for arm in order:
            print(f"{model}, {arm}", file=sys.stderr, flush=True)
            output = runs / f"{slug(arm)}-model{number}"
            if arm != order[0] and not output.exists():
                # Parts of a report are named by what they were made of: recordings, and what judges said of them, are
                # those of the first arm.
                with atomic_directory(output) as copy:
                    shutil.copytree(first, copy, ignore=shutil.ignore_patterns("results.json"), dirs_exist_ok=True)
            spoken_with = _quantized(model, experiment.quantized[arm], output) if arm in experiment.quantized else model
            words = [*experiment.base, *experiment.arms[arm], *more]
            words += [f"checkpoint={spoken_with}", f"output={output}"]
            evaluate(EVALUATE.options(EVALUATE.compose(words)))
            reports[arm].append(read_run(output))
    return {
        "experiment": asdict(experiment) | {"words": list(more)},
        "models": [str(model) for model in models],
        "machine": machine_of(hardware()),
        **compare_arms(reports),
    }


def _quantized(model: Path, scheme: str, output: Path) -> Path:
    """The model in that scheme, in a folder beside the arm's report."""
    smaller = output.with_name(f"{output.name}-{scheme}")
    quantize(open_checkpoint(str(model)), scheme, PARTS, smaller, overwrite=True)
    return smaller


def _write(found: dict[str, Any], folder: Path, docs: Path) -> None:
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / RESULTS, lambda file: file.write_text(text, encoding="utf-8"))
    remarks = folder / "remarks.md"
    image = Path("images") / f"experiment_{folder.name}.svg"
    written = docs / "experiments" / f"{folder.name}.md"
    by_hand = remarks.read_text(encoding="utf-8") if remarks.is_file() else ""
    write_atomically(docs / image, lambda file: file.write_text(figure(found), encoding="utf-8"))
    write_atomically(written, lambda file: file.write_text(page(found, folder.name, image, by_hand), encoding="utf-8"))
    print(f"{folder / RESULTS}, {written}", file=sys.stderr)
