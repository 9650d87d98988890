"""Shared fixtures: a small prepared dataset of real speech, and configurations composed as the command line does.

Imported by every test process, so whatever is slow to import is imported by the fixtures that use it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Several test processes run in parallel. Read when torch is imported; processes that tests start have it, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if TYPE_CHECKING:
    from csm.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent

TINY_OVERRIDES = [
    "experiment=quickstart",
    "model.backbone={layers: 2, dim: 48, heads: 6, kv_heads: 3, ffn_dim: 72}",
    "model.decoder={layers: 1, dim: 32, heads: 4, kv_heads: 2, ffn_dim: 56}",
    "codec.num_codebooks=5",
    "codec.codebook_size=23",
    "data.prepare=null",
    "data.max_seq_len=384",
    "data.global_batch_size=4",
    "data.micro_batch_size=2",
    "trainer.precision=32-true",
    "trainer.sample_every_steps=0",
    "trainer.log_every_steps=1",
    "trainer.max_steps=3",
    "trainer.val_every_steps=3",
    "trainer.checkpoint_every_steps=3",
]


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty Hugging Face cache for one test, offline.

    The client keeps its sessions, and a session keeps whether it is offline: one of an earlier test would retry until
    the network times out.
    """
    import huggingface_hub

    try:
        from huggingface_hub.utils import reset_sessions
    except ImportError:  # huggingface-hub 1 and later
        from huggingface_hub import close_session as reset_sessions

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    reset_sessions()
    yield tmp_path / "hub"
    reset_sessions()


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo recordings, prepared with 5 codebooks of 23 codes."""
    from csm.config import CodecConfig, CodecKind
    from data_prep.config import DataPrepConfig, ReportConfig
    from data_prep.demo import prepare_demo_dataset

    output = tmp_path_factory.mktemp("small") / "demo"
    codec = CodecConfig(kind=CodecKind.spectral, num_codebooks=5, codebook_size=23)
    prepare_demo_dataset(DataPrepConfig(output=str(output), codec=codec, report=ReportConfig(conversations=1)))
    return output


@pytest.fixture(scope="session")
def mimi_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file like the published one: Mimi in full size with random weights, in moshi's layout.

    Untrained codebooks are all zeros, so they are filled.
    """
    from moshi.models import loaders
    from moshi.quantization.core_vq import EuclideanCodebook
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = loaders.get_mimi(None, num_codebooks=32)
    for module in model.modules():
        if isinstance(module, EuclideanCodebook):
            module.embedding_sum.normal_(std=0.05)
            module._initialized.fill_(1)
    path = tmp_path_factory.mktemp("mimi") / "mimi.safetensors"
    save_file(model.state_dict(), path)
    yield path
    path.unlink()  # 380 MB


@pytest.fixture(scope="session")
def llama_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Llama-3's tokenizer, 128256 ids."""
    from tests.llama_tokenizer import save_llama_tokenizer

    return save_llama_tokenizer(tmp_path_factory.mktemp("tokenizer") / "llama")


@pytest.fixture
def tiny_overrides(small_dataset: Path, tmp_path: Path) -> list[str]:
    """Command-line overrides of a training run that takes seconds; `run_dir` is tmp_path/run."""
    return [*TINY_OVERRIDES, f"data.path={small_dataset}", f"run_dir={tmp_path / 'run'}"]


def compose_train(overrides: list[str]) -> TrainConfig:
    """TrainConfig as `python train.py <overrides>` would build it."""
    from csm.compose import TRAIN

    return TRAIN.options(TRAIN.compose(overrides))
