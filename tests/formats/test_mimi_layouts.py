"""moshi's Mimi and transformers' Mimi with the same (random, full-size) weights do the same."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, MimiModel

from csm.codec.mimi import MimiCodec
from csm.formats.mimi import HF_CODEC_CONFIG, hf_to_moshi, moshi_to_hf
from tests.codec.conftest import make_babble


@pytest.fixture(scope="module")
def moshi_weights(mimi_weights):
    return load_file(mimi_weights)


@pytest.fixture(scope="module")
def hf_weights(moshi_weights):
    return moshi_to_hf(moshi_weights)


def test_round_trip_bit_for_bit(moshi_weights, hf_weights):
    back = hf_to_moshi(hf_weights)
    assert back.keys() == moshi_weights.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in moshi_weights.items())
    again = moshi_to_hf(back)
    assert again.keys() == hf_weights.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in hf_weights.items())


@pytest.mark.slow
def test_same_codes_and_same_sound(mimi_weights, hf_weights):
    assert AutoConfig.for_model(**HF_CODEC_CONFIG).num_quantizers == 32
    theirs = MimiModel(AutoConfig.for_model(**HF_CODEC_CONFIG)).eval()
    theirs.load_state_dict(hf_weights)  # strict
    ours = MimiCodec.load(mimi_weights)
    for samples in (1920, 4096, 37 * 1920, 3 * 24_000 + 17):
        audio = make_babble(samples, seed=samples)[None, None]
        codes = ours.encode(audio)
        # A last frame that is not full: moshi pads the audio with silence, transformers the features of each layer.
        # The codec is causal, so only that frame is concerned.
        whole = samples // 1920
        with torch.no_grad():
            found = theirs.encode(audio, num_quantizers=32).audio_codes
            assert found.shape == codes.shape
            assert torch.equal(found[..., :whole], codes[..., :whole]), samples
            decoded = theirs.decode(codes).audio_values
        torch.testing.assert_close(decoded[..., : codes.shape[-1] * 1920], ours.decode(codes), atol=1e-5, rtol=0)
    assert len(codes.unique()) > 100


def test_identity_does_not_depend_on_the_layout(mimi_weights, hf_weights):
    assert MimiCodec.from_state_dict(hf_to_moshi(hf_weights)).info == MimiCodec.load(mimi_weights).info


def test_strangers_and_gaps_are_named(moshi_weights, hf_weights):
    with pytest.raises(ValueError, match=r"unexpected tensor quantizer\.surprise"):
        moshi_to_hf({**moshi_weights, "quantizer.surprise": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"unexpected tensor codec_model\.surprise"):
        hf_to_moshi({**hf_weights, "surprise": torch.zeros(1)})
    without = {name: tensor for name, tensor in hf_weights.items() if "k_proj" not in name}
    with pytest.raises(ValueError, match="comes without its key or value projection"):
        hf_to_moshi(without)
    without = {name: tensor for name, tensor in hf_weights.items() if name != "upsample.conv.weight"}
    with pytest.raises(ValueError, match="317 tensors, expected 318"):
        hf_to_moshi(without)
    broken = {**moshi_weights, "upsample.convtr.convtr.convtr.weight": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"not Mimi's weights .*upsample\.convtr"):
        MimiCodec.from_state_dict(broken)
