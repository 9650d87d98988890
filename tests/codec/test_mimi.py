"""Mimi at its full size with random weights: loading, shapes, and batches of unequal turns."""

import pytest
import torch
from safetensors.torch import save_file

from csm.codec import encode_turns, load_codec
from csm.codec.mimi import MimiCodec
from csm.config import CodecConfig, CodecKind


@pytest.fixture(scope="module")
def codec(mimi_weights):
    return load_codec(CodecConfig(kind=CodecKind.mimi, path=str(mimi_weights)))


def test_it_is_mimi_with_32_codebooks(codec):
    info = codec.info
    assert (info.name, info.num_codebooks, info.codebook_size) == ("mimi", 32, 2048)
    assert (info.frame_rate, info.sample_rate, codec.samples_per_frame) == (12.5, 24_000, 1920)
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in codec.model.parameters())


def test_shapes_on_ragged_input(codec, babble):
    for num_samples, frames in [(1, 1), (1920, 1), (1921, 2), (7 * 1920 - 5, 7)]:
        codes = codec.encode(babble(num_samples, 2)[None, None])
        assert codes.shape == (1, 32, frames) and codes.dtype == torch.int64
    assert len(codes.unique()) > 50  # the random codebooks are really in use
    audio = codec.decode(codes)
    assert audio.shape == (1, 1, 7 * 1920) and audio.dtype == torch.float32 and audio.isfinite().all()


def test_a_turn_in_a_padded_batch_has_the_codes_it_has_alone(codec, babble):
    turns = [babble(n, n) for n in (30_001, 9_000, 21_500)]
    batched = encode_turns(codec, turns, batch_seconds=10.0)
    for turn, codes in zip(turns, batched, strict=True):
        alone = codec.encode(turn[None, None])[0]
        # Sums are rounded differently in a batch; a near tie that falls the other way changes all finer codes too.
        assert (codes == alone).float().mean() > 0.97
        assert torch.equal(codes[0], alone[0])


def test_decoding_uses_every_codebook(codec):
    codes = torch.randint(2048, (1, 32, 3), generator=torch.Generator().manual_seed(1))
    audio = codec.decode(codes)
    for k in (0, 1, 31):
        changed = codes.clone()
        changed[0, k] = (changed[0, k] + 1) % 2048
        assert (codec.decode(changed) - audio).abs().max() > 1e-6


@pytest.mark.slow
def test_fewer_codebooks_are_the_first_of_all(codec, mimi_weights, babble):
    eight = MimiCodec.load(mimi_weights, num_codebooks=8)
    audio = babble(9000, 4)[None, None]
    assert torch.equal(eight.encode(audio), codec.encode(audio)[:, :8])
    assert eight.identity == codec.identity and eight.info != codec.info


def test_what_is_missing_or_wrong_is_said_in_one_line(codec, mimi_weights, tmp_path, hub_cache):
    with pytest.raises(FileNotFoundError, match=r"codec\.path=FILE, or use codec=spectral") as caught:
        load_codec(CodecConfig(repo="nobody/no-mimi-here"))
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: no such file"):
        load_codec(CodecConfig(path=str(tmp_path / "none.safetensors")))
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, other)
    with pytest.raises(ValueError, match=r"other\.safetensors: not Mimi weights") as caught:
        load_codec(CodecConfig(path=str(other)))
    assert "\n" not in str(caught.value)
    (tmp_path / "other.pt").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"other\.pt: not Mimi weights .*kyutai/moshiko-pytorch-bf16") as caught:
        load_codec(CodecConfig(path=str(tmp_path / "other.pt")))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="Mimi has 1 to 32"):
        MimiCodec.load(mimi_weights, num_codebooks=33)
    with pytest.raises(ValueError, match=r"must lie in 0\.\.2047, got 0\.\.2048"):
        codec.decode(torch.tensor([0] * 31 + [2048])[None, :, None])
