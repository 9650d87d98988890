"""The endless stream of training rows, over windows, epochs and sources, and its one small cursor.

An optimizer step takes the next `global_batch_size` rows of the stream, whatever window or epoch they belong to. The
source of a row is drawn by weight from (seed, number of the row in the stream); each source goes through its own
epochs. A
source that has finished its `max_epochs` leaves the mixture, the others share its weight in proportion to theirs; when
all have finished, the stream ends, in the middle of a step if need be.

Where the stream stands is the cursor, plain values for a checkpoint:

    {"step": steps taken, "rows": rows taken, "sources": {name: [epoch, window, row]}}

with each source's *next* row. Every rank plans the same stream, in its main process, and hands its workers only what
they are to build (`StepSpec`); the cursor after a step travels with the step, so that prefetching cannot skew it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from csm.data.plan import EpochPlan, WindowRows

Cursor = dict[str, Any]

_DRAWS = 4096  # draws of sources are made in blocks: a generator for each row would cost more than the row's plan
_MIXTURE = 2  # part of the seed; 0 and 1 are the plan's


@dataclass(frozen=True)
class MixtureSource:
    """One source of the mixture, as configured. Its plan must hold at least one row an epoch."""

    plan: EpochPlan
    weight: float = 1.0
    max_epochs: int | None = None  # None: for ever


class SourceStream:
    """The rows of one source, from a place on. Stands at its next row at all times, or at its end."""

    def __init__(self, source: MixtureSource, place: Sequence[int] = (0, 0, 0)) -> None:
        self.source = source
        self.epoch, self.window, self.row = place
        self._rows: WindowRows | None = None
        self._settle()

    @property
    def place(self) -> list[int]:
        return [self.epoch, self.window, self.row]

    @property
    def finished(self) -> bool:
        return self.source.max_epochs is not None and self.epoch >= self.source.max_epochs

    def take(self) -> np.ndarray:
        """Sample numbers of the next row: int64 [n]."""
        samples = self._rows[self.row]
        self.row += 1
        self._settle()
        return samples

    def _settle(self) -> None:
        """Goes on to the next window while the current one has no row left."""
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
    """The mixture of sources."""

    def __init__(self, sources: dict[str, SourceStream], seed: int, rows: int = 0) -> None:
        self.sources = sources
        self.rows = rows  # taken so far
        self._seed = seed
        self._names = list(sources)
        self._draws: tuple[int, np.ndarray] | None = None

    @property
    def finished(self) -> bool:
        return all(source.finished for source in self.sources.values())

    def take(self) -> tuple[str, np.ndarray]:
        """The next row: its source's name and sample numbers. Not to be called when finished."""
        active = [name for name in self._names if not self.sources[name].finished]
        shares = np.cumsum([self.sources[name].source.weight for name in active])
        chosen = np.searchsorted(shares / shares[-1], self._draw(self.rows), side="right")
        name = active[min(int(chosen), len(active) - 1)]
        self.rows += 1
        return name, self.sources[name].take()

    def _draw(self, row: int) -> float:
        """Uniform in [0, 1), a function of (seed, row)."""
        block, place = divmod(row, _DRAWS)
        if self._draws is None or self._draws[0] != block:
            self._draws = (block, np.random.default_rng((self._seed, _MIXTURE, block)).random(_DRAWS))
        return float(self._draws[1][place])


@dataclass(frozen=True)
class RowSpec:
    """One row to build. The empty rows of a last step have no samples."""

    index: int  # number of the row in the optimizer step, over all ranks
    source: str
    samples: np.ndarray  # int64 [n]


@dataclass(frozen=True)
class StepSpec:
    """What one rank is to build for one optimizer step."""

    step: int
    rows: list[RowSpec]  # of this rank, microbatch after microbatch
    cursor: Cursor  # of the stream after this step, the same on all ranks


@dataclass(frozen=True)
class RankShare:
    """How the rows of a step are dealt: `micro_batch_size` consecutive ones to each rank in turn.

    Raises ValueError if the rows of a step do not divide evenly.
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
        """This rank's rows of a step, by their number in the step."""
        per_pass = self.micro_batch_size
        firsts = range(self.rank * per_pass, self.global_batch_size, self.world_size * per_pass)
        return [first + i for first in firsts for i in range(per_pass)]


class StepSampler(Sampler[StepSpec]):
    """Yields the StepSpec of every optimizer step from `cursor` (None: from the beginning) to the end of the stream.

    Every iteration starts at `cursor` again; nothing is kept between iterations.
    """

    def __init__(self, sources: dict[str, MixtureSource], share: RankShare, seed: int, cursor: Cursor | None) -> None:
        self.sources, self.share, self.seed = sources, share, seed
        self.cursor: Cursor = cursor or {"step": 0, "rows": 0, "sources": {}}

    def __iter__(self) -> Iterator[StepSpec]:
        places = self.cursor["sources"]
        streams = {name: SourceStream(source, places.get(name, (0, 0, 0))) for name, source in self.sources.items()}
        stream = RowStream(streams, self.seed, self.cursor["rows"])
        step = self.cursor["step"]
        mine = self.share.rows()
        while not stream.finished:
            taken = []
            while len(taken) < self.share.global_batch_size and not stream.finished:
                taken.append(stream.take())
            nothing = (next(iter(self.sources)), np.empty(0, dtype=np.int64))
            rows = [RowSpec(i, *(taken[i] if i < len(taken) else nothing)) for i in mine]
            step += 1
            places = {name: source.place for name, source in streams.items()}
            yield StepSpec(step - 1, rows, {"step": step, "rows": stream.rows, "sources": places})


def is_finished(cursor: Cursor, sources: dict[str, MixtureSource]) -> bool:
    """Whether a stream of `sources` has no row left after `cursor`."""
    return all(
        source.max_epochs is not None and cursor["sources"].get(name, (0,))[0] >= source.max_epochs
        for name, source in sources.items()
    )
