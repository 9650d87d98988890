"""moshi's Mimi and transformers' Mimi with the same (random, full-size) weights do the same."""

from __future__ import annotations

import argparse
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, MimiModel

from csm.cli import main
from csm.codec.mimi import MimiCodec
from csm.codec.mimi_transformers import has_sliding_window
from csm.formats.mimi import HF_CODEC_CONFIG, hf_to_moshi, moshi_to_hf
from tests.codec.conftest import make_babble
from tests.formats.small_mimi import narrow


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


@pytest.mark.skipif(has_sliding_window(), reason="this transformers attends as the original does")
def test_beyond_ten_seconds_the_first_125_frames_agree(small_mimi):
    """Older versions attend over the whole clip, the original over the last 250 steps: the limit that the docs give."""
    weights = load_file(small_mimi)
    # as drawn, attention hardly matters to a code
    weights = {name: tensor * (100 if "layer_scale" in name else 1) for name, tensor in weights.items()}
    with narrow():
        ours = MimiCodec.from_state_dict(weights)
        theirs = MimiModel(AutoConfig.for_model(**HF_CODEC_CONFIG)).eval()
    theirs.load_state_dict(moshi_to_hf(weights))
    audio = make_babble(11 * 24_000, seed=11)[None, None]
    codes = ours.encode(audio)
    with torch.no_grad():
        found = theirs.encode(audio, num_quantizers=32).audio_codes
    assert found.shape == codes.shape == (1, 32, 138)
    assert torch.equal(found[..., :125], codes[..., :125])
    assert not torch.equal(found[..., 125:137], codes[..., 125:137])


def test_identity_does_not_depend_on_the_layout(mimi_weights, hf_weights):
    assert MimiCodec.from_state_dict(hf_to_moshi(hf_weights)).info == MimiCodec.load(mimi_weights).info


def test_other_files_given_as_codec_end_in_one_line(exported, small_mimi, tmp_path, monkeypatch, capsys):
    weights = load_file(small_mimi)
    save_file(moshi_to_hf(weights), tmp_path / "mimi.safetensors")
    torch.save(weights, tmp_path / "weights.pt")
    torch.save({"model": weights, "args": argparse.Namespace(lr=1)}, tmp_path / "objects.pt")
    reasons = {
        "mimi.safetensors": "it has transformers' layout, as kyutai/mimi",
        "weights.pt": "it is neither safetensors nor a pickled file of moshi's",
        "objects.pt": "it is neither safetensors nor a pickled file of moshi's",
    }
    for name, reason in reasons.items():
        command = ["csm", "export", exported["sesame"], "--out", tmp_path / "out", "--codec", tmp_path / name]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line == (
            f"error: {tmp_path / name}: not Mimi weights in moshi's safetensors format, such as "
            f"tokenizer-e351c8d8-checkpoint125.safetensors of kyutai/moshiko-pytorch-bf16 ({reason})"
        )
        assert not (tmp_path / "out").exists()


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
