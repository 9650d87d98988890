"""The data of real training runs: every sample as often as asked for, through ends, kills and changes of ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from csm.checkpoint.contents import read_training_checkpoint
from csm.data.dataset import ShardedDataset
from csm.training.build import train
from tests.conftest import ROOT, compose_train
from tests.training.recorded_train import RecordedData

LONG = ["trainer.max_steps=1000", "trainer.checkpoint_every_steps=2", "ckpt_path=last", "optim.eps=1e-2"]
LONG += ["trainer.async_checkpoint=false"]  # what a kill at step 5 leaves is then known


def mixture(dataset: Path, a: int | None, b: int) -> list[str]:
    """The same dataset twice, as two sources."""
    epochs = "" if a is None else f", max_epochs: {a}"
    sources = f"{{a: {{path: {dataset}, weight: 2{epochs}}}, b: {{path: {dataset}, max_epochs: {b}}}}}"
    return ["data.path=null", f"+data.sources={sources}"]


def run(folder: Path, kill_step: int, overrides: list[str]) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = ROOT / "tests" / "training" / "recorded_train.py"
    command = [sys.executable, str(script), str(folder), str(kill_step), *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def trained(folder: Path) -> dict[int, list[str]]:
    """Step -> keys trained on, over all ranks."""
    steps: dict[int, list[str]] = {}
    for file in folder.glob("rank-*.jsonl"):
        for line in map(json.loads, file.read_text().splitlines()):
            steps.setdefault(line["step"], []).extend(key for row in line["keys"] for key in row)
    return steps


def last_checkpoint(folder: Path) -> dict:
    return read_training_checkpoint(folder / "checkpoints" / "last.ckpt")


@pytest.mark.slow
def test_ranks_end_together_and_a_killed_run_goes_on_with_fewer(tiny_overrides, small_dataset, tmp_path, monkeypatch):
    """A mixture of 3 + 2 epochs: two gloo processes to its end; two, killed after step 5, then one to its end."""
    overrides = [*tiny_overrides, *LONG, *mixture(small_dataset, 3, 2), "data.micro_batch_size=1"]
    two = ["strategy=ddp", "trainer.devices=2"]
    whole = run(tmp_path / "whole", 0, [*overrides, *two, "data.num_workers=1", f"run_dir={tmp_path / 'whole'}"])
    assert whole.returncode == 0, whole.stderr
    assert (tmp_path / "whole" / "export" / "model.safetensors").is_file(), "exported, though max_steps is far away"
    steps = trained(tmp_path / "whole")
    dataset = ShardedDataset(small_dataset)
    expected = dict.fromkeys(dataset.column("key")[dataset.select("train")], 5)
    assert Counter(key for keys in steps.values() for key in keys) == expected
    assert sorted(steps) == list(range(1, len(steps) + 1)) and len(steps) > 7

    killed = run(tmp_path / "first", 5, [*overrides, *two])
    assert killed.returncode != 0 and max(trained(tmp_path / "first")) == 5
    assert last_checkpoint(tmp_path / "run")["global_step"] == 4
    monkeypatch.setattr("csm.training.build.CSMDataModule", RecordedData)
    (tmp_path / "second").mkdir()
    RecordedData.folder, RecordedData.kill_step = tmp_path / "second", 0
    train(compose_train(overrides))
    kept = {step: keys for step, keys in trained(tmp_path / "first").items() if step <= 4}
    assert {step: sorted(keys) for step, keys in (kept | trained(tmp_path / "second")).items()} == {
        step: sorted(keys) for step, keys in steps.items()
    }
    weights = last_checkpoint(tmp_path / "whole")["state_dict"]
    for name, tensor in last_checkpoint(tmp_path / "run")["state_dict"].items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_finished_run_is_left_as_it_is_until_given_more_epochs(tiny_overrides, small_dataset, tmp_path, caplog):
    overrides = [*tiny_overrides, *LONG]
    caplog.set_level("INFO")
    train(compose_train([*overrides, *mixture(small_dataset, 1, 1)]))
    end = last_checkpoint(tmp_path / "run")
    assert f"have finished their max_epochs after step {end['global_step']}: the run ends" in caplog.text
    train(compose_train([*overrides, *mixture(small_dataset, 1, 1)]))
    again = last_checkpoint(tmp_path / "run")
    assert again["global_step"] == end["global_step"]
    assert all(torch.equal(tensor, again["state_dict"][name]) for name, tensor in end["state_dict"].items())
    train(compose_train([*overrides, *mixture(small_dataset, 1, 2)]))
    longer = last_checkpoint(tmp_path / "run")["CSMDataModule"]["cursor"]
    assert longer["step"] > end["global_step"] and longer["sources"] == {"a": [1, 0, 0], "b": [2, 0, 0]}


def test_sources_that_cannot_be_mixed_are_named(tiny_overrides, small_dataset, tmp_path):
    cases = {
        "{a: {path: X, weight: 0}}": r"data\.sources\.a\.weight=0\.0 must be greater than 0",
        "{a: {path: X, max_epochs: 0}}": r"data\.sources\.a\.max_epochs=0 must be at least 1",
        "{}": "set either data.path=FOLDER or data.sources",
        "{a: {path: X}, b: {path: nowhere}}": "nowhere: not a prepared dataset",
    }
    for sources, message in cases.items():
        overrides = ["data.path=null", f"+data.sources={sources.replace('X', str(small_dataset))}"]
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            train(compose_train([*tiny_overrides, *overrides]))
    with pytest.raises(ValueError, match="set either"):
        train(compose_train([*tiny_overrides, f"+data.sources={{a: {{path: {small_dataset}}}}}"]))
