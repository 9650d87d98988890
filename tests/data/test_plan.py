"""The data order: complete, within the row, a pure function of its arguments."""

from __future__ import annotations

import numpy as np
import pytest

from csm.data.plan import StepPlan, next_fit

LENGTHS = np.random.default_rng(0).integers(3, 60, 101)


def samples_of_epoch(plan: StepPlan, first: int, steps: int) -> list[int]:
    return [int(i) for step in range(first, first + steps) for row in plan.rows(step)[1] for i in row]


def test_every_epoch_holds_every_sample_once():
    plan = StepPlan(LENGTHS, max_positions=64, rows_per_step=4, seed=1)
    first, orders = 0, []
    for epoch in range(3):
        steps = plan.steps_of_epoch(epoch)
        assert {plan.rows(step)[0] for step in range(first, first + steps)} == {epoch}
        order = samples_of_epoch(plan, first, steps)
        assert sorted(order) == list(range(101))
        orders.append(order)
        first += steps
    assert orders[0] != orders[1] != orders[2]


def test_rows_fit_and_steps_are_evenly_filled():
    plan = StepPlan(LENGTHS, max_positions=64, rows_per_step=4, seed=1)
    counts = [len(plan.rows(step)[1]) for step in range(plan.steps_of_epoch(0))]
    assert max(counts) <= 4 and max(counts) - min(counts) <= 1
    for step in range(plan.steps_of_epoch(0)):
        assert all(LENGTHS[row].sum() <= 64 and len(row) for row in plan.rows(step)[1])


def test_order_does_not_depend_on_what_was_asked_before():
    ahead = StepPlan(LENGTHS, 64, 4, seed=1)
    late = ahead.rows(70)
    fresh = StepPlan(LENGTHS, 64, 4, seed=1)
    for step in (3, 71, 0):
        fresh.rows(step)
    again = fresh.rows(70)
    assert late[0] == again[0] and all(np.array_equal(a, b) for a, b in zip(late[1], again[1], strict=True))
    other = StepPlan(LENGTHS, 64, 4, seed=2).rows(70)
    assert not all(np.array_equal(a, b) for a, b in zip(late[1], other[1], strict=False))


def test_next_fit_closes_a_row_only_when_the_next_sample_does_not_fit():
    lengths = np.array([5, 5, 1, 10, 3, 7])
    rows = [row.tolist() for row in next_fit(np.arange(6), lengths, 11)]
    assert rows == [[0, 1, 2], [3], [4, 5]]


def test_empty_dataset_is_named():
    with pytest.raises(ValueError, match="split 'train' is empty"):
        StepPlan(np.array([], dtype=np.int64), 64, 4, seed=1)
