"""The ledger against a count of every millisecond."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from heard import draft, recording

from data_prep.packing.ledger import KEPT, NO_SPEECH, NO_WORDS, account, tracks_of
from data_prep.reasons import Reason
from data_prep.records import GivenTurn, Rejection, Span, Speech, TrackSpeech, Turns


def made(seed: int):
    """A recording of one or two tracks with speech spans and turns anywhere, some beyond its end, many overlapping."""
    rng = np.random.default_rng(seed)
    seconds = float(rng.uniform(0.01, 5.0))
    tracks = [[None], [0, 1], [1]][seed % 3]

    def span() -> tuple[float, float]:
        start, end = sorted(rng.uniform(-0.2, seconds + 0.3, size=2))
        return float(start), float(end if rng.random() < 0.9 else start)

    speech = [TrackSpeech(track, [Span(*span()) for _ in range(rng.integers(0, 5))]) for track in tracks]
    turns = [draft(i, *span(), channel=tracks[rng.integers(len(tracks))]) for i in range(rng.integers(0, 12))]
    choices = [KEPT, KEPT, ("turns", "too_short"), ("loose", "quality"), ("pack", "duplicate_audio")]
    outcomes = {turn.number: choices[rng.integers(len(choices))] for turn in turns}
    return recording(seconds, channels=2, id=f"made/{seed}"), Speech(speech), Turns(turns, []), outcomes


def rejections(outcomes) -> dict[int, Rejection | None]:
    """Of turns, from the stage and reason that each is counted under."""
    return {
        number: None if (stage, reason) == KEPT else Rejection(stage=stage, reason=Reason(reason), message="")
        for number, (stage, reason) in outcomes.items()
    }


def counted(rec, speech: Speech, turns: Turns, outcomes) -> Counter:
    """Labels of an array with an element for every millisecond of every track, painted from the weakest claim up."""
    count: Counter = Counter()
    labels = [NO_SPEECH, NO_WORDS, *outcomes.values()]
    for track in speech.tracks:
        painted = np.zeros(round(rec.seconds * 1000), dtype=int)
        own = [turn for turn in turns.turns if turn.channel == track.channel]
        lost = [turn for turn in own[::-1] if outcomes[turn.number] != KEPT]
        kept = [turn for turn in own if outcomes[turn.number] == KEPT]
        strokes = [(1, span.start, span.end) for span in track.spans]
        strokes += [(2 + list(outcomes).index(turn.number), turn.start, turn.end) for turn in [*lost, *kept]]
        for label, start, end in strokes:
            painted[max(0, round(start * 1000)) : max(0, round(end * 1000))] = label
        count.update(labels[label] for label in painted.tolist())
    return count


def test_every_millisecond_counts_once():
    rows = []
    for seed in range(300):
        rec, speech, turns, outcomes = made(seed)
        ledger = account(rec, speech, turns, rejections(outcomes), None)
        assert {(row.stage, row.reason): row.ms for row in ledger} == counted(rec, speech, turns, outcomes)
        assert sum(row.ms for row in ledger) == round(rec.seconds * 1000) * len(speech.tracks)
        rows += ledger
    assert {row.stage for row in rows} == {"kept", "turns", "loose", "pack", "transcribe", "vad"}


def test_kept_hides_rejected_hides_speech_hides_silence():
    speech = Speech([TrackSpeech(None, [Span(1.0, 6.0)])])
    turns = Turns([draft(0, 2.0, 4.0), draft(1, 3.0, 5.0), draft(2, 3.5, 7.0), draft(3, 0.0, 9.0, channel=7)], [])
    outcomes = {0: ("loose", "quality"), 1: KEPT, 2: ("turns", "too_long"), 3: ("turns", "channel_missing")}
    ledger = account(recording(10.0), speech, turns, rejections(outcomes), None)
    assert {(row.stage, row.reason): row.ms for row in ledger} == {
        NO_SPEECH: 4000,  # 0..1, 7..10
        NO_WORDS: 1000,  # 1..2
        ("loose", "quality"): 1000,  # 2..3
        KEPT: 2000,  # 3..5
        ("turns", "too_long"): 2000,  # 5..7, although speech
    }


def test_a_rejected_recording_is_one_row_of_all_its_tracks():
    given = [GivenTurn(i, "s", 0.0, 1.0, channel=channel) for i, channel in enumerate([1, 0, 5])]
    rec = recording(12.3456, channels=2, turns=given, lang=None)
    rejected = Rejection(reason=Reason.audio_truncated, message="").located(rec, "vad")
    (row,) = account(rec, None, None, {}, rejected)
    assert (row.stage, row.reason, row.ms, row.lang) == ("vad", "audio_truncated", 2 * 12_346, "und")
    assert tracks_of(recording(1.0, channels=2), None, None) == [None]
    assert account(replace(rec, seconds=0.0), None, None, {}, rejected) == []


def test_rows_carry_the_source_and_the_given_or_longest_spoken_language():
    langs = set()
    for seed in range(60):
        rec, speech, turns, outcomes = made(seed)
        turns.turns = [replace(turn, lang="fr" if turn.number % 3 else "de") for turn in turns.turns]
        rec = replace(rec, source=f"source{seed % 4}", lang="en" if seed % 2 else None)
        spoken = Counter({"und": 0})
        for turn in turns.turns:
            spoken[turn.lang] += round((turn.end - turn.start) * 1000)
        lang = rec.lang or max(sorted(spoken), key=lambda name: spoken[name])
        langs.add(lang)
        ledger = account(rec, speech, turns, rejections(outcomes), None)
        assert {(row.source, row.lang) for row in ledger} == {(rec.source, lang)}
        assert sum(row.ms for row in ledger) == round(rec.seconds * 1000) * len(speech.tracks)
    assert langs == {"en", "fr", "de", "und"}


def test_a_turn_without_an_outcome_is_a_mistake():
    with pytest.raises(KeyError):
        account(recording(1.0), None, Turns([draft(0, 0.0, 1.0)], []), {}, None)
