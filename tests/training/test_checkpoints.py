"""The generations of checkpoints, damaged ones, disks that are full, and what a resumed run may change."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from csm.checkpoint.contents import read_training_checkpoint
from csm.checkpoint.resume import verify_whole
from csm.config import CodecConfig, CodecKind
from csm.data.dataset import ShardedDataset
from csm.data.plan import ORDER
from csm.data.sources import ONLY_SOURCE
from csm.training.build import train
from data_prep.config import DataPrepConfig, ReportConfig
from data_prep.demo import prepare_demo_dataset
from tests.conftest import ROOT, TINY_OVERRIDES, compose_train
from tests.training.forked import Run
from tests.training.test_train import command

STEPS = ["trainer.val_every_steps=3", "trainer.checkpoint_every_steps=2", "data.global_batch_size=2", "ckpt_path=last"]
STEPS += ["optim.schedule=wsd", "optim.warmup_steps=1"]  # whose learning rate does not depend on max_steps


@pytest.fixture(scope="module")
def trained(small_dataset, tmp_path_factory) -> Path:
    """run_dir of seven steps: checkpoints at 2, 3, 4, 6 and 7, those at 3 and 6 kept and validated."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(compose_train([*command_of(small_dataset, folder), "trainer.max_steps=7", "trainer.keep_every_steps=3"]))
    return folder


def command_of(dataset: Path, run_dir: Path) -> list[str]:
    return [*TINY_OVERRIDES, *STEPS, f"data.path={dataset}", f"run_dir={run_dir}"]


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def resume(small_dataset, run_dir):
    """Continues the run with more overrides."""

    def resume(*more: str, steps: int = 9) -> dict:
        train(compose_train([*command_of(small_dataset, run_dir), f"trainer.max_steps={steps}", *more]))
        return read_training_checkpoint(run_dir / "checkpoints" / "last.ckpt")

    return resume


@pytest.fixture(scope="module")
def continued(trained, small_dataset, tmp_path_factory) -> dict:
    """The last checkpoint of the same run after nine steps."""
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("continued") / "run"))
    train(compose_train([*command_of(small_dataset, folder), "trainer.max_steps=9"]))
    return read_training_checkpoint(folder / "checkpoints" / "last.ckpt")


@pytest.fixture
def warnings(caplog, monkeypatch):
    """Text of the warnings about resuming."""
    names = ("csm.checkpoint.resume",)
    for name in names:
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)  # Hydra may have done that
    return lambda: [record.getMessage() for record in caplog.records if record.name in names]


def steps_of(run_dir: Path) -> dict[str, int]:
    files = (run_dir / "checkpoints").iterdir()
    return {file.name: read_training_checkpoint(file)["global_step"] for file in files}


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "one bit":
        content[len(content) // 2] ^= 1
    file.unlink()  # not in place: other names of the file stay as they are
    if how != "missing":
        file.write_bytes(content[: len(content) // 2] if how == "cut short" else content)


def test_names_and_what_a_checkpoint_records(trained, small_dataset):
    assert steps_of(trained) == {
        **{"last.ckpt": 7, "previous.ckpt": 6, "best.ckpt": 6},
        **{"step-0000003.ckpt": 3, "step-0000006.ckpt": 6},
    }
    recorded = read_training_checkpoint(trained / "checkpoints" / "last.ckpt")["csm"]
    assert recorded["config"]["optim"]["lr"] == 3e-3 and recorded["config"]["model"]["backbone"]["dim"] == 48
    assert recorded["datasets"] == {ONLY_SOURCE: ShardedDataset(small_dataset).info.fingerprint}
    assert recorded["code"]["csm-train"] and recorded["code"]["commit"]


@pytest.mark.parametrize("how", ["cut short", "one bit", "missing"])
def test_damaged_last_gives_way_to_the_one_before_it(how, trained, continued, run_dir, resume, warnings):
    last, previous = run_dir / "checkpoints" / "last.ckpt", run_dir / "checkpoints" / "previous.ckpt"
    damage(last, how)
    found = resume()
    (warning,) = warnings()
    assert str(last) in warning and f"continuing from the one before it, {previous}" in warning
    assert all(torch.equal(tensor, continued["state_dict"][name]) for name, tensor in found["state_dict"].items())
    assert found["csm_progress"]["best_loss"] == continued["csm_progress"]["best_loss"]
    for file in (run_dir / "checkpoints").iterdir():
        verify_whole(file)  # the damaged one has not become the one before
    damage(last, "one bit")
    damage(previous, "cut short")
    with pytest.raises(ValueError, match=r"previous\.ckpt is damaged or not a checkpoint"):
        resume()


def test_damage_to_a_checkpoint_asked_for_by_name_is_an_error(run_dir, resume):
    file = run_dir / "checkpoints" / "step-0000003.ckpt"
    damage(file, "one bit")
    with pytest.raises(
        ValueError,
        match=r"step-0000003\.ckpt is damaged or not a checkpoint \(the content of its record .* has changed\)",
    ):
        resume(f"ckpt_path={file}")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt does not exist"):
        resume("ckpt_path=nowhere.ckpt")


def test_returning_to_an_earlier_checkpoint_leaves_no_later_one_to_fall_back_to(run_dir, resume):
    resume(f"ckpt_path={run_dir / 'checkpoints' / 'step-0000003.ckpt'}", steps=4)
    assert steps_of(run_dir) == {"last.ckpt": 4, "best.ckpt": 3, "step-0000003.ckpt": 3, "step-0000006.ckpt": 6}


def test_sharded_checkpoint_cut_short(tmp_path):
    folder = tmp_path / "last.ckpt"
    dcp.save({"state_dict": {"weight": torch.randn(50, 7)}}, checkpoint_id=folder, no_dist=True)
    torch.save({"global_step": 3}, folder / "meta.pt")
    verify_whole(folder)
    (part,) = folder.glob("*.distcp")
    damage(part, "cut short")
    with pytest.raises(ValueError, match=rf"last\.ckpt is damaged: {part.name} is cut short,"):
        verify_whole(folder)


# ---------------------------------------------------------------------------------------------- same run or not


def test_resuming_as_another_run_is_refused_field_by_field(run_dir, resume, warnings):
    allowed = ["data.micro_batch_size=1", "optim.lr=1e-9"]
    other = ["data.global_batch_size=4", "data.context_dropout=0.25", *allowed]
    before = (run_dir / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(ValueError, match="belongs to a run with other settings") as refusal:
        resume(*other)
    assert "data.global_batch_size: 2 -> 4" in str(refusal.value) and "data.context_dropout: 0.5 -> 0.25" in str(
        refusal.value
    )
    assert "micro_batch_size" not in str(refusal.value) and "optim" not in str(refusal.value)
    accept = str(refusal.value).partition("accept the new ones: ")[2]
    assert (run_dir / "checkpoints" / "last.ckpt").read_bytes() == before
    assert resume(*other, accept)["global_step"] == 9
    assert len(warnings()) == 2 and any("another data.global_batch_size: 2 -> 4" in warning for warning in warnings())


def test_what_cannot_change_midway(run_dir, resume, small_dataset, tmp_path):
    for override, difference in {
        "model.backbone.ffn_dim=88": "model.backbone.ffn_dim: 72 -> 88",
        "seed=5": "seed: 1234 -> 5",
        "data.max_seq_len=320": "data.max_seq_len: 384 -> 320",
        "trainer.ema_decay=0.9": "trainer.ema_decay > 0: False -> True",
    }.items():
        with pytest.raises(ValueError, match=rf"settings \({difference}\); .* or start from its weights .* init_from="):
            resume(override, f"resume_anyway=[{override.partition('=')[0]}]")
    moved = shutil.copytree(small_dataset, tmp_path / "moved")
    assert resume(f"data.path={moved}", steps=8)["global_step"] == 8
    other = tmp_path / "other"
    codec = CodecConfig(kind=CodecKind.spectral, path=str(small_dataset / "codec.safetensors"))
    codec.num_codebooks, codec.codebook_size = 5, 23
    prepare_demo_dataset(DataPrepConfig(output=str(other), codec=codec, limit=3, report=ReportConfig(0)))
    with pytest.raises(ValueError, match=r"settings \(dataset\.data: [0-9a-f]{16} -> [0-9a-f]{16}\)"):
        resume(f"data.path={other}")


def test_a_checkpoint_of_another_order_of_the_data_is_refused(run_dir, resume):
    last = run_dir / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    assert content["csm"].pop("order") == ORDER  # as before there were versions of it
    torch.save(content, last)
    with pytest.raises(ValueError, match=rf"settings \(the code's order of the data: 1 -> {ORDER}\); .* init_from="):
        resume()


def test_learning_rate_of_a_resumed_run_is_the_one_asked_for(trained, resume):
    before = read_training_checkpoint(trained / "checkpoints" / "last.ckpt")["state_dict"]
    after = resume("optim.lr=0")["state_dict"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


# ------------------------------------------------------------------------------------------------ full disks


def small_files_only() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


@pytest.mark.slow
@pytest.mark.parametrize("background", [True, False])
def test_checkpoint_that_cannot_be_written_ends_the_run(background, small_dataset, run_dir, tmp_path):
    """A limit on the size of files is what a full disk is to the program: a write that fails in the middle."""
    before = {file.name: file.read_bytes() for file in (run_dir / "checkpoints").iterdir()}
    more = ["trainer.max_steps=50", f"trainer.async_checkpoint={background}"]
    run = Run([*command_of(small_dataset, run_dir), *more], tmp_path / "log", before=small_files_only)
    assert run.wait() == [2], run.output()
    (error,) = [line for line in run.output().splitlines() if line.startswith("error: ")]
    assert f"checkpoint {run_dir / 'checkpoints' / 'last.ckpt'} cannot be written (File too large)" in error
    assert "Traceback" not in run.output()
    after = {file.name: file.read_bytes() for file in (run_dir / "checkpoints").glob("*.ckpt")}
    assert after == before


# ------------------------------------------------------------------------------------------ the command itself


@pytest.mark.slow
def test_sigterm_to_the_command_that_started_the_other_process(small_dataset, tmp_path):
    """`train.py` starts its second rank itself; only the first gets the signal, and both save and end."""
    more = ["trainer.max_steps=100000", "trainer.checkpoint_every_steps=100000", "trainer.val_every_steps=100000"]
    overrides = [*command_of(small_dataset, tmp_path / "run"), *more, "data.micro_batch_size=1"]
    process = subprocess.Popen(
        command([*overrides, "strategy=ddp", "trainer.devices=2"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 150
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    step = read_training_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"]
    assert output.count(f"stopped at step {step} by SIGTERM; start again to continue\n") == 1
    assert "Traceback" not in output
