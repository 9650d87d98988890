"""Skipped steps and loss spikes: what they leave alone, what they record, when they stop the run."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from csm.checkpoint.contents import read_training_checkpoint
from csm.config import TrainerConfig
from csm.parallel.ranks import RankAgreement
from csm.training.build import train
from csm.training.health import RunningStatistics, StepHealth
from csm.training.loggers import read_lines
from tests.conftest import ROOT, compose_train
from tests.training.recorded import by_hand, interval_sums, recorded


@pytest.mark.slow
def test_skipped_step_changes_nothing(tiny_overrides, tmp_path):
    """The run ends as one that never saw the bad batch: same weights, moments and step counts as by hand."""
    options = ["trainer.max_steps=4", "trainer.log_every_steps=4", "trainer.val_every_steps=4", "optim.warmup_steps=2"]
    config = compose_train([*tiny_overrides, *options, "optim.weight_decay=0.1"])
    with recorded(bad_steps=(2,)) as recording:
        train(config)
    before, after = recording.weights[1], recording.weights[2]
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert any(not torch.equal(recording.weights[3][name], before[name]) for name in before)

    steps = by_hand(config, recording, left_out=(2,))
    checkpoint = read_training_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    for name, tensor in steps[4].weights.items():
        # AdamW divides by the root of the second moment: where a gradient is all but zero, its last bit shows.
        torch.testing.assert_close(checkpoint["state_dict"][f"model.{name}"], tensor, atol=3e-5, rtol=1e-5)
    assert checkpoint["global_step"] == 4  # the data go on
    states = checkpoint["optimizer_states"][0]["state"]
    for number, expected in steps[4].optimizer["state"].items():
        assert states[number]["step"] == expected["step"] == 3
        torch.testing.assert_close(states[number]["exp_avg_sq"], expected["exp_avg_sq"], atol=1e-9, rtol=1e-4)

    line = next(line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line)
    sums = interval_sums([steps[number] for number in (1, 3, 4)])  # of the steps that counted
    assert line["train/loss_decoder"] == pytest.approx((sums.losses[1:].mean() / sums.frames).item(), rel=1e-5)
    assert line["train/skipped_steps"] == 1
    (record,) = read_lines(tmp_path / "run" / "skipped_steps.jsonl")
    assert record == {"step": 2, "ranks": [{"loss": None, "keys": recording.batches[1].keys}]}
    assert any(key.startswith("demo-") for row in record["ranks"][0]["keys"] for key in row)


@pytest.mark.slow
def test_nan_on_one_rank_is_skipped_by_both_and_the_third_in_a_row_stops_both(tiny_overrides, tmp_path):
    options = ["strategy=ddp", "trainer.devices=2", "trainer.max_steps=9", "trainer.max_skipped_in_a_row=3"]
    options += ["data.micro_batch_size=1", "trainer.checkpoint_every_steps=1", "trainer.log_every_steps=9"]
    script = [sys.executable, str(Path(__file__).with_name("poisoned_train.py")), "2,4,5,6"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*script, *tiny_overrides, *options], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 1
    # The host hears of step 6 when the checkpoint of that step is written.
    assert done.stderr.count("not finite in 3 steps in a row, up to step 6") >= 2
    lines = [(tmp_path / "run" / f"weights-{rank}").read_text().splitlines() for rank in (0, 1)]
    assert lines[0] == lines[1]
    assert [line.split()[0] for line in lines[0]] == ["1", "2", "3", "4", "5", "6"]
    digests = [line.split()[1] for line in lines[0]]
    assert digests[0] == digests[1] != digests[2] == digests[3] == digests[4] == digests[5]
    records = read_lines(tmp_path / "run" / "skipped_steps.jsonl")
    assert [record["step"] for record in records] == [2, 4, 5, 6]
    for record in records:
        good, bad = record["ranks"]
        assert good["loss"] > 0 and bad["loss"] is None
        assert len(good["keys"]) == len(bad["keys"]) == 2  # rows of each rank
    checkpoint = read_training_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 5
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())


def health(folder: Path, **options: float) -> StepHealth:
    return StepHealth(TrainerConfig(max_steps=99, **options), folder, RankAgreement())


def feed(judge: StepHealth, losses: list[float], first_step: int = 1) -> list[float]:
    """Judges steps with these losses; the verdicts."""
    one = torch.tensor(1.0)
    skips = []
    for step, loss in enumerate(losses, start=first_step):
        skips.append(judge.check_step(step, torch.tensor(loss), one, [[f"sample-{step}"]]).item())
        judge.flush()
    judge.flush(wait_for_last=True)
    return skips


def test_spike_is_recorded_and_hides_no_other(tmp_path):
    torch.manual_seed(0)
    losses = (3 + 0.1 * torch.randn(60)).tolist()
    losses[5] = 9.0  # too early to tell
    losses[40], losses[45] = 3 + 10.0, 3 + 8.0
    judge = health(tmp_path)
    assert feed(judge, losses) == [0.0] * 60
    records = read_lines(tmp_path / "loss_spikes.jsonl")
    assert [(r["step"], r["loss"], r["ranks"][0]["keys"]) for r in records] == [
        (41, pytest.approx(13.0), [["sample-41"]]),
        (46, pytest.approx(11.0), [["sample-46"]]),
    ]
    assert records[0]["loss"] > records[0]["mean"] + 6 * records[0]["deviation"]
    feed(health(tmp_path / "off", spike_sigmas=0.0), losses)
    assert not (tmp_path / "off").exists()


def test_running_statistics_equal_the_weighted_sums():
    values = torch.linspace(0, 5, 130, dtype=torch.float64).sin().tolist()
    running, weights = RunningStatistics(), []
    for count, value in enumerate(values, start=1):
        running.add(value)
        share = max(0.02, 1 / count)
        weights = [weight * (1 - share) for weight in weights] + [share]
    assert sum(weights) == pytest.approx(1)
    mean = sum(weight * value for weight, value in zip(weights, values, strict=True))
    variance = sum(weight * (value - mean) ** 2 for weight, value in zip(weights, values, strict=True))
    assert running.mean == pytest.approx(mean) and running.deviation == pytest.approx(math.sqrt(variance))


def test_counts_go_on_after_a_resume(tmp_path):
    first = health(tmp_path, max_skipped_in_a_row=3)
    assert feed(first, [2.0, math.nan, 2.5, math.inf, math.nan]) == [0, 1, 0, 1, 1]
    second = health(tmp_path, max_skipped_in_a_row=3)
    second.load_state(first.state())
    with pytest.raises(FloatingPointError, match="3 steps in a row, up to step 6"):
        feed(second, [math.nan], first_step=6)
    assert second.skipped == 4 and second.state()["loss"] == {"count": 2, "mean": 2.25, "variance": 0.0625}
