"""Streamed speech equals speech returned whole; listeners that leave free their places."""

from __future__ import annotations

import gc
import math

import pytest
import torch

from csm.codec import SpectralCodec
from csm.inference.generator import Generator, SpeechRequest
from csm.inference.segments import Segment
from csm.model.csm import CSM
from tests.inference.toys import ToyTokenizer, toy_generator
from tests.tiny import CODEBOOK_SIZE, K, tiny_config, tiny_model

TURN = {"max_audio_length_ms": 1600, "seed": 3}


def test_chunks_are_the_audio_of_generate():
    generator = toy_generator()
    whole = generator.generate("hello", 1, [], **TURN)
    chunks = list(generator.stream("hello", 1, [], **TURN, first_chunk_frames=1, chunk_frames=4))
    assert torch.equal(torch.cat(chunks), whole)
    assert [len(chunk) // 4 for chunk in chunks] == [1, 2, 4, 4, 4, 4, 1]
    assert all(chunk.dtype == torch.float32 for chunk in chunks)


def test_listeners_of_several_streams_hear_what_they_would_alone():
    generator = toy_generator(slots=2)
    texts = ["one", "two", "three", "four", "five"]
    alone = [generator.generate(text, 0, [], **TURN) for text in texts]
    streams = [generator.stream(text, 0, [], **TURN) for text in texts]
    heard: list[list[torch.Tensor]] = [[] for _ in streams]
    running = dict(enumerate(streams))
    while running:
        for number, stream in list(running.items()):
            chunk = next(stream, None)
            if chunk is None:
                del running[number]
            else:
                heard[number].append(chunk)
    for chunks, expected in zip(heard, alone, strict=True):
        assert torch.equal(torch.cat(chunks), expected)


@pytest.mark.parametrize("leave", ["close", "drop"])
def test_a_listener_who_leaves_frees_the_slot(leave):
    generator = toy_generator(slots=1)
    expected = generator.generate("next", 1, [], **TURN)
    stream = generator.stream("hello", 1, [], **TURN)
    next(stream)
    request = stream.request
    gc.disable()
    try:
        if leave == "close":
            stream.close()
        del stream
        assert request.finished == "cancelled" and generator.engine.slots == [None]
        assert generator.streams.listeners == [] and generator.streams.free == [0]
    finally:
        gc.enable()
    assert torch.equal(torch.cat(list(generator.stream("next", 1, [], **TURN))), expected)


def test_a_stream_that_nobody_reads_is_not_spoken():
    generator = toy_generator()
    stream = generator.stream("hello", 1, [], **TURN)
    assert not generator.engine.waiting and stream.request.frames == []
    with pytest.raises(ValueError, match="first_chunk_frames=3 and chunk_frames=2"):
        generator.stream("hello", 1, [], first_chunk_frames=3, chunk_frames=2)
    with pytest.raises(ValueError, match="is too long"):
        generator.stream("hello" * 99, 1, [])


@pytest.mark.slow
def test_a_codec_whose_audio_lags_behind_gives_whole_frames():
    """The spectral codec's decoder has a delay; a cancelled stream leaves none of its sound to the next."""
    noise = torch.randn(60_000, generator=torch.Generator().manual_seed(0))
    tone = torch.sin(torch.arange(60_000) * 2 * math.pi * 220 / 24_000)
    codec = SpectralCodec.fit([noise * 0.1 + tone * 0.5], num_codebooks=K, codebook_size=CODEBOOK_SIZE)
    generator = Generator(tiny_model(), codec, ToyTokenizer(), slots=1)
    frames = generator.generate_batch([SpeechRequest("hello", 0, (), **TURN)])[0].frames
    first = list(generator.stream("hello", 0, [], **TURN))
    assert sum(map(len, first)) == frames * codec.samples_per_frame
    left = generator.stream("other", 0, [], **TURN)
    next(left), next(left), left.close()
    assert torch.equal(torch.cat(list(generator.stream("hello", 0, [], **TURN))), torch.cat(first))


@pytest.mark.slow
def test_streams_of_mimi_in_its_full_size_are_its_offline_audio(mimi_weights):
    """Three listeners of two slots, so that a slot is heard from twice, with a context that is spoken audio."""
    from csm.codec.mimi import MimiCodec

    codec = MimiCodec.load(mimi_weights, num_codebooks=8)
    config = tiny_config(codebooks=8)
    config.codebook_size = codec.codebook_size
    torch.manual_seed(0)
    config.initializer_std = 0.3
    generator = Generator(CSM(config), codec, ToyTokenizer(), slots=2)
    voice = Segment(1, "voice", audio=0.1 * torch.randn(24_000, generator=torch.Generator().manual_seed(0)))
    turns = [SpeechRequest(text, 0, (voice,), 1600, seed=number) for number, text in enumerate(("one", "two", "three"))]
    whole = generator.generate_batch(turns)
    streams = [generator.stream(turn.text, 0, turn.context, 1600, seed=turn.seed) for turn in turns]
    heard: list[list[torch.Tensor]] = [[] for _ in turns]
    running = dict(enumerate(streams))
    while running:
        for number, stream in list(running.items()):
            chunk = next(stream, None)
            if chunk is None:
                del running[number]
            else:
                heard[number].append(chunk)
    for chunks, turn in zip(heard, whole, strict=True):
        assert turn.frames == 20 and turn.audio.std() > 1e-3
        torch.testing.assert_close(torch.cat(chunks), turn.audio, atol=1e-5, rtol=0)
