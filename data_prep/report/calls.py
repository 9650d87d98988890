"""Measures of calls, whose sides have a channel each: speech and words that are on both channels at once."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import Any

from data_prep.records import Span
from data_prep.speech.text_checks import words
from data_prep.speech.words import united

AT_ONCE_SECONDS = 1.0
"""Furthest that equal words of both sides begin from each other to count as the same one: echoes are delayed."""


def speech_of_call(turns: list[dict[str, Any]]) -> tuple[float, float]:
    """Seconds in which somebody speaks, and in which two channels do; 0 for a conversation on one track."""
    channels = _channels(turns)
    if len(channels) < 2:
        return 0.0, 0.0
    spans = [united(Span(turn["start"], turn["end"]) for turn in of_channel) for of_channel in channels]
    each = sum(span.end - span.start for of_channel in spans for span in of_channel)
    any_of_them = sum(span.end - span.start for span in united(span for some in spans for span in some))
    return any_of_them, each - any_of_them


def words_of_call(turns: list[dict[str, Any]]) -> tuple[int, int]:
    """Recognized words, and those that another channel holds at the same time; 0 for a conversation on one track."""
    channels = _channels(turns)
    if len(channels) < 2:
        return 0, 0
    starts = [_starts_of_words(of_channel) for of_channel in channels]
    total = twice = 0
    for number, of_channel in enumerate(starts):
        others = [other for index, other in enumerate(starts) if index != number]
        for word, times in of_channel.items():
            total += len(times)
            twice += sum(any(_is_near(time, other.get(word, [])) for other in others) for time in times)
    return total, twice


def _channels(turns: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The turns of each channel."""
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for turn in turns:
        if turn["channel"] is not None:
            found[turn["channel"]].append(turn)
    return list(found.values())


def _starts_of_words(turns: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Sorted times at which each word begins."""
    found: dict[str, list[float]] = defaultdict(list)
    for text, start, _, _ in (word for turn in turns for word in turn["words"] or []):
        found["".join(words(text))].append(start)
    return {word: sorted(times) for word, times in found.items() if word}


def _is_near(time: float, others: list[float]) -> bool:
    first = bisect_left(others, time - AT_ONCE_SECONDS)
    return first < len(others) and others[first] <= time + AT_ONCE_SECONDS
