"""Every configuration composes; mistakes fail at once with the key's name; the published shapes have their sizes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from csm.compose import EVALUATE
from csm.config import TrainConfig
from csm.model.csm import CSM
from tests.conftest import ROOT, compose_train

GROUPS = [
    "model",
    "codec",
    "tokenizer",
    "data",
    "optim",
    "trainer",
    "strategy",
    "logger",
    "experiment",
    "sweep",
    "launcher",
]
OPTIONS = [(group, file.stem) for group in GROUPS for file in sorted((ROOT / "configs").glob(f"*/{group}/*.yaml"))]


def test_every_group_has_options():
    assert {group for group, _ in OPTIONS} == set(GROUPS)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_training_option_composes(group, option):
    config = compose_train([f"{group}={option}", "data.path=somewhere"])
    assert isinstance(config, TrainConfig)
    assert config.model.audio_vocab_size == config.codec.codebook_size + 3
    if group == "experiment":
        assert config.name == option and config.run_dir == f"runs/{option}"


@pytest.mark.parametrize(
    "option", sorted(file.stem for file in (ROOT / "configs" / "evaluate" / "eval").glob("*.yaml"))
)
def test_every_evaluation_composes(option):
    config = EVALUATE.options(EVALUATE.compose(["checkpoint=x", f"eval={option}"]))
    assert config.eval.name == option


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train.py", "model.bogus=1"], "bogus"),
        (["train.py", "optim.lr=fast"], "fast"),
        (["train.py", "model=csm_9b"], "csm_9b"),
        (["evaluate.py", "eval.sedes=[1]"], "sedes"),
        (["-m", "data_prep", "outputt=x"], "outputt"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(arguments, expected):
    result = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and expected in lines[0], result.stderr


def parameters(module: torch.nn.Module) -> float:
    """In millions."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize(
    ("name", "total", "backbone", "decoder"),
    [
        # csm_1b and csm_8b: published checkpoints (Sesame, MisoTTS); csm_3b: the backbone layers of Llama-3.2-3B
        ("csm_1b", 1552.8, 973.1, 111.2),
        ("csm_3b", None, 2818.7, 262.0),
        ("csm_8b", None, 6979.6, 302.0),
    ],
)
def test_published_shapes(name, total, backbone, decoder):
    config = compose_train([f"model={name}", "data.path=x"]).model
    with torch.device("meta"):
        model = CSM(config)
    assert parameters(model.backbone) == pytest.approx(backbone, abs=1.0)
    assert parameters(model.decoder) == pytest.approx(decoder, abs=1.0)
    if total:
        assert parameters(model) == pytest.approx(total, abs=0.05)
        assert parameters(model.text_embeddings) == pytest.approx(262.7, abs=0.05)
        assert parameters(model.audio_embeddings) == pytest.approx(134.4, abs=0.1)
        assert model.audio_head.shape == (31, 1024, 2051)


def test_tiny_is_tiny():
    config = compose_train(["experiment=quickstart"]).model
    assert config.num_codebooks == 32 and parameters(CSM(config)) < 10
