"""Long texts: where they are divided, and that each part has the parts before as context."""

from __future__ import annotations

import pytest
import torch

from csm.inference.long_text import speak_long, split_text
from csm.inference.segments import Segment
from tests.inference.toys import toy_generator
from tests.tiny import K


def test_sentences_are_kept_whole_and_joined_up_to_the_limit():
    text = "Dr. Smith paid $3.50. Really? Yes!  He did.\n\nA new paragraph begins here."
    assert split_text(text, longest=30) == [
        "Dr. Smith paid $3.50. Really?",
        "Yes! He did.",
        "A new paragraph begins here.",
    ]
    assert split_text(text, longest=21)[:2] == ["Dr. Smith paid $3.50.", "Really? Yes! He did."]
    assert split_text(text, longest=21)[2:] == ["A new paragraph", "begins here."]
    assert split_text(" \n ") == []


def test_long_sentences_are_divided_between_words():
    sentence = " ".join(f"word{number}" for number in range(60)) + "."
    parts = split_text(sentence, longest=100)
    assert " ".join(parts) == sentence and all(len(part) <= 100 for part in parts) and len(parts) == 5
    assert split_text("a" * 300, longest=100) == ["a" * 300]


def test_parts_have_the_voice_and_the_parts_before_as_context():
    generator = toy_generator()
    voice = Segment(1, "v", codes=torch.ones(K, 3, dtype=torch.int64))
    options = {"max_audio_length_ms": 400, "topk": 5}
    text = "One two. Three four. Five six. Seven eight."
    spoken = list(speak_long(generator, text, 1, [voice], longest=21, seed=4, **options))
    assert [part.text for part in spoken] == ["One two. Three four.", "Five six.", "Seven eight."]
    before = [voice]
    for number, part in enumerate(spoken):
        alone = generator.generate_segment(part.text, 1, before, seed=4 + number, **options)
        assert torch.equal(alone.codes, part.codes)
        before.append(part.segment)
    with pytest.raises(ValueError, match="the text is empty"):
        speak_long(generator, "", 1)
