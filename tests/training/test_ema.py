"""The moving average of the weights: formula, resume, validation, export; sharded over two processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from csm import load_model
from csm.checkpoint.training import read_training_checkpoint
from csm.cli import build_parser
from csm.data.rows import ValidationRows
from csm.model.loss import LossSums
from csm.training.loggers import read_lines
from csm.training.metrics import loss_metrics
from csm.training.run import train
from tests.conftest import ROOT, compose_train
from tests.tiny import forward
from tests.training.recorded import recorded

STEPS = ["optim.schedule=wsd", "optim.warmup_steps=1", "trainer.val_every_steps=2", "ckpt_path=last"]


def averages(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("ema."): tensor for name, tensor in state.items() if name.startswith("ema.")}


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
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[-1]["val/loss"] == pytest.approx(validation_loss(exported, whole), rel=1e-5)

    with pytest.raises(ValueError, match=r"last\.ckpt was trained with trainer\.ema_decay=0\.7; .*init_from"):
        train(compose_train([*tiny_overrides, *STEPS, "trainer.max_steps=5"]))


def validation_loss(model, config) -> float:
    from csm.data.dataset import ShardedDataset
    from csm.text import load_tokenizer

    dataset, tokenizer = ShardedDataset(config.data.path), load_tokenizer(config.tokenizer)
    rows = ValidationRows(dataset, tokenizer, config.data, "val", 0, 1)
    with torch.no_grad():
        sums = sum(forward(model, rows[number]).stacked() for number in range(len(rows)))
    metrics = loss_metrics(LossSums.from_stacked(sums), "val")
    return metrics["val/loss_c0"] + metrics["val/loss_decoder"]


def test_refusals(tiny_overrides, tmp_path):
    for option, message in (
        ("trainer.validate_ema=true", "trainer.validate_ema=true needs averaged weights"),
        ("trainer.ema_decay=1.0", "trainer.ema_decay=1.0 must be"),
    ):
        with pytest.raises(ValueError, match=message):
            train(compose_train([*tiny_overrides, option]))


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


SHARDED = """
import copy
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from csm.config import LossConfig, OptimConfig
from csm.training.ema import WeightAverage
from csm.training.gradients import clip_gradients, trainable_parts
from csm.training.optim import build_optimizer
from tests.tiny import conversation, forward, rows, tiny_model

def run(model, batches):
    optimizer, average = build_optimizer(model, OptimConfig(lr=1e-2)), WeightAverage(model)
    parts = trainable_parts(model)
    norms = []
    for number, batch in enumerate(batches):
        sums = forward(model, batch)
        sums.loss(LossConfig(), sums.frames).backward()
        if number == 1:
            next(iter(model.parameters())).grad.mul_(float("nan"))
        found = clip_gradients(parts, 0.5)
        norms.append(torch.stack(list(found.values())))
        skip = (~torch.isfinite(found["total"])).float()
        optimizer.found_inf = skip
        optimizer.step()
        optimizer.zero_grad()
        average.update(model, 0.8, skip)
    average.swap(model)
    steps = [state["step"].item() for state in optimizer.state.values()]
    return torch.stack(norms), dict(model.state_dict()), dict(average.state_dict()), steps

dist.init_process_group("gloo")
batches = [rows([[conversation(seed)], [conversation(seed + 9)]], ratio=2) for seed in range(3)]
whole, sharded = tiny_model(), tiny_model()
mesh = init_device_mesh("cpu", (2,))
for unit in [*sharded.backbone.layers, *sharded.decoder.layers, sharded]:
    fully_shard(unit, mesh=mesh)
expected, found = run(whole, batches), run(sharded, batches)
torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-6, equal_nan=True)
assert expected[0][1].isnan().any() and expected[3] == found[3] == [2.0] * len(found[3])
for mine, theirs in zip(found[1:3], expected[1:3], strict=True):
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert tensor.to_local().numel() < theirs[name].numel()
        torch.testing.assert_close(tensor.full_tensor(), theirs[name], atol=1e-5, rtol=1e-4, msg=name)
dist.barrier()
dist.destroy_process_group()
print("equal")
"""


def test_sharded_average_skip_and_norms_equal_whole_ones(tmp_path):
    """FSDP2 on two gloo processes; the second of three steps is skipped; read through `swap`."""
    (tmp_path / "sharded.py").write_text(SHARDED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29657"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*launch, str(tmp_path / "sharded.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2
