"""Words as recognised -> words where they are heard, with the one who says them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from data_prep.records import Clip, Span, SpeakerSpan, Word

STRETCH_SECONDS = 1.0
"""The first and last word of a stretch of speech reach to its ends if they are no further away. Recognisers are vague
about times, and what lies beyond the last word is most often its end; more than this is speech that was not
understood."""


@dataclass
class SpokenWord:
    """A word, who says it, and the clip that it was recognised in."""

    word: Word
    speaker: str
    clip: Clip


def aligned(words: Sequence[Word], spans: Sequence[Span]) -> list[Word]:
    """Words of a track, by time, moved into its spans of speech (at least one), by start.

    A word belongs to the span that it overlaps most, or else to the nearest. Inside a span, words end where the next
    one starts at the latest.
    """
    found: list[Word] = []
    homes: list[int] = []
    at = 0
    for word in words:
        at = _home(word, spans, at)
        span = spans[at]
        earliest = found[-1].end if homes and homes[-1] == at else span.start
        start = min(max(word.start, earliest), span.end)
        found.append(replace(word, start=start, end=min(max(word.end, start), span.end)))
        homes.append(at)
    for i, (word, home) in enumerate(zip(found, homes, strict=True)):
        span = spans[home]
        if (i == 0 or homes[i - 1] != home) and word.start - span.start <= STRETCH_SECONDS:
            word.start = span.start
        if (i + 1 == len(found) or homes[i + 1] != home) and span.end - word.end <= STRETCH_SECONDS:
            word.end = span.end
    return found


def _home(word: Word, spans: Sequence[Span], first: int) -> int:
    """Index of the span of a word, not before `first`."""
    best, best_nearness = first, _nearness(word, spans[first])
    for index in range(first + 1, len(spans)):
        nearness = _nearness(word, spans[index])
        if nearness > best_nearness:
            best, best_nearness = index, nearness
        if spans[index].start > word.end:
            break
    return best


def speakers_of(words: Sequence[Word], spans: Sequence[SpeakerSpan]) -> list[str]:
    """Who says each of a track's words, by time: the one whose span (by start) overlaps it most, or is nearest."""
    found: list[str] = []
    first = 0
    for word in words:
        while first + 1 < len(spans) and spans[first].end <= word.start and spans[first + 1].start <= word.start:
            first += 1
        best = spans[first]
        for span in spans[first + 1 :]:
            if _nearness(word, span) > _nearness(word, best):
                best = span
            if span.start > word.end:
                break
        found.append(best.speaker)
    return found


def _nearness(word: Word, span: Span | SpeakerSpan) -> float:
    """Seconds in common; negative: seconds between the two."""
    return min(word.end, span.end) - max(word.start, span.start)
