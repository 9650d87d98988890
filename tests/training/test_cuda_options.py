"""Preparations of train.py for CUDA, as far as they can be seen without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from csm.kernels.cuda import flex_limit
from csm.validate import validate_train_config
from tests.conftest import ROOT, compose_train

HELP = """
import atexit, os, sys
atexit.register(lambda: print("seen:", os.environ.get("PYTORCH_CUDA_ALLOC_CONF"), "torch" in sys.modules))
sys.argv = ["train.py", "--help"]
from csm.programs import train
train()
"""


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({}, "expandable_segments:True False"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64 False"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "None False"),
    ],
)
def test_allocator_is_configured_before_torch_is_imported_unless_the_user_did(given, seen):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTORCH_")}
    environment |= {"PYTHONPATH": str(ROOT), **given}
    done = subprocess.run([sys.executable, "-c", HELP], env=environment, capture_output=True, text=True, timeout=60)
    assert f"seen: {seen}" in done.stdout, done.stderr


def test_limits_of_flex_attention_are_one_line_with_the_remedy():
    narrow = "model.backbone={layers: 2, dim: 48, heads: 6, kv_heads: 3, ffn_dim: 72}"
    options = ["data.path=x", narrow, "trainer.precision=bf16-mixed"]
    config = compose_train([*options, "trainer.compile=true"])
    with pytest.raises(ValueError, match=r"at least 16 wide.* 6 heads in a width of 48; set trainer\.compile=false"):
        validate_train_config(config, 1, "cuda")
    validate_train_config(compose_train([*options, "trainer.compile=false"]), 1, "cuda")
    validate_train_config(config, 1, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_flex_attention_says_when_there_is_no_gpu_for_it():
    assert flex_limit(64, bf16=True) == "flex attention needs Triton and a GPU of compute capability 7.0 or later"
