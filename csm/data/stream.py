"""The stream of training rows over windows, epochs and sources, with a small cursor to resume from.

An optimizer step takes the next `global_batch_size` rows of the stream, across the ends of windows and epochs. The
source of a row is drawn by weight from (seed, number of the row in the stream), and each source has its own epochs.
Weights may move over the first steps of the run; they too are a function of the number of the row. A
source that has finished its `max_epochs` leaves the mixture, and the weights of the others are normalized again. When
all have finished, the stream ends, possibly in the middle of a step.

The state of the stream is the cursor, plain values for a checkpoint:

    {"step": steps taken, "rows": rows taken, "sources": {name: [epoch, window, row]}}

with the *next* row of each source. Every rank plans the same stream in its main process and sends its workers only the
rows they have to build (`StepSpec`). The cursor after a step travels with the step, so prefetching cannot skew it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from csm.data.plan import EpochPlan, WindowRows

Cursor = dict[str, Any]

_DRAWS = 4096  # sources are drawn in blocks: a generator for each row would cost more than planning the row
_MIXTURE = 2  # part of the seed; the plan uses 0 and 1


@dataclass(frozen=True)
class MixtureSource:
    """One source of the mixture, as configured. Its plan must have at least one row in each epoch."""

    plan: EpochPlan
    weight: float = 1.0
    max_epochs: int | None = None  # None: no limit
    final_weight: float | None = None  # None: `weight`

    def weight_at(self, progress: float) -> float:
        """Weight after the share `progress` (0 to 1) of the rows over which weights move."""
        final = self.weight if self.final_weight is None else self.final_weight
        return self.weight + progress * (final - self.weight)


class SourceStream:
    """The rows of one source from `place` on: [epoch, window, row] of the next row."""

    def __init__(self, source: MixtureSource, place: Sequence[int] = (0, 0, 0)) -> None:
        self.source = source
        self.epoch, self.window, self.row = place
        self._rows: WindowRows | None = None  # of the current window; None once finished
        self._skip_finished_windows()

    @property
    def place(self) -> list[int]:
        return [self.epoch, self.window, self.row]

    @property
    def finished(self) -> bool:
        return self.source.max_epochs is not None and self.epoch >= self.source.max_epochs

    def take(self) -> np.ndarray:
        """Sample numbers of the next row: int64 [n]. Must not be called when finished."""
        assert self._rows is not None, "finished"
        samples = self._rows[self.row]
        self.row += 1
        self._skip_finished_windows()
        return samples

    def _skip_finished_windows(self) -> None:
        """Advances to the next window that has a row left, or to the end."""
        plan = self.source.plan
        while not self.finished:
            if self._rows is None:
                self._rows = plan.rows(self.epoch, self.window)
            if self.row < len(self._rows):
                return
            self._rows, self.row, self.window = None, 0, self.window + 1
            if self.window >= plan.windows:
                self.window, self.epoch = 0, self.epoch + 1


class RowStream:
    """The rows of a mixture of sources. moving_rows: rows over which weights move to their final ones."""

    def __init__(self, sources: dict[str, SourceStream], seed: int, rows: int = 0, moving_rows: int = 0) -> None:
        self.sources, self.moving_rows = sources, moving_rows
        self.rows = rows  # taken so far
        self._seed = seed
        self._names = list(sources)
        self._draws: tuple[int, np.ndarray] | None = None

    @property
    def finished(self) -> bool:
        return all(source.finished for source in self.sources.values())

    def take(self) -> tuple[str, np.ndarray]:
        """The next row: name of its source, and its sample numbers. Must not be called when finished."""
        active = [name for name in self._names if not self.sources[name].finished]
        progress = min(1.0, self.rows / self.moving_rows) if self.moving_rows else 0.0
        shares = np.cumsum([self.sources[name].source.weight_at(progress) for name in active])
        chosen = np.searchsorted(shares / shares[-1], self._draw(self.rows), side="right")
        name = active[min(int(chosen), len(active) - 1)]
        self.rows += 1
        return name, self.sources[name].take()

    def _draw(self, row: int) -> float:
        """A uniform number in [0, 1), as a function of (seed, row)."""
        block, place = divmod(row, _DRAWS)
        if self._draws is None or self._draws[0] != block:
            self._draws = (block, np.random.default_rng((self._seed, _MIXTURE, block)).random(_DRAWS))
        return float(self._draws[1][place])


@dataclass(frozen=True)
class RowSpec:
    """A row to build. The empty rows of the last step have no samples."""

    index: int  # number of the row in the optimizer step, over all ranks
    source: str
    samples: np.ndarray  # int64 [n]


@dataclass(frozen=True)
class StepSpec:
    """The rows that one rank has to build for one optimizer step."""

    step: int
    rows: list[RowSpec]  # of this rank, microbatch after microbatch
    cursor: Cursor  # of the stream after this step, the same on all ranks


@dataclass(frozen=True)
class RankShare:
    """The share of one rank in every step: ranks take `micro_batch_size` consecutive rows in turn.

    Raises ValueError if the rows of a step do not divide evenly among the ranks.
    """

    global_batch_size: int
    micro_batch_size: int
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if self.global_batch_size % (self.micro_batch_size * self.world_size):
            raise ValueError(
                f"data.global_batch_size={self.global_batch_size} is not a multiple of data.micro_batch_size="
                f"{self.micro_batch_size} x {self.world_size} ranks"
            )

    def rows(self) -> list[int]:
        """Numbers, within a step, of this rank's rows."""
        per_pass = self.micro_batch_size
        firsts = range(self.rank * per_pass, self.global_batch_size, self.world_size * per_pass)
        return [first + i for first in firsts for i in range(per_pass)]


class StepSampler(Sampler[StepSpec]):
    """Yields the StepSpec of every optimizer step from `cursor` (None: from the beginning) to the end of the stream.

    Every iteration starts at `cursor` again. mix_steps: over which the weights of the sources move.
    """

    def __init__(
        self,
        sources: dict[str, MixtureSource],
        share: RankShare,
        seed: int,
        cursor: Cursor | None,
        mix_steps: int = 0,
    ) -> None:
        self.sources, self.share, self.seed, self.mix_steps = sources, share, seed, mix_steps
        self.cursor: Cursor = cursor or {"step": 0, "rows": 0, "sources": {}}

    def __iter__(self) -> Iterator[StepSpec]:
        places = self.cursor["sources"]
        streams = {name: SourceStream(source, places.get(name, (0, 0, 0))) for name, source in self.sources.items()}
        moving_rows = self.mix_steps * self.share.global_batch_size
        stream = RowStream(streams, self.seed, self.cursor["rows"], moving_rows)
        step = self.cursor["step"]
        mine = self.share.rows()
        while not stream.finished:
            taken: list[tuple[str, np.ndarray]] = []
            while len(taken) < self.share.global_batch_size and not stream.finished:
                taken.append(stream.take())
            empty = (next(iter(self.sources)), np.empty(0, dtype=np.int64))
            rows = [RowSpec(i, *(taken[i] if i < len(taken) else empty)) for i in mine]
            step += 1
            places = {name: source.place for name, source in streams.items()}
            yield StepSpec(step - 1, rows, {"step": step, "rows": stream.rows, "sources": places})


def is_finished(cursor: Cursor, sources: dict[str, MixtureSource]) -> bool:
    """Whether the stream of `sources` has no row left after `cursor`."""
    return all(
        source.max_epochs is not None and cursor["sources"].get(name, (0,))[0] >= source.max_epochs
        for name, source in sources.items()
    )
