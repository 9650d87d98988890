"""Mimi through transformers: the codes of moshi's, and its sound up to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from csm.codec.mimi import MimiCodec
from csm.codec.mimi_transformers import HUB_FILE, HUB_REPO, TransformersMimiCodec, has_sliding_window
from tests.codec.conftest import make_babble
from tests.formats.small_mimi import narrow, save_small_mimi


def assert_same(path: Path, seconds: float, num_codebooks: int = 32) -> None:
    ours = MimiCodec.load(path, num_codebooks=num_codebooks)
    theirs = TransformersMimiCodec.load(path, num_codebooks=num_codebooks)
    assert theirs.info == ours.info
    for samples in (1, 1920, round(seconds * 24_000) + 17):
        audio = make_babble(samples, seed=3)[None, None]
        codes = ours.encode(audio)
        assert torch.equal(theirs.encode(audio), codes), samples
        first = codes[:, :3]
        torch.testing.assert_close(theirs.decode(codes), ours.decode(codes), atol=1e-5, rtol=0)
        torch.testing.assert_close(theirs.decode(first), ours.decode(first), atol=1e-5, rtol=0)
    assert len(codes.unique()) > 20


def test_narrow(tmp_path):
    """Beyond 10 s where the installed transformers is one that `mimi_codec` chooses."""
    path = save_small_mimi(tmp_path / "mimi.safetensors")
    with narrow():
        assert_same(path, seconds=11 if has_sliding_window() else 0.8)
        assert_same(path, seconds=0.5, num_codebooks=8)
        codec = TransformersMimiCodec.load(path)
        weights = load_file(path)
        assert codec.moshi_weights().keys() == weights.keys()
        with pytest.raises(ValueError, match="streaming with Mimi needs the package moshi"):
            codec.streaming_decoder(1)
        del weights["upsample.convtr.convtr.convtr.weight"]
        with pytest.raises(ValueError, match="317 tensors, expected 318"):
            TransformersMimiCodec.from_state_dict(weights)
        weights["upsample.convtr.convtr.convtr.weight"] = torch.zeros(2)
        with pytest.raises(ValueError, match="not Mimi's weights"):
            TransformersMimiCodec.from_state_dict(weights)


@pytest.mark.slow
def test_full_size(mimi_weights):
    assert_same(mimi_weights, seconds=11 if has_sliding_window() else 4)


def test_the_file_is_the_one_that_moshi_loads():
    from moshi.models import loaders

    assert (HUB_REPO, HUB_FILE) == (loaders.DEFAULT_REPO, loaders.MIMI_NAME)
