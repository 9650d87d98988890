"""Grouping of spoken words into turns, and backchannels into events."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import groupby

from data_prep.config import TurnsConfig
from data_prep.speech.words import SENTENCE_END, SpokenWord

SENTENCE_BONUS = 0.5
"""A long turn is divided at its longest pause; a pause after a sentence counts as this many seconds longer."""

Group = list[SpokenWord]


def start_of(group: Group) -> float:
    return group[0].word.start


def end_of(group: Group) -> float:
    return group[-1].word.end


def grouped(words: Sequence[SpokenWord], cfg: TurnsConfig) -> tuple[list[Group], list[Group]]:
    """Groups for turns and groups for events (backchannels), each by start.

    A turn holds the words of one speaker with pauses shorter than `merge_gap_seconds`. Another speaker's words on
    the same track during such a pause divide it, unless they are a backchannel: at most `backchannel_words` words in
    at most `backchannel_seconds`, within the other's turn. Turns longer than `max_seconds` are divided.
    """
    runs = _runs(words, cfg.merge_gap_seconds)
    events = _backchannels(runs, cfg)
    dropped = {id(run) for run in events}
    turns = [run for run in runs if id(run) not in dropped]
    pieces = [piece for group in _divided_by_others(turns) for piece in _divided_by_length(group, cfg.max_seconds)]
    return sorted(pieces, key=_order), sorted(events, key=_order)


def _order(group: Group) -> tuple[float, float, str]:
    return start_of(group), end_of(group), group[0].speaker


def _runs(words: Sequence[SpokenWord], merge_gap: float) -> list[Group]:
    """Words of one speaker on one track with short pauses between them, whatever others say in between."""
    open_runs: dict[tuple[int | None, str], Group] = {}
    runs: list[Group] = []
    for spoken in sorted(words, key=lambda spoken: (spoken.word.start, spoken.word.end)):
        key = spoken.clip.channel, spoken.speaker
        run = open_runs.get(key)
        if run is None or spoken.word.start - end_of(run) >= merge_gap:
            run = open_runs[key] = []
            runs.append(run)
        run.append(spoken)
    return runs


def _backchannels(runs: list[Group], cfg: TurnsConfig) -> list[Group]:
    """Short runs inside another speaker's longer one."""
    short = {
        id(run)
        for run in runs
        if len(run) <= cfg.backchannel_words and end_of(run) - start_of(run) <= cfg.backchannel_seconds
    }
    long_runs: dict[tuple[int | None, str], list[Group]] = {}  # by start, disjoint
    for run in runs:
        if id(run) not in short:
            long_runs.setdefault((run[0].clip.channel, run[0].speaker), []).append(run)

    def is_inside(run: Group, others: list[Group]) -> bool:
        before = bisect_left(others, start_of(run), key=start_of)
        return before > 0 and end_of(run) < end_of(others[before - 1])

    return [
        run
        for run in runs
        if id(run) in short
        and any(is_inside(run, others) for (_, speaker), others in long_runs.items() if speaker != run[0].speaker)
    ]


def _divided_by_others(runs: list[Group]) -> list[Group]:
    """Runs divided where another run on the same track has a word between two of theirs."""
    run_of = {id(spoken): index for index, run in enumerate(runs) for spoken in run}
    pieces: list[Group] = []
    channels = sorted({run[0].clip.channel for run in runs}, key=lambda channel: (channel is not None, channel))
    for channel in channels:
        words = [spoken for run in runs if run[0].clip.channel == channel for spoken in run]
        words.sort(key=lambda spoken: (spoken.word.start, spoken.word.end))
        pieces += [list(piece) for _, piece in groupby(words, key=lambda spoken: run_of[id(spoken)])]
    return pieces


def _divided_by_length(group: Group, limit: float) -> list[Group]:
    """Pieces of at most `limit` seconds, as far as words allow, cut at the best pause of each one's last two thirds."""
    pieces: list[Group] = []
    while end_of(group) - start_of(group) > limit and len(group) > 1:
        first = start_of(group)
        fitting = [i for i in range(1, len(group)) if group[i - 1].word.end - first <= limit]
        late = [i for i in fitting if group[i - 1].word.end - first >= limit / 3]
        cut = max(late or fitting[-1:] or [1], key=lambda i: (_pause(group, i), i))
        pieces.append(group[:cut])
        group = group[cut:]
    return [*pieces, group]


def _pause(group: Group, index: int) -> float:
    """Pause before word `index`, with the bonus."""
    before = group[index - 1].word
    bonus = SENTENCE_BONUS if before.text.endswith(SENTENCE_END) else 0.0
    return group[index].word.start - before.end + bonus
