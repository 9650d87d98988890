"""The plan of a source: complete, within the row and the window, a pure function of its arguments."""

from __future__ import annotations

import json
import zlib
from itertools import combinations, pairwise

import numpy as np
import pytest

from benchmarks.data_start import next_fit
from csm.data.plan import ORDER, EpochPlan, WindowRows, best_fit

COUNTS = [9, 4, 12, 7, 1, 10, 3]
FIRST = np.cumsum([0, *COUNTS[:-1]])
SHARDS = np.stack([FIRST, COUNTS], axis=1)[[0, 1, 3, 4, 5, 6]]  # shard 2 is of another split
SAMPLES = sorted(set(range(46)) - set(range(13, 25)))
LENGTHS = np.stack([np.random.default_rng(0).integers(3, 60, 46), np.full(46, 2)]).astype(np.int32)


def plan(**changes) -> EpochPlan:
    values = {"source": "a", "shards": SHARDS, "lengths": LENGTHS, "max_seq_len": 64, "window_shards": 2, "seed": 1}
    return EpochPlan(**values | changes)


def epoch_rows(plan: EpochPlan, epoch: int) -> list[list[int]]:
    return [[int(i) for i in row] for window in range(plan.windows) for row in plan.rows(epoch, window)]


def test_every_epoch_holds_every_sample_once_in_an_order_of_its_own():
    orders = [[i for row in epoch_rows(plan(), epoch) for i in row] for epoch in range(3)]
    assert all(sorted(order) == SAMPLES for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_rows_fit():
    for row in epoch_rows(plan(), 0):
        assert row and LENGTHS[0, row].sum() <= 64


def test_a_window_holds_the_samples_of_its_shards_and_no_others():
    shuffled = plan()
    assert shuffled.windows == 3
    seen = []
    for window in range(3):
        shards = shuffled.window_of(5, window)
        assert len(shards) == 2
        found = sorted(int(i) for row in shuffled.rows(5, window) for i in row)
        assert found == sorted(i for first, count in shards for i in range(first, first + count))
        seen += [int(first) for first, _ in shards]
    assert sorted(seen) == sorted(SHARDS[:, 0]) and seen != sorted(seen)


def test_order_depends_on_seed_source_epoch_and_window_alone():
    used = plan()
    for epoch in (7, 0, 3):
        epoch_rows(used, epoch)
    assert epoch_rows(used, 2) == epoch_rows(plan(), 2)
    for change in ({"seed": 2}, {"source": "b"}, {"window_shards": 3}):
        assert epoch_rows(plan(**change), 2) != epoch_rows(plan(), 2)


def test_long_samples_have_rows_of_their_own_and_unusable_ones_none():
    lengths = LENGTHS.copy()
    lengths[0, [3, 30]] = 200
    lengths[:, 40] = 65
    rows = epoch_rows(plan(lengths=lengths), 0)
    assert [3] in rows and [30] in rows
    assert sorted(i for row in rows for i in row) == [i for i in SAMPLES if i != 40]


def naive_best_fit(lengths: list[int], max_seq_len: int) -> list[int]:
    """Positions left in each row after packing `lengths` in this order."""
    spaces: list[int] = []
    for length in lengths:
        room = [i for i, space in enumerate(spaces) if space >= length]
        if not room:
            spaces.append(max_seq_len)
            room = [len(spaces) - 1]
        spaces[min(room, key=lambda i: spaces[i])] -= length
    return spaces


@pytest.mark.parametrize("number", [0, 1, 2, 50, 400])
def test_packing_is_best_fit_decreasing(number):
    for longest in (5, 33, 64):
        lengths = np.random.default_rng(number).integers(1, longest + 1, number).astype(np.int32)
        packed, starts = best_fit(lengths, lengths, 64)
        rows = [packed[start:end].tolist() for start, end in pairwise(starts)]
        assert sorted(i for row in rows for i in row) == list(range(number))
        assert all(row == sorted(row) for row in rows), "within a row in the order given"
        spaces = [64 - int(lengths[row].sum()) for row in rows]
        assert sorted(spaces) == sorted(naive_best_fit(sorted(lengths.tolist(), reverse=True), 64))


def test_packing_goes_by_priority():
    packed, starts = best_fit(np.array([3, 9, 7, 2]), np.array([4, 3, 2, 1]), 10)
    assert [packed[start:end].tolist() for start, end in pairwise(starts)] == [[0, 2], [1], [3]]


CONVERSATIONS = {
    "of 500 to 2900 positions": (lambda rng, n: rng.integers(500, 2901, n), 4096, 0.985),
    "of 50 to 600 positions": (lambda rng, n: rng.integers(50, 601, n), 2048, 0.99),
    "of lognormal lengths": (lambda rng, n: rng.lognormal(7, 0.6, n).astype(int), 4096, 0.985),
    "of little more than half a row": (lambda rng, n: rng.integers(1025, 1200, n), 2048, 0.5),
}


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_rows_are_full(kind):
    """For these lengths (not for all) there are also no more rows than next fit makes in a random order."""
    draw, max_seq_len, share = CONVERSATIONS[kind]
    for number in (1, 10, 100, 3000):
        lengths = np.minimum(draw(np.random.default_rng(number), number), max_seq_len)
        shards = np.array([[0, number]])
        window = EpochPlan("a", shards, np.stack([lengths, lengths]), max_seq_len, 1, seed=1).rows(0, 0)
        used = [int(lengths[row].sum()) for row in window]
        assert max(used) <= max_seq_len
        assert len(window) <= next_fit(np.random.default_rng(0).permutation(lengths), max_seq_len)
        if number == 3000:
            assert sum(used) >= share * len(window) * max_seq_len


def partners(window: WindowRows) -> set[tuple[int, int]]:
    return {pair for row in window for pair in combinations(sorted(row.tolist()), 2)}


@pytest.mark.parametrize("number", [100, 3000])
def test_samples_meet_others_in_every_epoch_and_in_any_order(number):
    lengths = np.random.default_rng(0).integers(500, 2901, number)
    plan = EpochPlan("a", np.array([[0, number]]), np.stack([lengths, lengths]), 4096, 1, seed=1)
    first, second = plan.rows(0, 0), plan.rows(1, 0)
    assert len(partners(first) & partners(second)) < 0.15 * len(partners(first))  # by length alone: half and more
    for order in (lengths, np.arange(number)):  # neither the longest nor the first stored comes first
        ascending = [order[row[0]] < order[row[1]] for row in first if len(row) > 1]
        assert 0.4 < np.mean(ascending) < 0.6


def test_the_order_is_the_one_its_version_stands_for():
    """Fails with every change of the order: raise csm.data.plan.ORDER then, and put both new numbers here."""
    assert (ORDER, zlib.crc32(json.dumps(epoch_rows(plan(), 1)).encode())) == (2, 1759676459)
