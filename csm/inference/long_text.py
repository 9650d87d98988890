"""Texts that are longer than a turn, spoken sentence by sentence with the sentences before as context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sentencex

from csm.inference.conversation import Conversation
from csm.inference.generator import Generator
from csm.inference.segments import GeneratedSegment, Segment

LONGEST_PART = 250
"""Characters of text that are spoken as one turn, about 15 s: as long as turns of conversations are."""


def split_text(text: str, language: str = "en", longest: int = LONGEST_PART) -> list[str]:
    """Parts of at most `longest` characters: whole sentences, several where they are short.

    A longer sentence is divided between words; a longer word is not divided. language: a code such as "en", for the
    rules by which sentences end (the sentencex library).
    """
    parts: list[str] = []
    for paragraph in filter(None, map(str.strip, text.splitlines())):
        begin = len(parts)
        for sentence in sentencex.segment(language, paragraph):
            for piece in _divide(sentence.strip(), longest):
                if len(parts) > begin and len(parts[-1]) + 1 + len(piece) <= longest:
                    parts[-1] += " " + piece
                else:
                    parts.append(piece)
    return parts


def _divide(sentence: str, longest: int) -> list[str]:
    """A sentence in the smallest number of pieces, of about the same length."""
    if not sentence:
        return []
    size, pieces = len(sentence) / -(-len(sentence) // longest), [""]
    for word in sentence.split():
        joined = f"{pieces[-1]} {word}".strip()
        if pieces[-1] and (len(joined) > longest or len(pieces[-1]) >= size):
            pieces.append(word)
        else:
            pieces[-1] = joined
    return pieces


def speak_long(
    generator: Generator,
    text: str,
    speaker: int,
    context: Sequence[Segment] = (),
    language: str = "en",
    longest: int = LONGEST_PART,
    seed: int | None = None,
    **options: Any,
) -> Iterator[GeneratedSegment]:
    """Speaks a text of any length, part by part; the audio of the whole is the audios of the parts, one after another.

    language, longest: see `split_text`
    context: stays for all parts, such as a recording of the voice; of the parts, the last ones that fit are context
    seed:    of the first part; the following ones have the following numbers
    options: fields of `SpeechRequest` for every part
    Raises what `Conversation.say` raises, and ValueError for an empty text, before anything is spoken.
    """
    parts = split_text(text, language, longest)
    if not parts:
        raise ValueError("the text is empty; give something to be said")
    conversation = Conversation(generator, context, **options)

    def speak() -> Iterator[GeneratedSegment]:
        for number, part in enumerate(parts):
            yield conversation.say(part, speaker, seed=None if seed is None else seed + number)

    return speak()
