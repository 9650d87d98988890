"""Which samples make up which row: an epoch of one dataset, planned window by window.

    permute the shards by (seed, source, epoch) -> windows of `window_shards` shards
    -> permute the window's samples -> pack them into rows by best fit, roughly the longest first
    -> permute the rows, by (seed, source, epoch, window)

A window is a pure function of these numbers and of the samples' lengths, so nothing before it need be planned to find
it again, and an epoch is never planned as a whole. Reading a window touches `window_shards` shards and no others.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

ORDER = 2
"""Version of the order of rows: to be raised with every change that makes the same seed and data give others, since a
checkpoint's place in the data would then point elsewhere. Checkpoints hold it (those without one are of order 1)."""

_SHARDS, _SAMPLES = 0, 1  # what a permutation is of: part of its seed


@dataclass(frozen=True)
class WindowRows:
    """The rows of one window; item r = int64 sample numbers of row r, in packing order.

    samples: int64 [n], row by row
    starts:  int64 [rows + 1], where each packed row begins in `samples`
    order:   int64 [rows], packed rows in the order they are trained on
    """

    samples: np.ndarray
    starts: np.ndarray
    order: np.ndarray

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, row: int) -> np.ndarray:
        packed = self.order[row]
        return self.samples[self.starts[packed] : self.starts[packed + 1]]


class EpochPlan:
    """Every epoch of one source.

    source:        the source's name, which its order depends on (and on no other source)
    shards:        int64 [m, 2], first sample number and number of samples of each shard of the split
    lengths:       int32 [2, samples of the dataset] in positions, see csm/data/lengths.py
    max_seq_len: length of a row
    """

    def __init__(
        self, source: str, shards: np.ndarray, lengths: np.ndarray, max_seq_len: int, window_shards: int, seed: int
    ) -> None:
        self.shards, self.lengths = shards, lengths
        self.max_seq_len, self.window_shards = max_seq_len, window_shards
        self._seed = (seed, zlib.crc32(source.encode()))

    @property
    def windows(self) -> int:
        """Windows of an epoch."""
        return -(-len(self.shards) // self.window_shards)

    def window_of(self, epoch: int, window: int) -> np.ndarray:
        """The shards of a window: rows of `self.shards`."""
        order = np.random.default_rng((*self._seed, _SHARDS, epoch)).permutation(len(self.shards))
        return self.shards[order[window * self.window_shards : (window + 1) * self.window_shards]]

    def rows(self, epoch: int, window: int) -> WindowRows:
        """The rows of a window. A sample longer than a row takes a row of its own (of which it keeps its leading turns
        that fit); one whose first turn does not fit is in no row."""
        rng = np.random.default_rng((*self._seed, _SAMPLES, epoch, window))
        parts = [np.arange(first, first + count) for first, count in self.window_of(epoch, window)]
        samples, lengths = fitting(np.concatenate(parts), self.lengths, self.max_seq_len)
        permutation = rng.permutation(len(samples))
        samples, lengths = samples[permutation], lengths[permutation]
        priorities = lengths + rng.uniform(0, _jitter(len(lengths)) * self.max_seq_len, len(lengths))
        packed, starts = best_fit(lengths, priorities, self.max_seq_len)
        return WindowRows(samples[packed], starts, rng.permutation(len(starts) - 1))


def _jitter(samples: int) -> float:
    """Samples are packed by falling length plus up to this many rows' length, by chance. Strictly by length, a sample
    would meet much the same partners in every epoch. 1/16 costs 0.1 % of the positions; the fewer samples there are,
    the more it takes, until their lengths do not matter any more."""
    return max(1 / 16, 64 / max(samples, 1))


def fitting(samples: np.ndarray, lengths: np.ndarray, max_seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Those of `samples` whose first turn fits into a row, and how many positions of a row each takes."""
    whole, first_turn = lengths[0][samples], lengths[1][samples]
    fit = first_turn <= max_seq_len
    return samples[fit], np.minimum(whole[fit], max_seq_len)


def best_fit(lengths: np.ndarray, priorities: np.ndarray, max_seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs samples into rows of at most `max_seq_len`: by falling priority, each into the fullest row with room for
    it, else into a new one. (int64 [n], the samples row by row, within a row in their given order; int64 [rows + 1],
    where each row begins there.)

    lengths:    int [n], each at most `max_seq_len`
    priorities: [n]
    """
    rows_with: list[list[int]] = [[] for _ in range(max_seq_len + 1)]  # rows by the positions left in them
    spaces = 0  # bit s is set if `rows_with[s]` is not empty
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
