"""The history in metrics.jsonl after kills and resumes; the W&B run that belongs to a folder."""

from __future__ import annotations

import json
import math

from csm.training.loggers import JsonLines, JsonLinesLogger, read_lines, wandb_logger


def test_steps_that_are_run_again_replace_their_lines(tmp_path):
    path = tmp_path / "folder" / "metrics.jsonl"
    first = JsonLinesLogger(str(path))
    for step in (10, 20, 30):
        first.log_metrics({"train/loss": float(step)}, step)
        first.log_metrics({"val/loss": step + 0.5}, step)
    second = JsonLinesLogger(str(path))  # resumed from a checkpoint of step 20 that has not been validated yet
    second.log_metrics({"val/loss": 1.0}, 20)
    second.log_metrics({"train/loss": math.nan}, 30)
    assert read_lines(path) == [
        {"step": 10, "train/loss": 10.0},
        {"step": 10, "val/loss": 10.5},
        {"step": 20, "train/loss": 20.0},
        {"step": 20, "val/loss": 1.0},
        {"step": 30, "train/loss": None},
    ]


def test_line_cut_short_is_left_out_and_mended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps({"step": 1, "text": "\u00e4 \u2028 b"}, ensure_ascii=False)
    path.write_text(whole + '\n{"step": 2, "te', encoding="utf-8")
    assert read_lines(path) == [{"step": 1, "text": "\u00e4 \u2028 b"}]
    JsonLines(path).append({"step": 2, "text": "c"})
    assert [line["step"] for line in read_lines(path)] == [1, 2]
    assert path.read_text(encoding="utf-8").startswith(whole + "\n")
    assert read_lines(tmp_path / "nothing.jsonl") == []


def test_wandb_run_belongs_to_the_folder_until_training_starts_anew(tmp_path):
    first = wandb_logger(str(tmp_path), "last", project="csm").version
    assert wandb_logger(str(tmp_path), "last", project="csm").version == first
    assert wandb_logger(str(tmp_path), "some.ckpt", project="csm").version == first
    assert wandb_logger(str(tmp_path), None, project="csm").version != first
