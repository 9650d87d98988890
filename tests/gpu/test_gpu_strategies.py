"""Strategies on GPUs: bf16 over fp32 shards, offloading, and DeepSpeed under Lightning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from csm import load_model
from csm.training.loggers import read_lines
from tests.conftest import ROOT
from tests.training.test_strategies import STEPS, last, launch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


@pytest.fixture(scope="module")
def overrides(small_dataset) -> list[str]:
    return [*STEPS, f"data.path={small_dataset}", "ckpt_path=last", "trainer.accelerator=gpu"]


@pytest.fixture(scope="module")
def one(overrides, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gpu") / "one"
    launch([*overrides, f"run_dir={folder}"])
    return folder


STRATEGIES = ["fsdp", "fsdp_offload", "deepspeed_zero2", "deepspeed_zero2_offload", "deepspeed_zero3"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sharding_strategies_equal_one_process_on_gpus(strategy, precision, one, overrides, tmp_path):
    """On as many GPUs as divide the rows of a step. bf16: within what rounding does to a step, far below its size."""
    devices = 2 if torch.cuda.device_count() > 1 else 1
    more = [f"strategy={strategy}", f"trainer.precision={precision}", f"trainer.devices={devices}"]
    launch([*overrides, f"run_dir={tmp_path}", *more])
    weights = load_model(last(one)).state_dict()
    tolerance = 1e-5 if precision == "32-true" else 5e-3  # DeepSpeed rounds its first master weights to bf16
    for name, tensor in load_model(last(tmp_path)).state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, weights[name], atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bad_step_is_skipped_on_gpus(strategy, overrides, tmp_path):
    """As one process skips it, wherever gradients and weights are: the last step is bad, and so without any effect."""
    script = ROOT / "tests" / "training" / "bad_step.py"
    run = [*overrides, f"strategy={strategy}", "trainer.precision=bf16-mixed"]
    launch([*run, "trainer.max_steps=3", "trainer.val_every_steps=3", f"run_dir={tmp_path / 'three'}"])
    launch(["4", *run, f"run_dir={tmp_path / 'four'}"], script)
    assert [record["step"] for record in read_lines(tmp_path / "four" / "skipped_steps.jsonl")] == [4]
    before = load_model(last(tmp_path / "three")).state_dict()
    for name, tensor in load_model(last(tmp_path / "four")).state_dict().items():
        torch.testing.assert_close(tensor, before[name], atol=1e-5, rtol=0, msg=name)
