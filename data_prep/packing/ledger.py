"""The ledger: the outcome of every millisecond of audio. Hours in = hours kept + hours lost, by stage and reason."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

from data_prep.reasons import Reason
from data_prep.records import UNKNOWN_LANGUAGE, LedgerRow, Recording, Rejection, Speech, Turns

Account = tuple[str, str]
"""The outcome of a millisecond: stage and reason of its loss, or `KEPT`."""

KEPT: Account = ("kept", "")
NO_WORDS: Account = ("transcribe", Reason.no_words.value)
NO_SPEECH: Account = ("vad", Reason.no_speech.value)


def account(
    recording: Recording,
    speech: Speech | None,
    turns: Turns | None,
    rejections: Mapping[int, Rejection | None],
    rejected: Rejection | None,
) -> list[LedgerRow]:
    """Returns the rows of a recording, by stage and reason; they add up to round(seconds * 1000) for each track.

    Every millisecond of a track counts once: as kept if a kept turn covers it, else for the first rejected turn that
    covers it, else as speech without words if it is speech, else as no speech. Time outside the recording, or on a
    channel that it does not have, does not count.

    Args:
        speech: None if stage `vad` did not run; all time outside turns then counts as no speech.
        turns: None if stage `turns` did not run.
        rejections: of every turn in `turns`, by number; None: the turn is kept.
        rejected: of the whole recording, which is then one row.
    """
    tracks = tracks_of(recording, speech, turns)
    length = round(recording.seconds * 1000)
    booked: Counter[Account] = Counter()
    if rejected is not None:
        booked[_account(rejected)] = length * len(tracks)
    else:
        for track in tracks:
            spans = [
                (
                    (int(rejections[turn.number] is not None), turn.number),
                    _account(rejections[turn.number]),
                    turn.start,
                    turn.end,
                )
                for turn in (turns.turns if turns is not None else [])
                if turn.channel == track
            ]
            for found in speech.tracks if speech is not None else []:
                if found.channel == track:
                    spans += [((2, 0), NO_WORDS, span.start, span.end) for span in found.spans]
            spans.append(((3, 0), NO_SPEECH, 0.0, recording.seconds))
            booked.update(_cover(spans, length))
    assert booked.total() == length * len(tracks), f"{recording.id}: {booked} do not add up"
    lang = _language(recording, turns)
    return [
        LedgerRow(recording.source, lang, recording.id, stage, reason, ms)
        for (stage, reason), ms in sorted(booked.items())
        if ms
    ]


def tracks_of(recording: Recording, speech: Speech | None, turns: Turns | None) -> list[int | None]:
    """Tracks of a recording: the channels (None: their mean) with detected speech or turns.

    Only the mean if there are neither. Channels that the recording does not have are not tracks.
    """
    named = {track.channel for track in speech.tracks} if speech is not None else set()
    named |= {turn.channel for turn in recording.turns or []}
    named |= {turn.channel for turn in turns.turns} if turns is not None else set()
    tracks = [channel for channel in named if channel is None or 0 <= channel < recording.channels]
    return sorted(tracks, key=lambda channel: -1 if channel is None else channel) or [None]


def _account(rejection: Rejection | None) -> Account:
    return KEPT if rejection is None else (rejection.stage, rejection.reason.value)


def _cover(spans: list[tuple[tuple[int, int], Account, float, float]], length: int) -> Counter[Account]:
    """Milliseconds of 0..length by account. Spans are (rank, account, start, end) in s; the lowest rank counts."""
    cut = [
        (max(0, round(start * 1000)), rank, min(length, round(end * 1000)), account)
        for rank, account, start, end in spans
    ]
    waiting = sorted((span for span in cut if span[0] < span[2]), reverse=True)
    edges = sorted({edge for start, _, end, _ in waiting for edge in (start, end)})
    covered: Counter[Account] = Counter()
    active: list[tuple[tuple[int, int], int, Account]] = []  # heap by rank; ended spans are removed at the top
    for edge, following in pairwise(edges):
        while waiting and waiting[-1][0] == edge:
            _, rank, end, account = waiting.pop()
            heapq.heappush(active, (rank, end, account))
        while active and active[0][1] <= edge:
            heapq.heappop(active)
        if active:
            covered[active[0][2]] += following - edge
    return covered


def _language(recording: Recording, turns: Turns | None) -> str:
    """The given language of the recording, or the one spoken longest in it."""
    if recording.lang is not None:
        return recording.lang
    spoken: Counter[str] = Counter()
    for turn in turns.turns if turns is not None else []:
        if turn.lang is not None:
            spoken[turn.lang] += round((turn.end - turn.start) * 1000)
    return min(spoken, key=lambda lang: (-spoken[lang], lang), default=UNKNOWN_LANGUAGE)
