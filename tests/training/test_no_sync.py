"""Nothing in an optimizer step waits for the GPU."""

from __future__ import annotations

import pytest
import torch

from csm.training.build import train
from csm.training.loggers import read_lines
from csm.training.train import TrainingLoop
from tests.conftest import compose_train

OPTIONS = [
    "trainer.accelerator=gpu",
    "trainer.precision=bf16-mixed",
    "trainer.ema_decay=0.9",
    "trainer.max_steps=6",
    "trainer.log_every_steps=6",
    "trainer.val_every_steps=6",
    "trainer.checkpoint_every_steps=6",
]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_step_between_two_lines_never_synchronizes(tiny_overrides, tmp_path, monkeypatch):
    """Steps 3 to 5: after warm-up, before the step that logs."""
    step_of, watched = TrainingLoop.take_step, []

    def take_step(self, batch):
        watch = 3 <= self.step + 1 <= 5
        torch.cuda.set_sync_debug_mode("error" if watch else "default")
        try:
            step_of(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        watched.append(watch)

    monkeypatch.setattr(TrainingLoop, "take_step", take_step)
    train(compose_train([*tiny_overrides, *OPTIONS]))
    assert watched == [False, False, True, True, True, False]
    line = next(line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line)
    assert 0 < line["memory/allocated_gib"] <= line["memory/reserved_gib"]
    assert 0 < line.get("throughput/mfu", 0.5) <= line.get("throughput/hfu", 0.5) < 1
