"""How many voices there are in speech of short lines, and which line is whose."""

from __future__ import annotations

import numpy as np
import pytest
from heard import demo_turns

from csm.judges.speaker import Resemblyzer
from data_prep.config import DiarizeConfig
from data_prep.records import Span
from data_prep.speech.clustering import cluster_speakers, speaker_means

RATE = 16_000
LINES, PAUSE_SECONDS = 24, 0.5


@pytest.fixture(scope="module")
def encoder() -> Resemblyzer:
    return Resemblyzer("cpu")


@pytest.fixture(scope="module")
def voices() -> tuple[np.ndarray, np.ndarray]:
    """The demo's caller and its telephone system: each one's speech in one piece."""
    turns = demo_turns(0.5)
    caller, system = (
        [audio for name, audio in turns.items() if name.endswith(of)] for of in ((" 0", " 2"), (" 1", " 3"))
    )
    return np.concatenate(caller), np.concatenate(system)


def short_lines(*speech: np.ndarray) -> tuple[np.ndarray, list[Span]]:
    """Lines of 0.5 to 1.5 s with pauses between, of one voice after another, and where they are."""
    rng = np.random.default_rng(0)
    read = [0] * len(speech)
    parts: list[np.ndarray] = []
    spans: list[Span] = []
    start = 0.0
    for line in range(LINES):
        voice, length = line % len(speech), int(rng.uniform(0.5, 1.5) * RATE)
        parts += [speech[voice][read[voice] :][:length], np.zeros(round(PAUSE_SECONDS * RATE), np.float32)]
        read[voice] += length
        spans.append(Span(start, start + length / RATE))
        start += length / RATE + PAUSE_SECONDS
    return np.concatenate(parts), spans


def speakers(encoder: Resemblyzer, samples: np.ndarray, spans: list[Span]) -> list[int]:
    """The speaker of each line, from which everything of it is."""
    found = cluster_speakers(
        encoder, lambda start, end: samples[round(start * RATE) : round(end * RATE)], spans, DiarizeConfig()
    )
    assert [(start, end) for start, end, _ in found] == [(span.start, span.end) for span in spans]
    return [who for _, _, who in found]


def test_two_voices_in_lines_of_a_second_are_two_speakers(encoder, voices):
    assert speakers(encoder, *short_lines(*voices)) == [0, 1] * (LINES // 2)


@pytest.mark.parametrize("voice", [0, 1])
def test_one_voice_in_lines_of_a_second_is_one_speaker(encoder, voices, voice):
    assert speakers(encoder, *short_lines(voices[voice])) == [0] * LINES


@pytest.mark.parametrize(("windows", "found"), [((20, 20), 2), ((20, 5), 2), ((20, 4), 1), ((20, 0), 1)])
def test_a_speaker_has_at_least_five_windows(windows, found):
    """Two directions 60 degrees apart, with a little noise."""
    rng = np.random.default_rng(0)
    directions = np.array([[1.0, 0.0, 0.0], [0.5, 0.75**0.5, 0.0]])
    made = np.repeat(directions, windows, axis=0) + 0.01 * rng.standard_normal((sum(windows), 3))
    means = speaker_means(made, threshold=0.18, max_speakers=8)
    assert len(means) == found
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 1.0)
    similarity = means @ directions[:found].T  # each voice has its own mean; four windows more hardly move the other's
    assert similarity.max(axis=0).min() > 0.98


def test_no_more_speakers_than_allowed():
    rng = np.random.default_rng(0)
    made = np.repeat(np.eye(4), 20, axis=0) + 0.01 * rng.standard_normal((80, 4))
    assert [len(speaker_means(made, 0.18, allowed)) for allowed in (1, 2, 3, 4, 8)] == [1, 2, 3, 4, 4]
