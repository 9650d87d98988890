"""The moving average of the weights: formula, resume, validation, export; sharded over two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from csm import load_model
from csm.checkpoint.contents import read_training_checkpoint
from csm.cli import build_parser
from csm.data.packing import RowBatch
from csm.formats.open import open_checkpoint
from csm.model.csm import CSM
from csm.model.loss import LossSums
from csm.training.build import train
from csm.training.loggers import read_lines
from csm.training.metrics import loss_metrics
from tests.conftest import ROOT, compose_train
from tests.tiny import forward
from tests.training.recorded import recorded

STEPS = ["optim.schedule=wsd", "optim.warmup_steps=1", "trainer.val_every_steps=2", "ckpt_path=last"]


def averages(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("ema."): tensor for name, tensor in state.items() if name.startswith("ema.")}


@pytest.mark.slow
def test_formula_skip_resume_validation_and_export(tiny_overrides, tmp_path):
    """Four steps, one of them skipped, at once and in two parts, validating the averages."""
    average = ["trainer.ema_decay=0.7", "trainer.validate_ema=true"]
    overrides = [*tiny_overrides, *STEPS, *average]
    whole = compose_train([*overrides, "trainer.max_steps=4", f"run_dir={tmp_path / 'whole'}"])
    with recorded(bad_steps=(3,)) as recording:
        train(whole)
    state = read_training_checkpoint(tmp_path / "whole" / "checkpoints" / "last.ckpt")["state_dict"]
    found = averages(state)
    assert found.keys() == recording.weights[0].keys()
    for name, average in found.items():
        w = [recording.weights[step][name].double() for step in (0, 1, 2, 4)]
        expected = 0.7**3 * w[0] + 0.3 * (0.7**2 * w[1] + 0.7 * w[2] + w[3])
        torch.testing.assert_close(average, expected.float(), atol=1e-6, rtol=1e-5, msg=name)
        assert torch.equal(state[f"model.{name}"], recording.weights[4][name])  # validation gave the weights back

    with recorded(bad_steps=(3,)):
        for steps in (2, 4):
            train(compose_train([*overrides, f"trainer.max_steps={steps}"]))
    resumed = read_training_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert resumed.keys() == state.keys() and all(torch.equal(resumed[name], state[name]) for name in state)

    # What is validated is what is exported at the end, and by `csm export --ema`.
    exported = load_model(tmp_path / "run" / "export")
    assert all(torch.equal(tensor, found[name]) for name, tensor in exported.state_dict().items())
    arguments = ["export", str(tmp_path / "run" / "checkpoints" / "last.ckpt"), "--out"]
    for flags, expected in (["--ema"], found), ([], recording.weights[4]):
        parsed = build_parser().parse_args([*arguments, str(tmp_path / f"export{len(flags)}"), *flags])
        parsed.run(parsed)
        by_command = load_model(tmp_path / f"export{len(flags)}").state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in by_command.items())
    lines = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "val/loss" in line]
    batches = recording.validated[: len(recording.validated) // 2]  # of the first of two validations
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[-1]["val/loss"] == pytest.approx(validation_loss(exported, batches), rel=1e-5)

    with pytest.raises(ValueError, match=r"settings \(trainer\.ema_decay > 0: True -> False\); .*init_from"):
        train(compose_train([*tiny_overrides, *STEPS, "trainer.max_steps=5"]))


def validation_loss(model: CSM, batches: list[RowBatch]) -> float:
    with torch.no_grad():
        sums = sum(forward(model, rows).stacked() for rows in batches)
    metrics = loss_metrics(LossSums.from_stacked(sums), "val")
    return metrics["val/loss_c0"] + metrics["val/loss_decoder"]


def test_refusals(tiny_overrides, tmp_path):
    for option, message in (
        ("trainer.validate_ema=true", "trainer.validate_ema=true needs averaged weights"),
        ("trainer.ema_decay=1.0", "trainer.ema_decay=1.0 must be"),
        ("[trainer.ema_decay=0.9,strategy=deepspeed_zero3]", "trainer.ema_decay does not go with strategy=deepspeed"),
    ):
        with pytest.raises(ValueError, match=message):
            train(compose_train([*tiny_overrides, *option.strip("[]").split(",")]))


@pytest.mark.slow
def test_lora_averages_the_adapters_only(tiny_overrides, tmp_path):
    options = ["lora.rank=2", "trainer.ema_decay=0.5", "optim.warmup_steps=1", "trainer.max_steps=2"]
    train(compose_train([*tiny_overrides, *options]))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert all(".lora_" in name for name in averages(read_training_checkpoint(last)["state_dict"]))
    parsed = build_parser().parse_args(["export", str(last), "--out", str(tmp_path / "averaged"), "--ema"])
    parsed.run(parsed)
    averaged, plain = load_model(tmp_path / "averaged").state_dict(), load_model(tmp_path / "run/export").state_dict()
    different = {name for name in plain if not torch.equal(averaged[name], plain[name])}
    assert different and all(name.endswith("_proj.weight") for name in different)


@pytest.mark.slow
def test_sharded_run_with_a_skipped_step_has_the_averages_of_one_process(tiny_overrides, tmp_path):
    """FSDP2 on two gloo processes, of which one gets a bad batch in the second of four steps; read from the sharded
    checkpoint. A large Adam epsilon keeps updates proportional to gradients."""
    options = ["optim.eps=1e-2", "trainer.ema_decay=0.5", "trainer.max_steps=4", "trainer.val_every_steps=4"]
    options += ["trainer.log_every_steps=2", "trainer.validate_ema=true", "trainer.sample_every_steps=4"]
    overrides = [*tiny_overrides, *options]
    with recorded(bad_steps=(2,)) as recording:
        train(compose_train(overrides))
    script = [sys.executable, str(Path(__file__).with_name("poisoned_train.py")), "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    sharded = [f"run_dir={tmp_path / 'two'}", "strategy=fsdp", "trainer.devices=2"]
    done = subprocess.run([*script, *overrides, *sharded], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    whole, parts = (tmp_path / name / "checkpoints" / "last.ckpt" for name in ("run", "two"))
    assert parts.is_dir()
    for averaged in (True, False):
        expected = open_checkpoint(whole, averaged=averaged).load_model().state_dict()
        found = open_checkpoint(parts, averaged=averaged).load_model().state_dict()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4, msg=name)
        assert any(not torch.equal(tensor, recording.weights[0][name]) for name, tensor in expected.items())
    histories = [read_lines(tmp_path / r / "metrics.jsonl") for r in ("run", "two")]
    one, two = (next(line["val/loss"] for line in lines if "val/loss" in line) for lines in histories)
    assert two == pytest.approx(one, rel=1e-5)
    one, two = (read_lines(tmp_path / r / "samples" / "samples.jsonl") for r in ("run", "two"))
    assert [(line["id"], line["step"]) for line in one] == [(line["id"], line["step"]) for line in two]
    lines = [[line for line in lines if "train/loss" in line] for lines in histories]
    for first, second in zip(*lines, strict=True):
        for name in ("loss", "loss_c1_4", "gradient_norm", "gradient_norm_decoder", "gradient_norm_embeddings"):
            assert second[f"train/{name}"] == pytest.approx(first[f"train/{name}"], rel=1e-4), name
        assert second["throughput/padding_share"] == pytest.approx(first["throughput/padding_share"])
    (record,) = read_lines(tmp_path / "two" / "skipped_steps.jsonl")
    assert [rank["loss"] is None for rank in record["ranks"]] == [False, True]
