"""A tiny model over a narrow Mimi, exported once in every layout."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from csm.cli import main
from csm.config import CodecConfig, CSMConfig, TransformerConfig
from csm.formats.export import LAYOUTS, export
from csm.formats.native import write_native
from csm.formats.open import open_checkpoint
from csm.formats.tensors import lazy
from csm.model.csm import CSM
from csm.text import HFTokenizer
from tests.llama_tokenizer import save_byte_level_tokenizer


@pytest.fixture(scope="module")
def narrow_mimi() -> Iterator[None]:
    """All of the module's Mimis are narrow."""
    from tests.formats.small_mimi import narrow  # imports moshi, as below

    with narrow():
        yield


@pytest.fixture(scope="session")
def small_mimi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the narrow Mimi in moshi's layout."""
    from tests.formats.small_mimi import save_small_mimi

    return save_small_mimi(tmp_path_factory.mktemp("mimi") / "mimi.safetensors")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory, small_mimi: Path) -> Path:
    """A tiny random model with Llama's special tokens, as a native directory."""
    from csm.codec.mimi import MimiCodec
    from tests.formats.small_mimi import narrow

    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("source")
    tokenizer = HFTokenizer.load(save_byte_level_tokenizer(folder / "tokenizer"))
    config = CSMConfig(
        backbone=TransformerConfig(layers=3, dim=24, heads=6, kv_heads=3, ffn_dim=40),
        decoder=TransformerConfig(layers=2, dim=16, heads=2, kv_heads=1, ffn_dim=36),
        text_vocab_size=tokenizer.vocab_size,
        codebook_size=2048,
        num_codebooks=32,
        max_seq_len=320,
        initializer_std=0.3,
    )
    (folder / "native").mkdir()
    with narrow():
        codec_info = MimiCodec.load(small_mimi).info
    write_native(
        folder / "native",
        weights=lazy(CSM(config).state_dict()),
        config=config,
        codec=CodecConfig(),
        codec_info=codec_info,
        fitted_codec=None,
        tokenizer=tokenizer,
        training={"step": 7},
    )
    return folder / "native"


@pytest.fixture(scope="session")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory, small_mimi: Path) -> dict[str, Path]:
    """{layout: directory}."""
    from tests.formats.small_mimi import narrow

    folder = tmp_path_factory.mktemp("exported")
    with narrow():
        for layout in LAYOUTS:
            export(open_checkpoint(source, codec_path=str(small_mimi)), folder / layout, layout)
    return {layout: folder / layout for layout in LAYOUTS}


@pytest.fixture
def csm(monkeypatch):
    """`csm ARGUMENTS` in this process; returns its exit code."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["csm", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            assert isinstance(stop.code, int)
            return stop.code
        return 0

    return run
