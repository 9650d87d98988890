"""The plan of a source: complete, within the row and the window, a pure function of its arguments."""

from __future__ import annotations

import numpy as np
import pytest

from csm.data.plan import EpochPlan, next_fit

COUNTS = [9, 4, 12, 7, 1, 10, 3]
FIRST = np.cumsum([0, *COUNTS[:-1]])
SHARDS = np.stack([FIRST, COUNTS], axis=1)[[0, 1, 3, 4, 5, 6]]  # shard 2 is of another split
SAMPLES = sorted(set(range(46)) - set(range(13, 25)))
LENGTHS = np.stack([np.random.default_rng(0).integers(3, 60, 46), np.full(46, 2)]).astype(np.int32)


def plan(**changes) -> EpochPlan:
    values = {"source": "a", "shards": SHARDS, "lengths": LENGTHS, "max_positions": 64, "window_shards": 2, "seed": 1}
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


@pytest.mark.parametrize(
    ("lengths", "expected"), [([5, 5, 1, 10, 3, 7], [0, 3, 4, 6]), ([11, 11], [0, 1, 2]), ([], [0])]
)
def test_next_fit_closes_a_row_only_when_the_next_sample_does_not_fit(lengths, expected):
    assert next_fit(np.array(lengths, dtype=np.int32), 11).tolist() == expected
