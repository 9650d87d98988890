"""Changes of speaker that a diarizer finds in the middle of speech, moved into the pauses nearby."""

import numpy as np
import pytest
from heard import item

from data_prep.speech.clustering import CHANGE_SECONDS, PAUSE_FRAME_SECONDS, changes_in_pauses
from data_prep.speech.edges import quietest_moment

RATE = 16_000


def test_changes_move_into_pauses_and_not_into_stop_consonants(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, (1, 10 * RATE)).astype(np.float32)
    samples[0, round(2.95 * RATE) : round(3.0 * RATE)] = 0.0  # a closure of 50 ms, nearer than the pause
    samples[0, round(3.2 * RATE) : round(3.35 * RATE)] *= 0.01
    samples[0, round(6.0 * RATE) : round(6.5 * RATE)] = 0.0  # too far from a change
    audio = item(tmp_path / "a.wav", samples, RATE, []).audio
    spans = [(1.0, 3.0, 0), (3.0, 7.0, 1), (7.0, 9.0, 0), (9.5, 10.0, 1)]
    found = changes_in_pauses(spans, lambda start, end: quietest_moment(audio, None, start, end, PAUSE_FRAME_SECONDS))
    assert [who for _, _, who in found] == [0, 1, 0, 1]
    assert found[0][:2] == (1.0, pytest.approx(3.275, abs=0.03)) and found[1][0] == found[0][1]
    assert abs(found[1][1] - 7.0) <= CHANGE_SECONDS and found[2][0] == found[1][1]
    assert found[2][1] == 9.0 and found[3] == (9.5, 10.0, 1)  # silence between them already


def test_no_span_is_lost_between_two_changes():
    spans = [(0.0, 1.0, 0), (1.0, 1.25, 1), (1.25, 3.0, 0)]
    late = changes_in_pauses(spans, lambda start, end: end)
    early = changes_in_pauses(spans, lambda start, end: start)
    assert late == [(0.0, 1.125, 0), (1.125, 1.65, 1), (1.65, 3.0, 0)]
    assert early == [(0.0, 0.6, 0), (0.6, 1.125, 1), (1.125, 3.0, 0)]
