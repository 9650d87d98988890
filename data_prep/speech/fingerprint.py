"""Acoustic fingerprints: a 32-bit code for every 1/8 s that re-encoding a recording hardly changes.

After Haitsma and Kalker, "A Highly Robust Audio Fingerprinting System" (ISMIR 2002): a bit of a code says whether the
level rises or falls between two frequencies, compared with half a second earlier. Gain, equalization and codecs keep
most bits; other words, and the same words said again, change half of them. Chromaprint works the same way, but its tool
is not on PyPI. Windows of one second are much longer than a step, so that codes hardly depend on where the steps fall.

Two turns are the same sound if few bits differ at the best alignment. `same_sound` finds them among millions: only
turns that share at least one whole code at a possible alignment are compared.
"""

from __future__ import annotations

import numpy as np

from data_prep.records import MODEL_RATE

CODES_PER_SECOND = 8

_STEP = MODEL_RATE // CODES_PER_SECOND
_WINDOW = MODEL_RATE  # samples, Hann
_BITS = 32
_APART = 4  # bands between the two that a bit compares, about half an octave
_LAG = 4  # codes
# 36 bands of equal ratio, in the range that telephones and all codecs transmit.
_EDGES = np.round(np.geomspace(300.0, 3000.0, _BITS + _APART + 1) * _WINDOW / MODEL_RATE).astype(np.int64)
_FLOOR_DB = -50.0  # relative to the loudest band of the turn; below is noise, which codecs change
_FRAMES_AT_ONCE = 64  # of 16,000 samples

# How much of the longer of two turns an alignment must cover. Cuts of the same speech differ only at their ends.
_COVER = 0.75
# How many of a code's predecessors in the index it is compared with. The same sound shares many codes: a pair missed
# at one of them, because other sounds have it too, is found at another.
_NEIGHBORS = 3
# A pair that shares a code is first compared at this many places, and then in full only if the share of differing bits
# there exceeds the allowed one by no more than the slack.
_PROBES, _PROBE_SLACK = 8, 0.1
_PARTITIONS = 16  # of the index, by code; one is in memory at a time
_CANDIDATES_AT_ONCE = 1 << 20

_ONES = np.array([number.bit_count() for number in range(1 << 16)], dtype=np.uint8)


def fingerprint(audio: np.ndarray) -> list[int]:
    """Codes of a turn's audio, float32 [N] at 16 kHz: one for each 1/8 s after the first 1.5 s; none for silence."""
    if len(audio) < _WINDOW or not audio.any():
        return []
    frames = np.lib.stride_tricks.sliding_window_view(audio, _WINDOW)[::_STEP]
    window = np.hanning(_WINDOW).astype(np.float32)
    powers = []
    for first in range(0, len(frames), _FRAMES_AT_ONCE):
        spectrum = np.fft.rfft(frames[first : first + _FRAMES_AT_ONCE] * window, axis=1)[:, : _EDGES[-1]]
        powers.append(np.add.reduceat(np.square(np.abs(spectrum)), _EDGES[:-1], axis=1) / np.diff(_EDGES))
    power = np.concatenate(powers).astype(np.float64)  # [frames, bands]
    if not power.any():
        return []
    level = 10 * np.log10(power + power.max() * 10 ** (_FLOOR_DB / 10))
    tilt = level[:, :-_APART] - level[:, _APART:]
    bits = tilt[_LAG:] > tilt[:-_LAG]  # [codes, 32]
    return (bits @ (1 << np.arange(_BITS, dtype=np.int64))).tolist()


def bit_error(one: np.ndarray, other: np.ndarray) -> float:
    """Share of bits that differ between two fingerprints (uint32), at the alignment with the smallest share.

    Alignments must cover three quarters of the longer one; 1 if there is none.
    """
    covered = max(1, int(np.ceil(_COVER * max(len(one), len(other)))))
    least = 1.0
    for shift in range(covered - len(other), len(one) - covered + 1):  # other[0] aligned with one[shift]
        start, end = max(0, shift), min(len(one), len(other) + shift)
        if end - start >= covered:
            differing = int(_popcount(one[start:end] ^ other[start - shift : end - shift]).sum())
            least = min(least, differing / (_BITS * (end - start)))
    return least


def same_sound(codes: np.ndarray, lengths: np.ndarray, max_bit_error: float) -> dict[int, tuple[int, float]]:
    """Finds fingerprints that repeat an earlier one: number -> (number of the earlier one, bit error).

    In the order given, each is either kept, or repeats the nearest kept one within `max_bit_error`.

    Args:
        codes: uint32 [sum(lengths)], one fingerprint after another.
        lengths: int64 [fingerprints].
    """
    starts = np.concatenate([[0], np.cumsum(lengths)])

    def error(one: int, other: int) -> float:
        return bit_error(codes[starts[one] : starts[one + 1]], codes[starts[other] : starts[other + 1]])

    matched: dict[int, set[int]] = {}
    for first, second in _candidates(codes, starts, max_bit_error):
        if error(first, second) <= max_bit_error:
            matched.setdefault(first, set()).add(second)
            matched.setdefault(second, set()).add(first)
    repeats: dict[int, tuple[int, float]] = {}
    for group in _components(matched):
        kept: list[int] = []
        for number in group:
            least, nearest = min(((error(other, number), other) for other in kept), default=(1.0, -1))
            if least <= max_bit_error:
                repeats[number] = (nearest, least)
            else:
                kept.append(number)
    return repeats


def _candidates(codes: np.ndarray, starts: np.ndarray, max_bit_error: float) -> list[tuple[int, int]]:
    """Pairs (smaller number first) that share a code at a possible alignment, and differ little there."""
    found = [np.zeros(0, np.int64)]
    for partition in range(_PARTITIONS):
        places = np.flatnonzero(codes.astype(np.uint8) % _PARTITIONS == partition)  # of the code's lowest bits
        places = places[np.argsort(codes[places], kind="stable")]
        for distance in range(1, _NEIGHBORS + 1):
            same = np.flatnonzero(codes[places[:-distance]] == codes[places[distance:]])
            for first in range(0, len(same), _CANDIDATES_AT_ONCE):
                chosen = same[first : first + _CANDIDATES_AT_ONCE]
                pairs = _probe(codes, starts, places[chosen], places[chosen + distance], max_bit_error)
                found.append(np.unique(pairs))
    pairs, count = np.unique(np.concatenate(found)), len(starts) - 1
    return list(zip((pairs // count).tolist(), (pairs % count).tolist(), strict=True))


def _probe(
    codes: np.ndarray, starts: np.ndarray, one: np.ndarray, other: np.ndarray, max_bit_error: float
) -> np.ndarray:
    """Pairs of fingerprints, as a * fingerprints + b, that may match at places [n] with equal codes."""
    a, b = (np.searchsorted(starts, place, side="right") - 1 for place in (one, other))
    before = np.minimum(one - starts[a], other - starts[b])
    after = np.minimum(starts[a + 1] - one, starts[b + 1] - other)
    longer = np.maximum(starts[a + 1] - starts[a], starts[b + 1] - starts[b])
    fits = (a != b) & (before + after >= _COVER * longer)
    a, b, one, other, before, after = (values[fits] for values in (a, b, one, other, before, after))
    # places of the probes relative to the shared code, evenly over the overlap
    steps = (before + after)[:, None] * np.arange(_PROBES) // _PROBES - before[:, None]
    differing = _popcount(codes[one[:, None] + steps] ^ codes[other[:, None] + steps]).sum(axis=1)
    near = differing <= (max_bit_error + _PROBE_SLACK) * _BITS * _PROBES
    return a[near] * (len(starts) - 1) + b[near]


def _components(matched: dict[int, set[int]]) -> list[list[int]]:
    """Numbers connected by matches, each group in ascending order."""
    seen: set[int] = set()
    groups = []
    for number in sorted(matched):
        if number not in seen:
            group, waiting = [], [number]
            seen.add(number)
            while waiting:
                group.append(waiting.pop())
                new = matched[group[-1]] - seen
                seen |= new
                waiting += new
            groups.append(sorted(group))
    return groups


def _popcount(codes: np.ndarray) -> np.ndarray:
    return _ONES[codes & 0xFFFF] + _ONES[codes >> 16]
