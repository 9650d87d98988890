"""Step-by-step cached generation against the training forward, sampling rules, and the generator's errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csm.codec import SpectralCodec
from csm.frames import TurnTokens, conversation_frames
from csm.inference.generator import Generator, SpeechRequest
from csm.inference.guards import Guards, silent_codes
from csm.inference.segments import Segment
from csm.model.csm import CSM
from tests.inference.toys import ToyCodec, ToyTokenizer, toy_generator
from tests.tiny import CODEBOOK_SIZE, K, tiny_config, tiny_model


@pytest.fixture
def generator():
    return toy_generator()


def prompt():
    turns = [
        TurnTokens([1, 2, 3], torch.randint(1, CODEBOOK_SIZE, (K, 6), generator=torch.Generator().manual_seed(0))),
        TurnTokens([7, 8, 9, 10], None),
    ]
    return conversation_frames(turns, K)


@torch.no_grad()
def uncached_greedy(model: CSM, tokens, mask, steps: int) -> torch.Tensor:
    """Greedy generation by running the training forward from the beginning for every single code."""
    codes = []
    for _ in range(steps):
        positions = torch.arange(tokens.shape[0])[None]
        state = model.backbone_states(tokens[None], mask[None], positions)[:, -1]
        frame = torch.zeros(1, K, dtype=torch.int64)
        frame[0, 0] = model.codebook0_head(state)[0, :CODEBOOK_SIZE].argmax()
        for codebook in range(1, K):
            frame[0, codebook] = model.decoder_logits(state, frame[:, :-1])[codebook - 1, 0, :CODEBOOK_SIZE].argmax()
        codes.append(frame[0])
        tokens = torch.cat((tokens, torch.cat((frame, torch.zeros(1, 1, dtype=torch.int64)), dim=1)))
        mask = torch.cat((mask, torch.tensor([[True] * K + [False]])))
    return torch.stack(codes, dim=1)


def test_cached_generation_equals_recomputation(generator):
    frames = prompt()
    codes = generator.generate_codes(frames.tokens, frames.mask, max_frames=40, temperature=0)
    assert torch.equal(codes, uncached_greedy(generator.model, frames.tokens, frames.mask, codes.shape[1]))
    assert codes.shape == (K, 40)


def test_generation_stops_at_the_all_zero_frame():
    """Heads biased to code 0 through the weights: the first frame is end of speech."""
    model = tiny_model()
    with torch.no_grad():
        for parameter in (model.codebook0_head.weight, model.audio_head):
            parameter.zero_()  # all logits equal: argmax takes code 0
    generator = Generator(model, ToyCodec(), ToyTokenizer())
    frames = prompt()
    codes = generator.generate_codes(frames.tokens, frames.mask, 10, temperature=0)
    assert codes.shape == (K, 0)
    result = generator.generate_segment("hi", 0, [], max_audio_length_ms=800, temperature=0)
    assert result.frames == 0 and result.audio.shape == (0,) and result.finish_reason == "stop"


def test_limit_is_reported(generator):
    result = generator.generate_segment("hi", 0, [], max_audio_length_ms=800, temperature=0)
    assert result.frames == 10 and result.finish_reason == "length"
    assert result.segment.audio.shape == (40,) and result.segment.codes.shape == (K, 10)


def test_seed_reproduces_and_differs(generator):
    frames = prompt()
    first = generator.generate_codes(frames.tokens, frames.mask, 12, seed=5)
    torch.manual_seed(99)  # the global generator does not matter
    again = generator.generate_codes(frames.tokens, frames.mask, 12, seed=5)
    other = generator.generate_codes(frames.tokens, frames.mask, 12, seed=6)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_codes_in_context_equal_the_same_audio(generator):
    audio = torch.zeros(14)
    by_audio = generator.generate("abc", 1, [Segment(0, "x", audio=audio)], 800, seed=1)
    codes = generator.codec.encode(audio[None, None])[0]
    by_codes = generator.generate("abc", 1, [Segment(0, "x", codes=codes)], 800, seed=1)
    assert torch.equal(by_audio, by_codes) and by_audio.ndim == 1 and by_audio.dtype == torch.float32


def test_prompt_that_leaves_no_room_is_refused(generator):
    with pytest.raises(ValueError, match=r"prompt of 6 positions is too long.*160 - 154 = 6"):
        generator.generate("abc", 1, [], max_audio_length_ms=154 * 80)
    assert generator.generate("abc", 1, [], max_audio_length_ms=153 * 80, temperature=0).numel() > 0


def test_bad_context_is_refused(generator):
    with pytest.raises(ValueError, match="neither audio nor codes"):
        generator.generate("a", 0, [Segment(0, "x")], 800)
    with pytest.raises(ValueError, match="mono"):
        generator.generate("a", 0, [Segment(0, "x", audio=torch.zeros(2, 9))], 800)
    other = ToyCodec()
    other.num_codebooks = K + 1
    with pytest.raises(ValueError, match="use the codec it was trained with"):
        Generator(CSM(tiny_config()), other, ToyTokenizer())


@pytest.mark.parametrize(
    ("segment", "reason"),
    [
        (Segment(0, "x", audio=torch.zeros(9, dtype=torch.int16)), r"its samples are torch\.int16"),
        (Segment(0, "x", audio=torch.tensor([0.0, float("nan")])), "its audio has NaN or infinite samples"),
        (Segment(0, "x", audio=torch.full((9,), 12_000.0)), r"its samples reach 12000; scale them to \[-1, 1\]"),
        (Segment(0, "x", codes=torch.zeros(K + 1, 4, dtype=torch.int64)), rf"its codes must be integers \[{K}, T\]"),
        (Segment(0, "x", codes=torch.zeros(K, 4)), rf"its codes must be integers \[{K}, T\]"),
        (Segment(0, "x", codes=torch.full((K, 4), CODEBOOK_SIZE)), f"its codes must lie in 0..{CODEBOOK_SIZE - 1}"),
        (Segment(0, "x", codes=torch.full((K, 4), -1)), f"its codes must lie in 0..{CODEBOOK_SIZE - 1}"),
        (Segment(-1, "x", audio=torch.zeros(9)), "speaker=-1: speakers are numbered from 0"),
    ],
)
def test_context_segments_are_checked_and_named(generator, segment, reason):
    good = Segment(0, "y", audio=torch.zeros(9))
    with pytest.raises(ValueError, match=rf"context segment 1 \('x'\): {reason}"):
        generator.generate("a", 0, [good, segment], 800)


def test_context_audio_may_be_an_array_or_empty(generator):
    array, tensor = (Segment(0, "x", audio=audio) for audio in (np.full(9, 0.5), torch.full((9,), 0.5)))
    spoken = [generator.generate("a", 1, [segment], 800, seed=1) for segment in (array, tensor)]
    assert torch.equal(*spoken)
    # `generate` and `generate_segment` return these for a turn in which nothing is said.
    empty = Segment(0, "x", audio=torch.zeros(0)), Segment(0, "x", codes=torch.zeros(K, 0, dtype=torch.int64))
    assert torch.equal(*(generator.generate("a", 1, [segment], 800, seed=1) for segment in empty))


def test_every_whole_number_of_frames_is_reached(generator):
    """80 ms a frame; as milliseconds, and as seconds that were multiplied."""
    for frames in range(1, 2049):
        assert generator.max_frames(80 * frames) == frames
        assert generator.max_frames(1000 * (0.08 * frames)) == frames
    assert (generator.max_frames(2399.9), generator.max_frames(159)) == (29, 1)
    result = generator.generate_segment("Hi.", 0, [], max_audio_length_ms=2320, temperature=0)
    assert (result.frames, result.finish_reason) == (29, "length")


@pytest.mark.parametrize("limit", [79, 0, -5, float("inf"), float("nan")])
def test_limits_that_hold_no_frame_or_no_end_are_refused(generator, limit):
    with pytest.raises(
        ValueError, match=r"max_audio_length_ms=\S+: must be a finite number of at least one frame, 80 ms"
    ):
        generator.generate("a", 0, [], max_audio_length_ms=limit)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"temperature": -1.0}, r"temperature=-1\.0: must be a finite number from 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"topk": -1}, "topk=-1: must be a number of codes, or 0"),
        ({"seed": 2**64}, "must fit into 64 bits"),
    ],
)
def test_sampling_options_out_of_range_are_refused(generator, options, reason):
    with pytest.raises(ValueError, match=reason):
        generator.generate("a", 0, [], 800, **options)
    frames = prompt()
    with pytest.raises(ValueError, match=reason):
        generator.generate_codes(frames.tokens, frames.mask, 3, **options)


def test_a_batch_is_its_turns_alone():
    generator = toy_generator(slots=3)
    context = [Segment(0, "x", audio=torch.zeros(9))]
    turns = [SpeechRequest(f"text {n}", n % 2, context, 80 * (3 + n), seed=n) for n in range(7)]
    together = generator.generate_batch(turns)
    for turn, result in zip(turns, together, strict=True):
        alone = generator.generate_segment(turn.text, turn.speaker, context, turn.max_audio_length_ms, seed=turn.seed)
        assert torch.equal(alone.codes, result.codes) and torch.equal(alone.audio, result.audio)
    bad = [*turns[:2], SpeechRequest("x", 0, [Segment(1, "y")])]
    with pytest.raises(ValueError, match=r"turn 2: context segment 0 \('y'\): it has neither audio nor codes"):
        generator.generate_batch(bad)
    assert not generator.engine.waiting


def test_fewer_codebooks_are_decoded_and_read_as_context():
    generator = toy_generator(num_codebooks=2)
    result = generator.generate_segment("hello", 0, [Segment(0, "x", audio=torch.zeros(9))], 800, temperature=0)
    assert result.codes.shape == (2, 10) and result.audio.shape == (40,)
    context = [result.segment, Segment(1, "y", codes=torch.ones(K, 3, dtype=torch.int64))]
    assert generator.generate_segment("again", 1, context, 800, temperature=0).frames == 10


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_is_refused(generator, text):
    with pytest.raises(ValueError, match="the text is empty"):
        generator.generate(text, 0, [], 800)


def test_a_text_longer_than_the_model_is_refused(generator):
    with pytest.raises(ValueError, match=r"prompt of 303 positions is too long.*a shorter text"):
        generator.generate("a" * 300, 0, [], 800)


def test_audio_of_another_rate_is_refused(generator):
    with pytest.raises(ValueError, match=r"context segment 0 \('x'\): its audio is at 16000 Hz, the codec reads 50 Hz"):
        generator.generate("a", 0, [Segment(0, "x", audio=torch.zeros(9), sample_rate=16_000)], 800)
    generator.generate("a", 0, [Segment(0, "x", audio=torch.zeros(9), sample_rate=50)], 800)


def test_runaway_speech_is_ended_unless_guards_are_off():
    """A model that says the same frame for ever: code 4 or 5 in codebook 1, which sees nothing but code 0 before it."""
    model = tiny_model()
    with torch.no_grad():
        model.codebook0_head.weight.zero_()
        for block in model.decoder.blocks():
            block.attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.audio_head.zero_()
        model.audio_head[0, :, 4], model.audio_head[0, :, 5] = 1.0, -1.0
    generator = Generator(model, ToyCodec(), ToyTokenizer())
    options = {"max_audio_length_ms": 8000, "temperature": 0}
    ended = generator.generate_segment("hi", 0, [], **options)
    assert (ended.frames, ended.finish_reason) == (25, "repetition")
    no_guard = Guards(repetition_seconds=None, silence_seconds=None)
    ended = generator.generate_segment("hi", 0, [], **options, guards=no_guard)
    assert (ended.frames, ended.finish_reason) == (55, "length")  # 4 s and 0.2 s for each of two letters
    ended = generator.generate_segment("hi", 0, [], **options, guards=Guards.off())
    assert (ended.frames, ended.finish_reason) == (100, "length")


def test_silence_is_known_by_the_codec():
    noise = torch.randn(60_000, generator=torch.Generator().manual_seed(0))
    codec = SpectralCodec.fit([0.1 * noise], num_codebooks=K, codebook_size=CODEBOOK_SIZE)
    silent = silent_codes(codec)
    assert silent and len(silent) < CODEBOOK_SIZE
    assert codec.encode(torch.zeros(1, 1, 9000))[0, 0, 1].item() in silent
