"""Streaming decoders: every slot hears what it would hear alone and offline, whatever happens in the other slots."""

import gc
import weakref

import pytest
import torch
from moshi.modules.transformer import StreamingMultiheadAttention

from csm.codec import SpectralCodec, encode_turns, mel
from csm.codec.mimi import MimiCodec
from tests.formats.small_mimi import narrow, save_small_mimi

SLOTS, FRAME = 4, 1920


@pytest.fixture(scope="module")
def mimi(tmp_path_factory):
    """A small random Mimi whose attention is sharp: a key that is missing, or from another turn, is heard."""
    with narrow():
        codec = MimiCodec.load(save_small_mimi(tmp_path_factory.mktemp("mimi") / "small.safetensors"))
    for module in codec.model.decoder_transformer.modules():
        if isinstance(module, StreamingMultiheadAttention):
            module.in_projs[0].weight *= 3
    for name, parameter in codec.model.decoder_transformer.named_parameters():
        if "layer_scale" in name:
            parameter.fill_(0.5)
    return codec


@pytest.fixture(scope="module")
def spectral(babble):
    return SpectralCodec.fit([babble(72_000, seed) for seed in range(6)], num_codebooks=6, codebook_size=48)


def random_codes(codec, frames, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(codec.codebook_size, (codec.num_codebooks, frames), generator=generator)


def run_schedule(codec, seed, steps):
    """Turns that start, pause, end and are cancelled at random, in every slot.

    Returns [(codes [K, T], audio [T * FRAME])] of the turns that ended.
    """
    generator = torch.Generator().manual_seed(seed)

    def chance(probability):
        return torch.rand((), generator=generator).item() < probability

    decoder = codec.streaming_decoder(SLOTS)
    turns = [None] * SLOTS  # codes, number of frames decoded, audio
    ended = []
    for step in range(steps):
        for slot in range(SLOTS):
            if turns[slot] is None and chance(0.3):
                frames = int(torch.randint(1, 12, (), generator=generator))
                decoder.reset(slot)
                turns[slot] = (random_codes(codec, frames, seed=step * SLOTS + slot), [])
        active = torch.tensor([turn is not None and chance(0.7) for turn in turns])
        codes = torch.full((SLOTS, codec.num_codebooks, 1), 10**6)  # what is not active may be out of range
        for slot in active.nonzero().flatten().tolist():
            whole, audio = turns[slot]
            codes[slot] = whole[:, len(audio), None]
        audio = decoder.decode(codes, active)
        assert audio.shape == (SLOTS, FRAME) and (audio[~active] == 0).all()
        for slot in active.nonzero().flatten().tolist():
            whole, heard = turns[slot]
            heard.append(audio[slot])
            if len(heard) == whole.shape[1]:
                ended.append((whole, torch.cat([*heard, decoder.finish(slot)])[decoder.delay :]))
                turns[slot] = None
            elif chance(0.05):  # cancelled
                turns[slot] = None
    return ended


@pytest.mark.parametrize("seed", range(4))
def test_mimi_streams_what_it_decodes_offline(mimi, seed):
    ended = run_schedule(mimi, seed, steps=60)
    assert len(ended) > 10
    for codes, audio in ended:
        torch.testing.assert_close(audio, mimi.decode(codes[None])[0, 0], atol=1e-5, rtol=0)


def test_mimi_streams_what_it_decodes_offline_beyond_the_10_s_of_its_attention(mimi):
    codes = torch.stack([random_codes(mimi, 150, seed) for seed in range(2)])
    decoder = mimi.streaming_decoder(2)
    pauses = torch.Generator().manual_seed(0)
    heard, places = [[], []], [0, 0]
    while min(places) < 150:
        active = (torch.rand(2, generator=pauses) < 0.8) & (torch.tensor(places) < 150)
        frame = torch.stack([codes[i, :, min(places[i], 149), None] for i in range(2)])
        audio = decoder.decode(frame, active)
        for i in active.nonzero().flatten().tolist():
            heard[i].append(audio[i])
            places[i] += 1
    audio = torch.stack([torch.cat(rows) for rows in heard])
    offline = mimi.decode(codes)[:, 0]
    assert offline[:, 130 * FRAME :].std() > 0.01
    torch.testing.assert_close(audio, offline, atol=1e-5, rtol=0)


def test_mimi_at_its_full_size(mimi_weights):
    codec = MimiCodec.load(mimi_weights)
    for codes, audio in run_schedule(codec, seed=0, steps=12):
        torch.testing.assert_close(audio, codec.decode(codes[None])[0, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(2))
def test_a_spectral_slot_hears_the_same_alone_bit_for_bit(spectral, seed):
    ended = run_schedule(spectral, seed, steps=30)
    assert len(ended) > 5
    for codes, audio in ended:
        alone = spectral.streaming_decoder(1)
        frames = [alone.decode(codes[None, :, i, None], torch.tensor([True]))[0] for i in range(codes.shape[1])]
        assert torch.equal(audio, torch.cat([*frames, alone.finish(0)])[alone.delay :])
        assert audio.shape == (codes.shape[1] * FRAME,)


def test_streamed_spectral_audio_has_nearly_the_spectrogram_of_the_offline_audio(spectral, babble):
    def log_mel(audio):
        return mel.log_mel(mel.stft(mel.add_margins(audio)).abs(), mel.mel_filterbank())

    def distance(a, b):
        return (a - b).square().mean().sqrt() * 8.69  # dB

    codes = encode_turns(spectral, [babble(30 * FRAME, 9)])[0]
    decoder = spectral.streaming_decoder(1)
    frames = [decoder.decode(codes[None, :, i, None], torch.tensor([True]))[0] for i in range(30)]
    streamed = log_mel(torch.cat([*frames, decoder.finish(0)])[decoder.delay :])
    offline = log_mel(spectral.decode(codes[None])[0, 0])
    wanted = spectral.log_mel(codes)
    assert distance(streamed, offline) < 2
    assert distance(streamed, wanted) < distance(offline, wanted) + 0.5


@pytest.mark.parametrize("name", ["mimi", "spectral"])
def test_fewer_codebooks_are_decoded_as_what_there_is(name, request):
    codec = request.getfixturevalue(name)
    codes = random_codes(codec, 5, seed=1)[None]
    decoder = codec.streaming_decoder(1)
    for k in (1, 3, codec.num_codebooks):
        frames = [decoder.decode(codes[:, :k, i, None], torch.tensor([True]))[0] for i in range(5)]
        audio = torch.cat([*frames, decoder.finish(0)])[decoder.delay :]
        assert audio.shape == (5 * FRAME,)
        offline = codec.decode(codes[:, :k])
        assert offline.shape == (1, 1, 5 * FRAME)
        if name == "mimi":
            torch.testing.assert_close(audio, offline[0, 0], atol=1e-5, rtol=0)
    assert not torch.allclose(codec.decode(codes[:, :1]), codec.decode(codes), atol=1e-3)


@pytest.mark.parametrize("name", ["mimi", "spectral"])
def test_a_codec_encodes_and_decodes_while_its_decoders_stream(name, request, babble):
    codec = request.getfixturevalue(name)
    turn, codes = babble(5000, 3)[None, None], random_codes(codec, 6, seed=2)[None]
    encoded, offline = codec.encode(turn), codec.decode(codes)
    first, second = codec.streaming_decoder(1), codec.streaming_decoder(2)
    heard = [[], []]
    for i in range(6):
        frame = codes[:, :, i, None]
        heard[0].append(first.decode(frame, torch.tensor([True]))[0])
        assert torch.equal(codec.encode(turn), encoded) and torch.equal(codec.decode(codes), offline)
        heard[1].append(second.decode(frame.expand(2, -1, -1), torch.tensor([False, True]))[1])
    torch.testing.assert_close(torch.cat(heard[0]), torch.cat(heard[1]), atol=1e-6, rtol=0)


def test_mimi_decoders_share_the_weights_and_are_freed_when_dropped(mimi):
    decoder = mimi.streaming_decoder(3)
    own = {parameter.data_ptr() for parameter in mimi.model.parameters()}
    assert all(parameter.data_ptr() in own for parameter in decoder._model.parameters())
    buffers = {buffer.data_ptr() for buffer in mimi.model.buffers()}
    assert all(buffer.data_ptr() in buffers for buffer in decoder._model.buffers())
    decoder.decode(random_codes(mimi, 1, 0)[None].expand(3, -1, -1), torch.ones(3, dtype=torch.bool))
    attention = next(m for m in decoder._model.modules() if isinstance(m, StreamingMultiheadAttention))
    cache = weakref.ref(attention._streaming_state.kv_cache)
    del attention
    gc.disable()
    try:
        del decoder  # as where a listener goes away in the middle
        assert cache() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["mimi", "spectral"])
def test_bad_input_gives_one_clear_line(name, request):
    codec = request.getfixturevalue(name)
    books = codec.num_codebooks
    with pytest.raises(ValueError, match="slots=0: a streaming decoder needs at least one"):
        codec.streaming_decoder(0)
    decoder = codec.streaming_decoder(2)
    active = torch.tensor([True, False])
    for shape in [(1, books, 1), (2, books + 1, 1), (2, 0, 1), (2, books, 2), (2, books)]:
        with pytest.raises(ValueError, match=rf"integers \[2, 1\.\.{books}, 1\]"):
            decoder.decode(torch.zeros(shape, dtype=torch.int64), active)
    with pytest.raises(ValueError, match=r"active must be bool \[2\]"):
        decoder.decode(torch.zeros(2, books, 1, dtype=torch.int64), torch.ones(2))
    with pytest.raises(ValueError, match="NaN or infinite"):
        codec.encode(torch.full((1, 1, 2000), torch.nan))
    assert decoder.finish(0).shape == (0,)
