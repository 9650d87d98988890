"""Assignment of samples to rows: an epoch of one dataset, planned window by window.

    permute the shards by (seed, source, epoch) -> windows of `window_shards` shards
    -> permute the window's samples -> pack them into rows by best fit, roughly the longest first
    -> permute the rows, by (seed, source, epoch, window)

A window is a pure function of these numbers and the lengths of the samples. Resuming at a window requires no planning
of earlier ones, and an epoch is never planned as a whole. Reading a window touches only its `window_shards` shards.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

ORDER = 2
"""Version of the row order, stored in checkpoints (1 if absent). Increment it with every change that gives other rows
for the same seed and data: the cursors of older checkpoints would point elsewhere."""

_SHARDS, _SAMPLES = 0, 1  # what is permuted; part of the seed


@dataclass(frozen=True)
class WindowRows:
    """The rows of one window; item r is the sample numbers of row r, int64 [n], in packing order.

    samples: int64 [n], row by row
    starts:  int64 [rows + 1], start of each packed row in `samples`
    order:   int64 [rows], packed rows in training order
    """

    samples: np.ndarray
    starts: np.ndarray
    order: np.ndarray

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, row: int) -> np.ndarray:
        packed = self.order[row]
        return self.samples[self.starts[packed] : self.starts[packed + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))


class EpochPlan:
    """Plan of all epochs of one source.

    source:        name of the source, part of the seed: its order does not depend on other sources
    shards:        int64 [m, 2], first sample and number of samples of each shard of the split
    lengths:       int32 [2, samples of the dataset] in positions, see csm/data/lengths.py
    max_seq_len:   length of a row
    window_shards: number of shards whose samples are shuffled and packed together
    """

    def __init__(
        self, source: str, shards: np.ndarray, lengths: np.ndarray, max_seq_len: int, window_shards: int, seed: int
    ) -> None:
        self.shards, self.lengths = shards, lengths
        self.max_seq_len, self.window_shards = max_seq_len, window_shards
        self._seed = (seed, zlib.crc32(source.encode()))

    @property
    def windows(self) -> int:
        """Number of windows in an epoch."""
        return -(-len(self.shards) // self.window_shards)

    def window_of(self, epoch: int, window: int) -> np.ndarray:
        """The shards of a window: rows of `self.shards`."""
        order = np.random.default_rng((*self._seed, _SHARDS, epoch)).permutation(len(self.shards))
        return self.shards[order[window * self.window_shards : (window + 1) * self.window_shards]]

    def rows(self, epoch: int, window: int) -> WindowRows:
        """The rows of a window.

        A sample longer than a row gets a row of its own, which keeps the leading turns that fit. A sample whose first
        turn does not fit is skipped.
        """
        rng = np.random.default_rng((*self._seed, _SAMPLES, epoch, window))
        parts = [np.arange(first, first + count) for first, count in self.window_of(epoch, window)]
        samples, lengths = fitting(np.concatenate(parts), self.lengths, self.max_seq_len)
        permutation = rng.permutation(len(samples))
        samples, lengths = samples[permutation], lengths[permutation]
        priorities = lengths + rng.uniform(0, _jitter(len(lengths)) * self.max_seq_len, len(lengths))
        packed, starts = best_fit(lengths, priorities, self.max_seq_len)
        return WindowRows(samples[packed], starts, rng.permutation(len(starts) - 1))


def _jitter(samples: int) -> float:
    """Amplitude, as a share of a row, of the noise added to lengths before samples are packed in decreasing order.

    Without noise, a sample would share its row with much the same partners in every epoch. 1/16 costs 0.1 % of the
    positions. Windows of fewer samples need more noise, until their order is random."""
    return max(1 / 16, 64 / max(samples, 1))


def fitting(samples: np.ndarray, lengths: np.ndarray, max_seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """The `samples` whose first turn fits into a row, and the number of positions that each takes there."""
    whole, first_turn = lengths[0][samples], lengths[1][samples]
    fit = first_turn <= max_seq_len
    return samples[fit], np.minimum(whole[fit], max_seq_len)


def best_fit(lengths: np.ndarray, priorities: np.ndarray, max_seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs samples into rows: by decreasing priority, each into the fullest row with room for it, or into a new row.

    lengths:    int [n], each at most `max_seq_len`
    priorities: [n]

    Returns the samples row by row, int64 [n], in their given order within a row; and the start of each row in it,
    int64 [rows + 1].
    """
    rows_with: list[list[int]] = [[] for _ in range(max_seq_len + 1)]  # rows by their number of free positions
    spaces = 0  # bit s is set if `rows_with[s]` is not empty: the best fit is the lowest set bit from `length` on
    turn = np.argsort(-priorities, kind="stable")
    rows, count = [], 0
    for length in lengths[turn].tolist():
        if wide := spaces >> length:
            space = length + (wide & -wide).bit_length() - 1
            row = rows_with[space].pop()
            if not rows_with[space]:
                spaces ^= 1 << space
        else:
            space, row = max_seq_len, count
            count += 1
        rows_with[space - length].append(row)
        spaces |= 1 << (space - length)
        rows.append(row)
    row_of = np.empty(len(rows), dtype=np.int64)
    row_of[turn] = rows
    starts = np.concatenate([[0], np.cumsum(np.bincount(row_of))]).astype(np.int64)
    return np.argsort(row_of, kind="stable"), starts
