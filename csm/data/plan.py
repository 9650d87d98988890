"""Which samples make up which row: an epoch of one dataset, planned window by window.

    permute the shards by (seed, source, epoch) -> windows of `window_shards` shards
    -> permute the window's samples -> next-fit into rows -> permute the rows, by (seed, source, epoch, window)

A window is a pure function of these numbers and of the samples' lengths, so nothing before it need be planned to find
it again, and an epoch is never planned as a whole. Reading a window touches `window_shards` shards and no others.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

_SHARDS, _SAMPLES = 0, 1  # what a permutation is of: part of its seed


@dataclass(frozen=True)
class WindowRows:
    """The rows of one window; item r = int64 sample numbers of row r, in packing order.

    samples: int64 [n]
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
    max_positions: length of a row
    """

    def __init__(
        self, source: str, shards: np.ndarray, lengths: np.ndarray, max_positions: int, window_shards: int, seed: int
    ) -> None:
        self.shards, self.lengths = shards, lengths
        self.max_positions, self.window_shards = max_positions, window_shards
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
        samples, lengths = fitting(np.concatenate(parts), self.lengths, self.max_positions)
        permutation = rng.permutation(len(samples))
        samples, lengths = samples[permutation], lengths[permutation]
        starts = next_fit(lengths, self.max_positions)
        return WindowRows(samples, starts, rng.permutation(len(starts) - 1))


def fitting(samples: np.ndarray, lengths: np.ndarray, max_positions: int) -> tuple[np.ndarray, np.ndarray]:
    """Those of `samples` whose first turn fits into a row, and how many positions of a row each takes."""
    whole, first_turn = lengths[0][samples], lengths[1][samples]
    fit = first_turn <= max_positions
    return samples[fit], np.minimum(whole[fit], max_positions)


def next_fit(lengths: np.ndarray, max_positions: int) -> np.ndarray:
    """Cuts samples, in their order, into rows of at most `max_positions`: int64 [rows + 1], where each row begins.

    lengths: int [n], each at most `max_positions`.
    """
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    starts = [0]
    while starts[-1] < len(ends):
        used = ends[starts[-1] - 1] if starts[-1] else 0
        starts.append(bisect_right(ends, used + max_positions, lo=starts[-1]))
    return np.array(starts, dtype=np.int64)
