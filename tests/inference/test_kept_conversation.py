"""A conversation with its kept cache says what a fresh prompt of its turns says."""

from __future__ import annotations

import pytest
import torch

from csm.inference.conversation import Conversation
from csm.inference.segments import Segment
from tests.inference.toys import toy_generator
from tests.tiny import CODEBOOK_SIZE, K

OPTIONS = {"max_audio_length_ms": 800, "temperature": 0.9, "topk": 5}


def heard(seed: int, frames: int = 5, speaker: int = 1) -> Segment:
    codes = torch.randint(1, CODEBOOK_SIZE, (K, frames), generator=torch.Generator().manual_seed(seed))
    return Segment(speaker, f"heard {seed}", codes=codes)


@pytest.mark.parametrize("num_codebooks", [K, 3])
def test_kept_cache_equals_a_fresh_prompt(num_codebooks):
    generator = toy_generator(num_codebooks=num_codebooks)
    conversation = Conversation(generator, [heard(0, speaker=0)], **OPTIONS)
    segments = [heard(0, speaker=0)]
    for number, text in enumerate(("hello", "yes", "no")):
        expected = generator.generate_segment(text, 0, segments, seed=number, **OPTIONS)
        assert (conversation._cached is not None) == (number > 0)
        said = conversation.say(text, 0, seed=number)
        assert torch.equal(said.codes, expected.codes) and said.finish_reason == expected.finish_reason
        assert torch.equal(said.audio, expected.audio)
        segments.append(said.segment)
        if number == 1:
            conversation.hear(heard(1))
            segments.append(heard(1))


@pytest.mark.slow
def test_dropped_turns_leave_what_a_fresh_prompt_without_them_says():
    generator = toy_generator()  # 160 positions
    voice = heard(0, speaker=0)
    conversation = Conversation(generator, [voice], **OPTIONS)
    turns, dropped = [], 0
    for number in range(12):
        before = len(conversation.turns)
        said = conversation.say(f"turn {number}", number % 2, seed=number)
        kept = len(conversation.turns) - 2  # without the voice and the new turn
        dropped += before - 1 - kept
        context = [voice, *turns[len(turns) - kept :]]
        expected = generator.generate_segment(f"turn {number}", number % 2, context, seed=number, **OPTIONS)
        assert torch.equal(said.codes, expected.codes)
        turns.append(said.segment)
    assert dropped > 3 and conversation.turns[0].pinned


def test_what_has_no_room_is_refused():
    generator = toy_generator()
    conversation = Conversation(generator, overflow="error", **OPTIONS)
    for number in range(4):
        conversation.say(f"turn {number}", 0, seed=number)
    turns = len(conversation.turns)
    with pytest.raises(ValueError, match=r"holds \d+ positions and the next turn needs \d+ of the model's 160"):
        for number in range(9):
            conversation.say("and so on", 0, seed=number)
    assert turns <= len(conversation.turns) < turns + 9
    long_voice = Conversation(generator, [heard(1, frames=150)], **OPTIONS)
    with pytest.raises(ValueError, match=r"the voices take \d+ positions"):
        long_voice.say("hello", 0)
    with pytest.raises(ValueError, match="the text is empty"):
        conversation.say("  ", 0)
    with pytest.raises(ValueError, match="neither audio nor codes"):
        conversation.hear(Segment(0, "x"))


def test_a_streamed_turn_is_part_of_the_conversation():
    generator = toy_generator()
    whole, streamed = (Conversation(generator, **OPTIONS) for _ in range(2))
    first = whole.say("hello", 0, seed=1)
    assert torch.equal(torch.cat(list(streamed.stream("hello", 0, seed=1))), first.audio)
    assert torch.equal(streamed.say("yes", 1, seed=2).codes, whole.say("yes", 1, seed=2).codes)


def test_an_interrupted_turn_stays_as_far_as_it_was_spoken():
    generator = toy_generator()
    conversation = Conversation(generator, **OPTIONS)
    stream = conversation.stream("hello there", 0, seed=1, first_chunk_frames=2)
    next(stream)
    conversation.hear(heard(3))  # the one who interrupts is heard before the turn ends
    stream.close()
    assert len(conversation.turns) == 2
    spoken = Segment(0, "hello there", codes=torch.tensor(stream.request.frames).T)
    assert 2 <= spoken.codes.shape[1] < 10
    expected = generator.generate_segment("sorry", 0, [spoken, heard(3)], seed=2, **OPTIONS)
    assert torch.equal(conversation.say("sorry", 0, seed=2).codes, expected.codes)


def test_a_recording_is_encoded_once():
    generator = toy_generator()
    voice = Segment(0, "my voice", audio=torch.linspace(-1, 1, 30))
    first = generator.generate_segment("hello", 0, [voice], seed=1, **OPTIONS)
    calls = generator.codec.encoded
    same = Segment(0, "my voice", audio=torch.linspace(-1, 1, 30).double())
    again = generator.generate_segment("hello", 0, [same], seed=1, **OPTIONS)
    assert torch.equal(first.codes, again.codes) and generator.codec.encoded == calls
    generator.generate_segment("hello", 0, [Segment(0, "my voice", audio=torch.zeros(30))], **OPTIONS)
    assert generator.codec.encoded == calls + 1
