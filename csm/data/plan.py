"""Which samples make up which row of which optimizer step: a pure function of (lengths, seed, step).

    epoch e: permute samples by (seed, e) -> next-fit into rows -> permute rows -> deal evenly to steps

Every rank computes the same plan and takes its rows, so the order depends neither on the number of ranks or workers
nor on anything that happened before: the number of finished optimizer steps is the whole state of the data order.
"""

from __future__ import annotations

import numpy as np


class StepPlan:
    """Rows of every optimizer step, for ever.

    lengths:       int [n], positions of each sample, all <= max_positions
    max_positions: length of a row
    rows_per_step: rows of one optimizer step over all ranks and microbatches
    """

    def __init__(self, lengths: np.ndarray, max_positions: int, rows_per_step: int, seed: int) -> None:
        if len(lengths) == 0:
            raise ValueError("no samples to train on: the dataset's split 'train' is empty")
        assert lengths.max() <= max_positions and lengths.min() > 0
        self.lengths = lengths
        self.max_positions = max_positions
        self.rows_per_step = rows_per_step
        self.seed = seed
        self._first_step = [0]  # first step of each epoch planned so far, and of the next
        self._current: tuple[int, list[list[np.ndarray]]] | None = None

    def rows(self, step: int) -> tuple[int, list[np.ndarray]]:
        """The epoch that optimizer step `step` belongs to, and the sample numbers of its (at most
        `rows_per_step`) rows, each in packing order."""
        while step >= self._first_step[-1]:
            self._first_step.append(self._first_step[-1] + len(self._epoch(len(self._first_step) - 1)))
        epoch = int(np.searchsorted(self._first_step, step, side="right")) - 1
        return epoch, self._epoch(epoch)[step - self._first_step[epoch]]

    def steps_of_epoch(self, epoch: int) -> int:
        return len(self._epoch(epoch))

    def _epoch(self, epoch: int) -> list[list[np.ndarray]]:
        if self._current is None or self._current[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            rows = next_fit(rng.permutation(len(self.lengths)), self.lengths, self.max_positions)
            order = rng.permutation(len(rows))
            steps = -(-len(rows) // self.rows_per_step)
            # Evenly dealt: no step is left with a remainder of one row, whose gradient would be mostly noise.
            self._current = (epoch, [[rows[i] for i in part] for part in np.array_split(order, steps)])
        return self._current[1]


def next_fit(order: np.ndarray, lengths: np.ndarray, max_positions: int) -> list[np.ndarray]:
    """Cuts `order` into consecutive runs whose lengths add up to at most `max_positions`."""
    ends = np.cumsum(lengths[order])
    rows, start, used = [], 0, 0
    while start < len(order):
        end = int(np.searchsorted(ends, used + max_positions, side="right"))
        rows.append(order[start:end])
        start, used = end, int(ends[end - 1])
    return rows
