"""The loop around the steps: callbacks, profile, intervals of zero, one run in a folder, earlier checkpoints."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from csm.checkpoint.contents import read_training_checkpoint
from csm.training.build import train
from csm.training.loggers import read_lines
from csm.training.module import CSMTrainingModule
from tests.conftest import ROOT, compose_train

CALLS: list[tuple[str, Any]] = []


class Recorder:
    """A callback with the hooks' Lightning signatures, or fewer arguments."""

    def on_after_setup(self, fabric, module):
        CALLS.append(("setup", fabric.world_size))

    def on_train_start(self, trainer, pl_module):
        CALLS.append(("start", (trainer.step, type(pl_module).__name__)))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        CALLS.append(("batch", (batch_idx, trainer.step, sorted(outputs)[:1], len(batch.microbatches))))

    def on_validation_end(self, metrics):
        CALLS.append(("validation", metrics["val/loss"]))

    def on_save_checkpoint(self, checkpoint):
        checkpoint["of a callback"] = 7
        CALLS.append(("save", checkpoint["global_step"]))

    def on_train_end(self):
        CALLS.append(("end", None))


@pytest.mark.slow
def test_callbacks_are_called_and_a_profile_is_written(tiny_overrides, tmp_path):
    calls = importlib.import_module("tests.training.test_loop").CALLS  # where the configuration finds the class
    options = ["+callbacks.recorder._target_=tests.training.test_loop.Recorder", "trainer.profile=steps"]
    loss = train(compose_train([*tiny_overrides, *options, "trainer.max_steps=6", "trainer.log_every_steps=2"]))
    assert [name for name, _ in calls] == [
        *("setup", "start", "batch", "batch", "batch", "save", "validation", "batch", "batch", "batch"),
        *("save", "validation", "end"),
    ]
    by_name = dict(calls)
    assert by_name["setup"] == 1 and by_name["start"] == (0, "CSMTrainingModule") and by_name["save"] == 6
    assert by_name["batch"][:2] == (5, 6) and by_name["batch"][3] == 2
    assert [values[2] == [] for name, values in calls if name == "batch"] == [True, False] * 3
    assert loss == min(value for name, value in calls if name == "validation")
    assert read_training_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["of a callback"] == 7
    table = (tmp_path / "run" / "profile" / "rank-0.txt").read_text()
    assert "aten::addmm" in table or "aten::mm" in table
    assert (tmp_path / "run" / "profile" / "rank-0.json.gz").stat().st_size > 1000


def test_intervals_of_zero_switch_off(tiny_overrides, tmp_path):
    off = [f"trainer.{name}_every_steps=0" for name in ("log", "val", "checkpoint", "keep", "sample")]
    assert train(compose_train([*tiny_overrides, *off])) is None
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert [file.name for file in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.ckpt"]
    assert read_training_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 3
    with pytest.raises(ValueError, match=r"trainer\.val_every_steps=-1 must be a number of steps, or 0 for never"):
        train(compose_train([*tiny_overrides, "trainer.val_every_steps=-1"]))
    with pytest.raises(ValueError, match=r"trainer\.sample_every_steps needs validation"):
        train(compose_train([*tiny_overrides, "trainer.val_every_steps=0", "trainer.sample_every_steps=5"]))


@pytest.mark.slow
def test_second_training_in_a_folder_is_refused(tiny_overrides, tmp_path):
    (tmp_path / "run").mkdir()
    lock = FileLock(tmp_path / "run" / "train.lock")
    with lock, pytest.raises(ValueError, match="another training is running there"):
        train(compose_train(tiny_overrides))
    train(compose_train(tiny_overrides))  # the lock of a run that has ended holds no one up
    train(compose_train(tiny_overrides))


@pytest.mark.slow
def test_logger_that_cannot_start_says_why_in_one_line(tiny_overrides, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "WANDB_SILENT": "true"}
    command = [sys.executable, str(ROOT / "train.py"), *tiny_overrides, "logger=wandb"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "logger wandb cannot start: " in line and "WANDB_MODE=offline" in line
    assert "Traceback" not in result.stderr


def test_validation_uses_no_dropout(tiny_overrides, tmp_path, monkeypatch):
    modes, step_of = [], CSMTrainingModule.training_step

    def validation_step(self, rows, engine, num_slots):
        modes.append(("validation", self.training, self.model.training))
        return validation_of(self, rows, engine, num_slots)

    def training_step(self, rows, engine, total_frames, last):
        modes.append(("training", self.training, self.model.training))
        return step_of(self, rows, engine, total_frames, last)

    validation_of = CSMTrainingModule.validation_step
    monkeypatch.setattr(CSMTrainingModule, "validation_step", validation_step)
    monkeypatch.setattr(CSMTrainingModule, "training_step", training_step)
    train(compose_train([*tiny_overrides, "trainer.max_steps=2", "trainer.val_every_steps=1"]))
    assert set(modes) == {("validation", False, False), ("training", True, True)}


def as_lightnings_trainer_wrote_it(file: Path) -> None:
    """Turns a checkpoint into one of the version before the loop was ours."""
    content = torch.load(file, weights_only=True)
    progress = content["csm_progress"]
    content["callbacks"] = {
        "Checkpoints": {name: progress.pop(name) for name in ("best_loss", "validation_due")},
        "StepProgressBar": {},
    }
    del progress["best_step"]
    content |= {"epoch": 0, "pytorch-lightning_version": "2.6.6", "loops": {"fit_loop": {}}, "lr_schedulers": []}
    config = content["csm"]["config"]
    del config["data"]["prepare"], config["callbacks"], config["trainer"]["profile"]
    config["data"]["demo"] = False
    renamed = {"data.max_seq_len": "max_positions", "data.micro_batch_size": "rows_per_microbatch"}
    renamed |= {"data.global_batch_size": "rows_per_step", "model.max_seq_len": "max_positions"}
    renamed |= {"trainer.activation_checkpointing": "recompute"}
    for new, old in renamed.items():
        group, _, name = new.partition(".")
        config[group][old] = config[group].pop(name)
    torch.save(content, file)


@pytest.mark.slow
def test_run_of_an_earlier_version_resumes_bit_for_bit(tiny_overrides, tmp_path):
    """Also one that was stopped before the validation of its step."""
    options = [*tiny_overrides, "ckpt_path=last", "trainer.val_every_steps=2", "trainer.checkpoint_every_steps=1"]
    train(compose_train([*options, f"run_dir={tmp_path / 'whole'}", "trainer.max_steps=4"]))
    train(compose_train([*options, "trainer.max_steps=2", "optim.schedule=cosine"]))
    whole, run = tmp_path / "whole" / "checkpoints" / "last.ckpt", tmp_path / "run" / "checkpoints" / "last.ckpt"
    as_lightnings_trainer_wrote_it(run)
    content = torch.load(run, weights_only=True)
    content["callbacks"]["Checkpoints"] |= {"validation_due": True, "best_loss": float("inf")}
    torch.save(content, run)
    before = len(read_lines(tmp_path / "run" / "metrics.jsonl"))
    train(compose_train([*options, "trainer.max_steps=4"]))
    expected, found = read_training_checkpoint(whole), read_training_checkpoint(run)
    assert found["global_step"] == 4 and found["CSMDataModule"] == expected["CSMDataModule"]
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if "val/loss" in line] == [2, 4] and before < len(lines)
    assert found["csm_progress"]["best_loss"] == expected["csm_progress"]["best_loss"]
    assert all(torch.equal(tensor, found["state_dict"][name]) for name, tensor in expected["state_dict"].items())
