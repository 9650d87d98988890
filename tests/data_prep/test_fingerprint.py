"""Fingerprints of speech: the same sound is found however it is encoded, other sound is not."""

from itertools import combinations

import numpy as np
import pytest
from heard import demo_recordings, demo_turns, encoded_again

from data_prep.config import DedupConfig
from data_prep.speech.fingerprint import CODES_PER_SECOND, bit_error, fingerprint, same_sound

ALLOWED = DedupConfig().max_bit_error
RATE = 16_000


def prints(sounds) -> list[np.ndarray]:
    return [np.array(fingerprint(sound), dtype=np.uint32) for sound in sounds]


def search(fingerprints: list[np.ndarray]) -> dict[int, tuple[int, float]]:
    return same_sound(np.concatenate(fingerprints), np.array([len(codes) for codes in fingerprints]), ALLOWED)


@pytest.fixture(scope="module")
def recordings() -> list[np.ndarray]:
    return list(demo_recordings().values())


@pytest.mark.parametrize("codec", ["mp3", "opus"])
def test_finds_the_same_sound_encoded_again(recordings, codec):
    """Quieter, cut by up to a quarter of a second at both ends, through a lossy codec: every one is near, and found."""
    rng = np.random.default_rng(0)
    recordings, again = recordings[::2], []  # all would take 12 s
    for sound in recordings:
        start, end = rng.integers(0, RATE // 4, size=2)
        again.append(encoded_again(0.3 * sound[start : len(sound) - end], RATE, codec))
    first, second = prints(recordings), prints(again)
    assert max(bit_error(one, other) for one, other in zip(first, second, strict=True)) < ALLOWED
    repeats = search([*first, *second])
    wrong = {number: twin for number, (twin, _) in repeats.items() if number - twin != len(first)}
    assert not wrong
    assert len(repeats) >= len(first) - 1  # at 18 kbit/s a short one may share no whole code with its twin


def test_different_turns_do_not_match(recordings):
    """48 turns and 25 whole recordings of two voices; turns are too short a part of their recording to match it."""
    fingerprints = [codes for codes in prints([*demo_turns(1.3).values(), *recordings]) if len(codes)]
    assert len(fingerprints) > 60
    assert search(fingerprints) == {}
    long = [codes for codes in fingerprints if len(codes) >= 3 * CODES_PER_SECOND]
    assert min(bit_error(one, other) for one, other in combinations(long, 2)) > 2 * ALLOWED


def test_search_equals_comparing_every_pair():
    """Made-up fingerprints with copies at all kinds of distances and cuts, against bit_error of all pairs."""
    rng = np.random.default_rng(1)
    fingerprints = [rng.integers(0, 1 << 32, size=rng.integers(30, 80), dtype=np.uint32) for _ in range(60)]
    for _ in range(60):
        source = fingerprints[rng.integers(60)]
        start, end = rng.integers(0, 1 + len(source) // 5, size=2)
        flips = rng.random((len(source), 32)) < rng.choice([0.0, 0.02, 0.05, 0.3])
        noisy = source ^ (flips @ (1 << np.arange(32, dtype=np.int64))).astype(np.uint32)
        fingerprints.append(noisy[start : len(noisy) - end])
    expected, kept = {}, []
    for number, codes in enumerate(fingerprints):
        error, twin = min(((bit_error(fingerprints[other], codes), other) for other in kept), default=(1.0, -1))
        if error <= ALLOWED:
            expected[number] = (twin, error)
        else:
            kept.append(number)
    assert 20 < len(expected) < 60
    assert search(fingerprints) == expected


def test_bit_error_is_at_the_best_alignment():
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 1 << 32, size=40, dtype=np.uint32)
    assert bit_error(codes, codes[7:]) == bit_error(codes[7:], codes) == 0.0
    changed = codes.copy()
    changed[5:15] ^= 0xF
    assert bit_error(codes, changed) == 40 / (40 * 32)
    assert bit_error(codes, codes[:29]) == 1.0  # less than three quarters of the longer one
    assert bit_error(codes, codes[:30]) == 0.0


def test_no_fingerprint_of_silence_or_less_than_1500_ms():
    rng = np.random.default_rng(3)
    assert fingerprint(np.zeros(5 * RATE, np.float32)) == []
    assert fingerprint(rng.standard_normal(RATE * 3 // 2 - 1).astype(np.float32)) == []
    assert len(fingerprint(rng.standard_normal(RATE * 3 // 2).astype(np.float32))) == 1
    assert len(fingerprint(rng.standard_normal(20 * RATE).astype(np.float32))) == 18.5 * CODES_PER_SECOND + 1
    assert fingerprint(np.zeros(0, np.float32)) == []
