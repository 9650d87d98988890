"""Duplicates among recordings and turns, whatever the order in which they come."""

import random

import numpy as np
import pytest

from data_prep.config import DedupConfig
from data_prep.packing.dedup import HeardRecording, HeardTurn, duplicates
from data_prep.records import Duplicate

ALL = DedupConfig(text=True)
VOCABULARY = [f"w{i}" for i in range(2000)]


def codes(seed: int, changed: float = 0.0, length: int = 50) -> list[int]:
    """A fingerprint; of equal seed, with a share of its bits changed."""
    bits = np.random.default_rng(seed).random((length, 32)) < 0.5
    bits ^= np.random.default_rng(seed + 1000).random((length, 32)) < changed
    return (bits @ (1 << np.arange(32, dtype=np.int64))).tolist()


def text(seed: int, count: int = 120, changed: int = 0) -> str:
    """Words; of equal seed, the last `changed` are others."""
    said = random.Random(seed).choices(VOCABULARY, k=count)
    return " ".join(said[: count - changed] + random.Random(seed + 1).choices(VOCABULARY, k=changed))


def heard(name: str, pcm: str, *turns: tuple[list[int], str], seconds: float = 8.0) -> HeardRecording:
    return HeardRecording(name, pcm, [HeardTurn(i, seconds, *turn) for i, turn in enumerate(turns)])


RECORDINGS = [
    heard("s/a", "pcm1", (codes(1), text(1)), (codes(2), "yes")),
    heard("s/b", "pcm2", (codes(3), text(2)), (codes(4), "yes"), (codes(1, 0.05), "yes")),  # turn 2: turn 0 of s/a
    heard("s/c", "pcm1", (codes(1), text(1)), (codes(2), "yes")),  # the samples of s/a
    heard("s/d", "pcm3", (codes(5), text(2, changed=10).upper()), (codes(3, 0.05), "yes")),  # the text of s/b
    heard("s/e", "pcm4", (codes(6), text(3)), (codes(6, 0.03), "yes")),  # repeats itself
    heard("s/f", "pcm5", (codes(6, 0.4), text(3, changed=100)), (codes(2, 0.04)[3:], "no")),  # turn 1: turn 1 of s/a
    heard("s/g", "pcm6", (codes(7), "short"), (codes(7), "too")),
    heard("s/h", "pcm7", (codes(3), "unheard"), seconds=4.9),  # too short to be compared
]


def pairs(rows: list[Duplicate]) -> list[tuple]:
    return [(row.recording, row.turn, row.reason, row.kept_recording, row.kept_turn) for row in rows]


EXPECTED = [
    ("s/b", 2, "duplicate_audio", "s/a", 0),
    ("s/c", None, "duplicate_audio", "s/a", None),
    ("s/d", None, "duplicate_text", "s/b", None),
    ("s/e", 1, "duplicate_audio", "s/e", 0),
    ("s/f", 1, "duplicate_audio", "s/a", 1),
    ("s/g", 1, "duplicate_audio", "s/g", 0),
]


def test_of_equal_recordings_the_annotated_one_is_kept():
    raw, text_too, other = heard("s/raw", "pcm"), heard("s/text", "pcm"), heard("s/later", "pcm")
    text_too.annotated = True
    rows = pairs(duplicates([raw, text_too, other], ALL))
    assert rows == [
        ("s/later", None, "duplicate_audio", "s/text", None),
        ("s/raw", None, "duplicate_audio", "s/text", None),
    ]


def test_the_first_is_kept_and_the_rest_name_it():
    rows = duplicates(RECORDINGS, ALL)
    assert pairs(rows) == EXPECTED
    similarity = {(row.recording, row.turn): row.similarity for row in rows}
    assert similarity["s/c", None] == similarity["s/g", 1] == 1.0
    assert similarity["s/b", 2] == pytest.approx(0.95, abs=0.01)
    # 116 shingles each, the last 10 words changed: 106 of 126 distinct ones are shared
    assert similarity["s/d", None] == pytest.approx(106 / 126, abs=0.1)


def test_order_does_not_matter():
    rows = duplicates(RECORDINGS, ALL)
    for seed in range(10):
        assert duplicates(iter(random.Random(seed).sample(RECORDINGS, len(RECORDINGS))), ALL) == rows


def test_each_kind_can_be_left_out():
    assert pairs(duplicates(RECORDINGS, DedupConfig(fingerprint=False))) == [EXPECTED[1]]
    assert pairs(duplicates(RECORDINGS, DedupConfig(exact=False, fingerprint=False, text=True))) == [
        ("s/c", None, "duplicate_text", "s/a", None),
        EXPECTED[2],
    ]
    turns = pairs(duplicates(RECORDINGS, DedupConfig(exact=False)))
    assert ("s/c", 0, "duplicate_audio", "s/a", 0) in turns and ("s/d", 1, "duplicate_audio", "s/b", 0) in turns
    strict = DedupConfig(max_bit_error=0.01)
    assert pairs(duplicates(RECORDINGS, strict)) == [EXPECTED[1], EXPECTED[5]]
    assert duplicates([], ALL) == []


def test_many_copies_have_one_twin():
    """A jingle in 300 recordings is kept once, the speech next to it is not touched."""
    recordings = [heard(f"s/{i:03d}", f"{i}", (codes(9, 0.05), ""), (codes(10_000 + i), "")) for i in range(300)]
    rows = duplicates(recordings, DedupConfig())
    assert pairs(rows) == [(f"s/{i:03d}", 0, "duplicate_audio", "s/000", 0) for i in range(1, 300)]


def test_a_recording_must_not_come_twice():
    with pytest.raises(ValueError, match="'s/a' occurs twice"):
        duplicates([RECORDINGS[0], RECORDINGS[0]], ALL)
