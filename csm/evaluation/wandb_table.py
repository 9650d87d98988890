"""The headline numbers and a table of items, with audio of the worst and of some at random, as a W&B run."""

from __future__ import annotations

import random
from pathlib import Path

import wandb

from csm.evaluation.report import Report
from csm.evaluation.scores import NotRun
from csm.evaluation.utterances import System

WITH_AUDIO = 50
"""So many of the worst items are sent with their audio, and so many drawn at random."""


def send_to_wandb(report: Report, folder: Path, project: str) -> None:
    """Sends a written report: `eval/<suite>/<system>/<metric>` in the run's summary, the table, and the report's files.

    WANDB_MODE decides whether anything leaves this machine.

    Raises:
        ValueError: the run cannot be started; the message says what to do.
    """
    try:
        run = wandb.init(project=project, name=report.title, job_type="evaluation", config=report.protocol)
    except Exception as error:
        cause = str(error).strip().splitlines()[0]
        raise ValueError(f"wandb_project={project}: {cause}; run `wandb login`, or set WANDB_MODE=offline") from error
    with run:
        for row in report.scores:
            for name, score in row.metrics.items():
                if not isinstance(score, NotRun):
                    run.summary[f"eval/{report.suite}/{row.name}/{name}"] = score.value
        spoken = [u for u in report.utterances if u.system is System.model]
        worst = sorted(range(len(spoken)), key=lambda i: -(_rate(spoken[i].errors)))[:WITH_AUDIO]
        heard = {*worst, *random.Random(0).sample(range(len(spoken)), min(WITH_AUDIO, len(spoken)))}
        table = wandb.Table(columns=["prompt", "condition", "seed", "text", "heard", "wer", "failures", "audio"])
        for number, u in enumerate(spoken):
            audio = wandb.Audio(str(folder / u.audio_file)) if number in heard and u.audio_file else None
            flags = ", ".join(flag.value for flag in u.flags)
            wer = u.errors.rate if u.errors else None
            table.add_data(u.prompt, u.condition, u.seed, u.text, u.hypothesis, wer, flags, audio)
        run.log({f"eval/{report.suite}/items": table})
        files = wandb.Artifact(f"eval-{report.suite}-{run.id}", type="evaluation")
        for name in ("results.json", "utterances.jsonl", "report.md", "report.html"):
            files.add_file(str(folder / name))
        run.log_artifact(files)


def _rate(errors: object) -> float:
    return getattr(errors, "rate", None) or 0.0
