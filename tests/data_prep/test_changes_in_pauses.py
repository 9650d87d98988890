"""Changes of speaker that a diarizer finds in the middle of speech, and the pauses nearby."""

from itertools import pairwise

import numpy as np
import pytest

from data_prep.records import Span
from data_prep.speech.clustering import most_likely
from data_prep.speech.pauses import CHANGE_SECONDS, between_pauses, changes_in_pauses

RATE = 16_000


def noise(*quiet: tuple[float, float]) -> np.ndarray:
    """10 s of noise, silent in some intervals."""
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, 10 * RATE).astype(np.float32)
    for start, end in quiet:
        samples[round(start * RATE) : round(end * RATE)] *= 0.001
    return samples


def reader(samples: np.ndarray):
    return lambda start, end: samples[round(start * RATE) : round(end * RATE)]


def test_changes_move_into_pauses_and_not_into_stop_consonants():
    samples = noise((2.95, 3.0), (3.2, 3.35), (6.0, 6.5))  # a closure, nearer than the pause; a pause too far away
    spans = [(1.0, 3.0, 0), (3.0, 7.0, 1), (7.0, 9.0, 0), (9.5, 10.0, 1)]
    found = changes_in_pauses(spans, reader(samples), frozenset())
    assert [who for _, _, who in found] == [0, 1, 0, 1]
    assert found[0][:2] == (1.0, pytest.approx(3.275, abs=0.03)) and found[1][0] == found[0][1]
    assert abs(found[1][1] - 7.0) <= CHANGE_SECONDS and found[2][0] == found[1][1]
    assert found[2][1] == 9.0 and found[3] == (9.5, 10.0, 1)  # silence between them already
    assert changes_in_pauses(spans, reader(samples), frozenset([3.0, 7.0])) == spans


def test_no_span_is_lost_between_two_changes():
    spans = [(0.0, 1.0, 0), (1.0, 1.25, 1), (1.25, 3.0, 0)]
    found = changes_in_pauses(spans, reader(noise((0.4, 0.9), (1.3, 2.0))), frozenset())
    (_, first, _), (_, second, _), _ = found
    assert 0.6 <= first <= 1.125 <= second <= 1.65 and first < second


def test_speech_is_divided_in_its_pauses():
    samples = noise((2.0, 2.2), (3.0, 3.05), (4.0, 4.5), (4.55, 4.7), (9.8, 9.95))
    parts = between_pauses(reader(samples), Span(1.0, 10.0))
    assert [part.start for part in parts] == pytest.approx([1.0, 2.1, 4.25], abs=0.02)  # none of less than 0.4 s
    assert parts[-1].end == 10.0 and all(a.end == b.start for a, b in pairwise(parts))
    assert between_pauses(reader(samples), Span(2.5, 3.5)) == [Span(2.5, 3.5)]
    assert between_pauses(reader(samples), Span(2.5, 2.51)) == [Span(2.5, 2.51)]


def test_a_short_answer_between_pauses_is_its_speakers_own():
    """One step of another voice is too little in the middle of speech, but enough between pauses."""
    similarity = np.array([[0.8, 0.5]] * 4 + [[0.6, 0.66]] + [[0.8, 0.5]] * 4)
    assert most_likely(similarity).tolist() == [0] * 9
    assert most_likely(similarity, [0, 4, 5]).tolist() == [0] * 4 + [1] + [0] * 4
    similarity[4] = 0.6, 0.63  # hardly more like the other
    assert most_likely(similarity, [0, 4, 5]).tolist() == [0] * 9
