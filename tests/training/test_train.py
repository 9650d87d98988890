"""train.py as a whole: what it leaves behind, data-parallel equality, and its refusals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from csm import load_generator
from csm.checkpoint.contents import read_training_checkpoint
from csm.config import CodecConfig, CodecKind
from csm.formats.native import read_config
from csm.training.build import train
from csm.training.loggers import read_lines
from data_prep.config import DataPrepConfig, ReportConfig
from data_prep.demo import prepare_demo_dataset
from tests.conftest import ROOT, compose_train


def command(overrides: list[str]) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *overrides]


def run(overrides: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command(overrides), capture_output=True, text=True, timeout=300, env=environment)


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_training_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]


def logged(folder: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl; what a line does not have is None."""
    return [defaultdict(lambda: None, line) for line in read_lines(folder / "metrics.jsonl")]


def test_run_leaves_checkpoints_metrics_samples_and_a_model_that_speaks(tiny_overrides, tmp_path):
    more = ["trainer.sample_every_steps=3", "trainer.sample_prompts=1", "logger=wandb"]
    os.environ["WANDB_MODE"] = "offline"
    best = train(compose_train([*tiny_overrides, *more]))
    folder = tmp_path / "run"
    rows = logged(folder)
    training = [row for row in rows if row["train/loss"]]
    assert len(training) == 3
    assert all(float(row[f"train_codebooks/loss_0{i}"]) > 0 for row in training for i in range(5))
    validation = next(row for row in rows if row["val/loss"])
    assert float(validation["val/loss"]) == pytest.approx(best, rel=1e-4)
    assert 0 <= float(validation["val/eos_recall"]) <= 1
    assert (folder / "checkpoints" / "last.ckpt").is_file() and (folder / "checkpoints" / "best.ckpt").is_file()
    assert next((folder / "samples").rglob("codec.wav")).stat().st_size > 1000
    identity = (folder / "wandb_id").read_text()
    assert list((folder / "wandb").glob(f"offline-run-*-{identity}")), "W&B wrote its offline run"
    generator = load_generator(folder / "export")
    exported = generator.model.state_dict()
    for name, tensor in last_weights(folder).items():
        assert torch.equal(exported[name.removeprefix("model.")], tensor)
    segment = generator.generate_segment("Hello.", 0, [], max_audio_length_ms=800, seed=1)
    assert segment.segment.codes.shape[0] == 5


@pytest.mark.slow
def test_the_normalizer_of_a_training_is_that_of_its_model(tiny_overrides, tmp_path):
    train(compose_train([*tiny_overrides, "tokenizer.normalize=english"]))
    tokenizer = load_generator(tmp_path / "run" / "export").tokenizer
    assert tokenizer.normalize == "english"
    assert tokenizer.encode_turn("Call 3 of them.", 0) == tokenizer.encode_turn("Call three of them.", 0)
    info = json.loads((Path(compose_train(tiny_overrides).data.path) / "dataset.json").read_text())
    assert set(info["langs"]) == {"en"}
    info["langs"]["de"] = info["langs"].pop("en")
    german = tmp_path / "german"
    shutil.copytree(compose_train(tiny_overrides).data.path, german)
    (german / "dataset.json").write_text(json.dumps(info))
    others = [word for word in tiny_overrides if not word.startswith(("data.path", "run_dir"))]
    others += [f"data.path={german}", f"run_dir={tmp_path / 'other'}", "tokenizer.normalize=english"]
    with pytest.raises(ValueError, match=r"knows only English, but dataset .* holds de"):
        train(compose_train(others))


@pytest.mark.slow
def test_two_processes_equal_one(tiny_overrides, tmp_path):
    """1 process x 2 microbatches = 2 gloo processes x 1: same losses, same weights, rows of unequal length.

    A large Adam epsilon keeps the update proportional to the gradient, so rounding is not blown up to a full step.
    """
    steady = ["optim.eps=1e-2", "data.context_dropout=0.5"]
    one = run([*tiny_overrides, *steady])
    assert one.returncode == 0, one.stderr
    parallel = [f"run_dir={tmp_path / 'two'}", "strategy=ddp", "trainer.devices=2"]
    two = run([*tiny_overrides, *steady, *parallel])
    assert two.returncode == 0, two.stderr
    for first, second in zip(logged(tmp_path / "run"), logged(tmp_path / "two"), strict=True):
        for name in ("train/loss", "train/loss_c0", "train/gradient_norm", "val/loss", "val/accuracy_c0"):
            if first[name]:
                assert float(first[name]) == pytest.approx(float(second[name]), rel=1e-4), name
    weights = last_weights(tmp_path / "two")
    for name, tensor in last_weights(tmp_path / "run").items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-5, rtol=1e-4, msg=name)


def test_refusals_name_the_key_and_the_remedy(tiny_overrides, tmp_path):
    cases = {
        "codec.num_codebooks=6": "codec.num_codebooks=5",
        "model.text_vocab_size=99": "set model.text_vocab_size=258",
        "data.micro_batch_size=3": "data.global_batch_size=4 is not a multiple",
        "data.max_seq_len=4096": "exceeds model.max_seq_len=2048",
        "ckpt_path=nowhere.ckpt": "nowhere.ckpt does not exist",
        "data.path=nowhere": "nowhere: not a prepared dataset",
        "trainer.accelerator=gpu": "trainer.accelerator=gpu",
    }
    for override, expected in cases.items():
        with pytest.raises((ValueError, FileNotFoundError), match=expected):
            train(compose_train([*tiny_overrides, override]))


@pytest.mark.slow
def test_the_end_is_kept_whatever_the_cadence_and_without_validation(tiny_overrides, tmp_path):
    """Five steps, a checkpoint every three, no split "val"."""
    output = str(tmp_path / "train-only")
    codec = CodecConfig(kind=CodecKind.spectral, num_codebooks=5, codebook_size=23)
    prepare_demo_dataset(DataPrepConfig(output=output, codec=codec, limit=4, report=ReportConfig(0)))
    best = train(compose_train([*tiny_overrides, f"data.path={output}", "trainer.max_steps=5"]))
    assert best is None
    checkpoints = tmp_path / "run" / "checkpoints"
    assert {file.name for file in checkpoints.iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert read_training_checkpoint(checkpoints / "last.ckpt")["global_step"] == 5
    assert read_config(tmp_path / "run" / "export")["training"]["step"] == 5


def test_diverged_run_stops_and_its_checkpoint_is_finite(tiny_overrides, tmp_path):
    diverging = ["optim.lr=1e30", "optim.warmup_steps=1", "trainer.max_steps=9", "trainer.checkpoint_every_steps=2"]
    with pytest.raises(FloatingPointError, match=r"not finite in 5 steps in a row, up to step 6; .*skipped_steps"):
        train(compose_train([*tiny_overrides, *diverging]))
    assert all(tensor.isfinite().all() for tensor in last_weights(tmp_path / "run").values())
    lines = [line for line in logged(tmp_path / "run") if "train/loss" in line]
    assert [line["train/skipped_steps"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["train/loss"] is None for line in lines] == [False, True, True, True, True]  # no step counted
    assert not (tmp_path / "run" / "export").exists()


@pytest.mark.slow
def test_turn_longer_than_a_row_is_named_and_the_rest_is_trained(tiny_overrides, tmp_path):
    """45 positions hold some first turns and not others."""
    result = run([*tiny_overrides, "data.max_seq_len=45"])
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "run" / "train.log").read_text().splitlines()
    left_out = [line for line in lines if "is skipped" in line]
    assert left_out and all("data.max_seq_len=45" in line and "sample demo-" in line for line in left_out)
    assert any("keep their leading turns only" in line for line in lines)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
