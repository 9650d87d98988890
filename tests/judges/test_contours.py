"""Distance of prosody, on real speech changed in a known way."""

import librosa
import numpy as np
import pytest
import torch

from csm.judges.contours import ProsodyDistance
from tests.demo_speech import spoken_turns

RATE = 24_000


@pytest.fixture(scope="module")
def turn() -> torch.Tensor:
    return spoken_turns(["weasels"])["weasels"][1].audio


@pytest.fixture(scope="module")
def judge() -> ProsodyDistance:
    return ProsodyDistance()


def bent(audio: torch.Tensor, semitones: float, seconds: float = 0.7) -> torch.Tensor:
    """The audio read at a speed that swings by so many semitones, up and down within so many seconds."""
    speed = 2 ** (semitones / 12 * np.sin(2 * np.pi * np.arange(len(audio)) / (seconds * RATE)))
    places = np.cumsum(speed)
    heard = np.interp(places[places < len(audio) - 1], np.arange(len(audio)), audio.numpy())
    return torch.from_numpy(heard.astype(np.float32))


def test_the_same_turn_in_another_level_and_with_silence_has_no_distance(judge, turn):
    padded = torch.cat([torch.zeros(RATE // 2), 0.3 * turn, torch.zeros(RATE)])
    found = judge.measure(padded, turn, RATE)
    assert found["f0_distance"] < 0.3 and found["energy_distance"] < 2 and found["rate_distance"] < 0.02
    assert judge.measure(turn, turn, RATE) == dict.fromkeys(judge.values, 0.0)


def test_another_pitch_contour_is_far_and_another_pitch_is_not(judge, turn):
    swinging = judge.measure(bent(turn, 3), turn, RATE)
    assert swinging["f0_distance"] == pytest.approx(3 / np.sqrt(2), abs=0.5)  # of a sine of 3 semitones
    assert swinging["rate_distance"] < 0.05
    higher = torch.from_numpy(librosa.effects.pitch_shift(turn.numpy(), sr=RATE, n_steps=3))
    assert judge.measure(higher, turn, RATE)["f0_distance"] < 1


def test_level_and_rate_are_measured_in_decibels_and_octaves(judge, turn):
    swing = 6 * np.sin(2 * np.pi * np.arange(len(turn)) / (0.8 * RATE))  # dB
    found = judge.measure(turn * torch.from_numpy(10 ** (swing / 20)).float(), turn, RATE)
    assert found["energy_distance"] == pytest.approx(6 / np.sqrt(2), abs=1.2) and found["f0_distance"] < 0.3
    fast = torch.from_numpy(librosa.effects.time_stretch(turn.numpy(), rate=2.0))
    assert judge.measure(fast, turn, RATE)["rate_distance"] == pytest.approx(1, abs=0.05)


def test_what_is_undefined_is_left_out(judge, turn):
    noise = 0.1 * torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    assert set(judge.measure(noise, turn, RATE)) == {"energy_distance", "rate_distance"}
    assert judge.measure(torch.zeros(RATE), turn, RATE) == judge.measure(turn[:0], turn, RATE) == {}
    assert judge.measure(turn, turn[:500], RATE) == {}
