"""Turns built while a transcript is read: numbering, and words with times put together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from data_prep.records import GivenTurn

MERGE_GAP = 1.0
"""Words of one speaker separated by a shorter pause, in seconds, form one turn (as `turns.merge_gap_seconds`)."""

MAX_TURN = 30.0
"""A turn of words ends at the first pause between sentences once it is so long, in seconds."""


@dataclass
class SaidWord:
    """A word of a transcript, with the time at which it is said."""

    text: str
    start: float
    end: float
    speaker: str
    channel: int | None = None


def numbered(turns: list[GivenTurn]) -> list[GivenTurn]:
    """Turns by start, each numbered by its place in the file; a turn that is listed twice counts once."""
    kept: list[GivenTurn] = []
    seen: set[tuple[object, ...]] = set()
    for number, turn in enumerate(turns):
        key = (turn.speaker, turn.start, turn.end, turn.text, turn.channel)
        if key not in seen:
            seen.add(key)
            kept.append(replace(turn, number=number))
    return sorted(kept, key=lambda turn: turn.start)


def turns_of_words(words: list[SaidWord]) -> list[GivenTurn]:
    """Consecutive words of a speaker become one turn, up to a pause of `MERGE_GAP` or another speaker's word."""
    turns: list[GivenTurn] = []
    for word in sorted(words, key=lambda word: word.start):
        last = turns[-1] if turns else None
        if last is not None and (last.speaker, last.channel) == (word.speaker, word.channel) and last.end is not None:
            long = last.end - last.start >= MAX_TURN and (last.text or "").endswith((".", "?", "!"))
            if word.start - last.end < MERGE_GAP and not long:
                last.text, last.end = f"{last.text} {word.text}", max(last.end, word.end)
                continue
        turns.append(GivenTurn(0, word.speaker, word.start, word.end, word.text, word.channel))
    return numbered(turns)
