"""The built-in codec: what it keeps of the sound, and that its codes depend on nothing but the turn."""

import pytest
import torch
from safetensors.torch import save_file

from csm.codec import SpectralCodec, encode_turns, load_codec, mel
from csm.config import CodecConfig, CodecKind

K, V = 12, 64
RATE = 24_000


@pytest.fixture(scope="module")
def clips(babble):
    return [babble(RATE * 3 + 700 * i, seed=i) for i in range(12)]


@pytest.fixture(scope="module")
def codec(clips):
    return SpectralCodec.fit(clips, num_codebooks=K, codebook_size=V)


def log_mel(audio: torch.Tensor) -> torch.Tensor:
    audio = audio[: len(audio) // mel.HOP * mel.HOP]
    return mel.log_mel(mel.stft(mel.add_margins(audio)).abs(), mel.mel_filterbank())


def test_stft_has_one_frame_per_hop_and_inverts_exactly(babble):
    audio = babble(37 * mel.HOP, seed=3)
    spectrum = mel.stft(mel.add_margins(audio))
    assert spectrum.shape == (37, mel.WINDOW // 2 + 1)
    torch.testing.assert_close(mel.istft(spectrum), audio, atol=1e-5, rtol=0)


def test_griffin_lim_finds_audio_with_the_wanted_spectrogram(babble):
    logs = log_mel(babble(RATE * 2, seed=5))
    found = log_mel(mel.griffin_lim(logs, mel.mel_filterbank(), iterations=60, seed=0))
    worse = log_mel(mel.griffin_lim(logs, mel.mel_filterbank(), iterations=0, seed=0))
    error, start = (found - logs).square().mean().sqrt(), (worse - logs).square().mean().sqrt()
    assert error < 0.35 and error < 0.5 * start  # natural log units


@pytest.mark.parametrize("num_samples", [1, 1919, 1920, 1921, 100_003])
def test_shapes_and_dtypes_on_ragged_input(codec, num_samples, babble):
    frames = -(-num_samples // 1920)
    codes = codec.encode(torch.stack([babble(num_samples, 7), babble(num_samples, 8)])[:, None])
    assert codes.shape == (2, K, frames) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < V
    audio = codec.decode(codes)
    assert audio.shape == (2, 1, frames * 1920) and audio.dtype == torch.float32
    assert (codec.sample_rate, codec.frame_rate, codec.samples_per_frame) == (24_000, 12.5, 1920)


def test_resynthesis_keeps_spectrum_and_loudness_and_more_codebooks_keep_more(codec, clips):
    audio = clips[4]
    codes = codec.encode(audio[None, None])
    back = codec.decode(codes)[0, 0, : len(audio)]
    original = log_mel(audio)
    spread = (original - original.mean(dim=0)).square().mean().sqrt()
    error = (log_mel(back) - original).square().mean().sqrt()
    assert error < 0.4 * spread
    assert 0.7 < back.square().mean().sqrt() / audio.square().mean().sqrt() < 1.4
    blurred = codes.clone()
    blurred[:, 4:] = torch.randint(V, blurred[:, 4:].shape, generator=torch.Generator().manual_seed(0))
    assert (log_mel(codec.decode(blurred)[0, 0, : len(audio)]) - original).square().mean().sqrt() > 1.2 * error


def test_padded_batches_give_bit_equal_codes(codec, clips):
    turns = [clips[i][: 3000 + 9001 * i] for i in (5, 0, 3, 1, 4)]
    alone = [codec.encode(turn[None, None])[0] for turn in turns]
    for batch_seconds in (0.001, 4.0, 60.0):
        batched = encode_turns(codec, turns, batch_seconds)
        assert all(torch.equal(a, b) for a, b in zip(alone, batched, strict=True))


def test_decoding_does_not_depend_on_the_batch(codec, clips):
    codes = encode_turns(codec, [clip[: 20 * 1920] for clip in clips[:3]])
    together = codec.decode(torch.stack(codes))
    assert all(torch.equal(together[i], codec.decode(codes[i][None])[0]) for i in range(3))


def test_no_encoded_frame_is_all_zeros_and_the_zero_frame_is_quiet(codec, clips):
    turns = [*clips, torch.zeros(30 * 1920), torch.full((1920,), 1e-7), torch.ones(1920)]
    assert all((codes[0] != 0).all() for codes in encode_turns(codec, turns))
    silence = encode_turns(codec, [torch.zeros(30 * 1920)])[0]
    assert codec.decode(silence[None]).abs().max() < 0.02


def test_fitting_is_deterministic_and_seeded(codec, clips):
    again = SpectralCodec.fit(iter(clips), num_codebooks=K, codebook_size=V)
    other = SpectralCodec.fit(clips, num_codebooks=K, codebook_size=V, seed=1)
    assert again.info == codec.info
    assert other.identity != codec.identity


def test_saved_codec_is_the_same_codec(codec, clips, tmp_path):
    codec.save(tmp_path / "codec.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["codec.safetensors"]
    path = str(tmp_path / "codec.safetensors")
    back = load_codec(CodecConfig(kind=CodecKind.spectral, path=path, num_codebooks=K, codebook_size=V))
    assert back.info == codec.info
    codes = codec.encode(clips[2][None, None])
    assert torch.equal(back.encode(clips[2][None, None]), codes)
    assert torch.equal(back.decode(codes), codec.decode(codes))


def test_bad_codec_files_give_one_clear_line(codec, tmp_path):
    path = tmp_path / "codec.safetensors"
    with pytest.raises(FileNotFoundError, match="no such spectral codec file"):
        SpectralCodec.load(path)
    with pytest.raises(ValueError, match=r"needs codec\.path=FILE"):
        load_codec(CodecConfig(kind=CodecKind.spectral))
    codec.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        SpectralCodec.load(path)
    path.write_bytes(whole[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(ValueError, match="do not match the hash"):
        SpectralCodec.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not a spectral codec"):
        SpectralCodec.load(path)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="has 12 codebooks of 64 entries"):
        load_codec(CodecConfig(kind=CodecKind.spectral, path=str(path), num_codebooks=32, codebook_size=V))


def test_bad_input_gives_one_clear_line(codec, babble):
    with pytest.raises(ValueError, match="at least 1 s of audio, got 0"):
        SpectralCodec.fit([babble(4000, 0)], num_codebooks=K, codebook_size=V)
    with pytest.raises(ValueError, match="at least 5 s of audio, got 0"):
        SpectralCodec.fit([])
    with pytest.raises(ValueError, match=r"must lie in 0\.\.63, got 0\.\.64"):
        codec.decode(torch.tensor([0] * (K - 1) + [V])[None, :, None])
    with pytest.raises(ValueError, match=r"integers \[B, 1\.\.12, T\]"):
        codec.decode(torch.zeros(1, K + 1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"float audio \[B, 1, N\]"):
        codec.encode(torch.zeros(2, 4000))
