"""Multirun: a search with Optuna, and jobs through submitit."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from csm.checkpoint.contents import read_training_checkpoint
from csm.training.loggers import read_lines
from tests.training.test_train import run

pytestmark = pytest.mark.slow

ONE_STEP = ["trainer.max_steps=1", "trainer.val_every_steps=1", "trainer.checkpoint_every_steps=1"]


def validation_loss(folder: Path) -> float:
    return min(line["val/loss"] for line in read_lines(folder / "metrics.jsonl") if "val/loss" in line)


def test_optuna_chooses_the_trial_with_the_lowest_validation_loss(tiny_overrides, tmp_path):
    """Two trials, each in a folder of its own in spite of the common run_dir; the objective is unweighted."""
    sweep = tmp_path / "sweep"
    overrides = ["-m", "sweep=learning_rate", "hydra.sweeper.n_trials=2", f"hydra.sweep.dir={sweep}"]
    result = run([*overrides, *tiny_overrides, *ONE_STEP, "loss.decoder_weight=7"])
    assert result.returncode == 0, result.stderr
    chosen = OmegaConf.load(sweep / "optimization_results.yaml")
    losses = {}
    for number in ("0", "1"):
        checkpoint = read_training_checkpoint(sweep / number / "checkpoints" / "last.ckpt")
        losses[checkpoint["csm"]["config"]["optim"]["lr"]] = validation_loss(sweep / number)
    assert len(losses) == 2, "two learning rates were tried"
    assert abs(chosen.best_value - min(losses.values())) < 1e-4
    assert chosen.best_params["optim.lr"] == min(losses, key=losses.get)
    assert not (tmp_path / "run").exists()


def test_submitit_runs_the_job_of_a_multirun(tiny_overrides, tmp_path):
    """The launcher that launcher=slurm uses, on this machine in place of Slurm's."""
    sweep = tmp_path / "sweep"
    overrides = ["-m", "hydra/launcher=submitit_local", f"hydra.sweep.dir={sweep}", "optim.lr=2e-3"]
    result = run([*overrides, *tiny_overrides, *ONE_STEP])
    assert result.returncode == 0, result.stderr
    checkpoint = read_training_checkpoint(sweep / "0" / "checkpoints" / "last.ckpt")
    assert checkpoint["csm"]["config"]["optim"]["lr"] == 2e-3
    assert list((sweep / ".submitit").rglob("*_result.pkl")), "run by submitit"
