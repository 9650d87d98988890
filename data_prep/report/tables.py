"""Totals of the tables of a dataset, for its report: ledger, rejects, duplicates, stage times.

All but the last are read in batches, so that memory holds sums and not rows. A missing table gives None.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.packing.ledger import KEPT
from data_prep.packing.pack import DUPLICATES_FILE, LEDGER_FILE, REJECTS_FILE, STAGES_FILE
from data_prep.records import StageTime
from data_prep.tables import read_rows

STAGES = ("plan", "vad", "diarize", "transcribe", "turns", "score", "encode", "pack")
"""Stages, in order."""

EXAMPLES = 3  # of each reason
CLUSTERS = 10  # of duplicates
_BATCH_ROWS = 1 << 18
_COMPACT_ROWS = 1 << 21
_EXAMPLE_ROWS = 200  # per batch and reason, searched for examples


class GroupedSums:
    """Sums (or maxima) by group over any number of tables.

    keys:   columns to group by
    values: column -> "sum" or "max"
    """

    def __init__(self, keys: list[str], values: dict[str, str]) -> None:
        self._keys, self._values = keys, values
        self._parts: list[pa.Table] = []
        self._compacted = 0  # rows after the last compaction

    def add(self, table: pa.Table) -> None:
        grouped = self._group(table.select([*self._keys, *self._values]))
        # The dictionaries of several tables differ, so they cannot be grouped together.
        for place, entry in enumerate(grouped.schema):
            if pa.types.is_dictionary(entry.type):
                column = grouped[entry.name].cast(entry.type.value_type)
                grouped = grouped.set_column(place, entry.name, column)
        self._parts.append(grouped)
        if sum(len(part) for part in self._parts) > 2 * self._compacted + _COMPACT_ROWS:
            self._parts = [self.result()]
            self._compacted = len(self._parts[0])

    def result(self) -> pa.Table:
        """One row per group: keys, then values, under the names of their columns."""
        return self._group(pa.concat_tables(self._parts))

    def _group(self, table: pa.Table) -> pa.Table:
        grouped = table.group_by(self._keys, use_threads=False).aggregate(list(self._values.items()))
        names = [f"{column}_{how}" for column, how in self._values.items()]
        return grouped.select([*self._keys, *names]).rename_columns([*self._keys, *self._values])


def batches(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    """Columns of a parquet file, in batches of rows; strings are dictionary-encoded.

    Raises ValueError if the file is damaged or lacks a column.
    """
    try:
        with pq.ParquetFile(path) as file:
            strings = [name for name in columns if pa.types.is_string(file.schema_arrow.field(name).type)]
        with pq.ParquetFile(path, read_dictionary=strings) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
                yield pa.Table.from_batches([batch]).unify_dictionaries()
    except (pa.ArrowException, KeyError, OSError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read ({problem}); restore it, or move it away") from error


# ------------------------------------------------------------------------------------------------- the ledger


@dataclass
class Loss:
    """Track time lost in a stage for a reason."""

    stage: str
    reason: str
    recordings: int  # affected
    ms: int


@dataclass
class Part:
    """The outcome of a part of the input: `ms_in` = `ms_kept` + all of `lost`, exactly."""

    ms_in: int = 0
    ms_kept: int = 0
    lost: dict[str, int] = field(default_factory=dict)  # stage -> ms

    def add(self, stage: str, reason: str, ms: int) -> None:
        self.ms_in += ms
        if (stage, reason) == KEPT:
            self.ms_kept += ms
        else:
            self.lost[stage] = self.lost.get(stage, 0) + ms


@dataclass
class Flow:
    """Track time from input to dataset, in milliseconds; a recording of two tracks counts twice."""

    recordings: int
    whole: Part
    losses: list[Loss]  # by stage, then the largest first
    sources: dict[str, Part]  # the largest first
    langs: dict[str, Part]


def read_flow(folder: Path) -> Flow | None:
    """Sums of ledger.parquet."""
    path = folder / LEDGER_FILE
    if not path.is_file():
        return None
    keys = ["source", "lang", "stage", "reason"]
    sums = GroupedSums(keys, {"ms": "sum", "rows": "sum"})
    recordings = GroupedSums(["recording"], {"rows": "sum"})
    for table in batches(path, [*keys, "recording", "ms"]):
        table = table.append_column("rows", pa.repeat(pa.scalar(1, pa.int64()), len(table)))
        sums.add(table)
        recordings.add(table)
    whole = Part()
    sources: dict[str, Part] = defaultdict(Part)
    langs: dict[str, Part] = defaultdict(Part)
    losses: dict[tuple[str, str], Loss] = {}
    for row in sums.result().to_pylist():
        stage, reason, ms = row["stage"], row["reason"], row["ms"]
        for part in (whole, sources[row["source"]], langs[row["lang"]]):
            part.add(stage, reason, ms)
        if (stage, reason) != KEPT:
            loss = losses.setdefault((stage, reason), Loss(stage, reason, 0, 0))
            loss.ms += ms
            loss.recordings += row["rows"]
    order = sorted(losses.values(), key=lambda loss: (*stage_order(loss.stage), -loss.ms, loss.reason))
    return Flow(len(recordings.result()), whole, order, _largest_first(sources), _largest_first(langs))


def stage_order(stage: str) -> tuple[int, str]:
    return (STAGES.index(stage) if stage in STAGES else len(STAGES), stage)


def _largest_first(parts: dict[str, Part]) -> dict[str, Part]:
    return dict(sorted(parts.items(), key=lambda item: (-item[1].ms_in, item[0])))


# ------------------------------------------------------------------------------------------------- rejects


@dataclass
class RejectionGroup:
    """Rejections for one reason in one stage."""

    stage: str
    reason: str
    recordings: int  # whole recordings, or their parts outside all listed turns
    turns: int
    examples: list[dict[str, Any]]  # audio, turn, start, end, message; of different recordings if possible


def read_rejections(folder: Path) -> list[RejectionGroup] | None:
    """Groups of rejects.parquet, by stage, then the largest first."""
    path = folder / REJECTS_FILE
    if not path.is_file():
        return None
    groups: dict[tuple[str, str], RejectionGroup] = {}
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)  # recording -> example
    for table in batches(path, ["stage", "reason", "recording", "audio", "turn", "start", "end", "message"]):
        counted = table.group_by(["stage", "reason"], use_threads=False)
        for row in counted.aggregate([("turn", "count"), ([], "count_all")]).to_pylist():
            key = (row["stage"], row["reason"])
            group = groups.setdefault(key, RejectionGroup(*key, 0, 0, []))
            group.turns += row["turn_count"]
            group.recordings += row["count_all"] - row["turn_count"]
            if len(found[key]) < EXAMPLES:
                mine = pc.and_(pc.equal(table["stage"], key[0]), pc.equal(table["reason"], key[1]))
                for example in table.filter(mine).slice(0, _EXAMPLE_ROWS).to_pylist():
                    if len(found[key]) < EXAMPLES:
                        found[key].setdefault(example["recording"], example)
    for key, group in groups.items():
        group.examples = [
            {name: example[name] for name in ("audio", "turn", "start", "end", "message")}
            for example in found[key].values()
        ]
    return sorted(groups.values(), key=lambda group: (*stage_order(group.stage), -_size(group), group.reason))


def _size(group: RejectionGroup) -> int:
    return group.turns + group.recordings


# ----------------------------------------------------------------------------------------------- duplicates


@dataclass
class Cluster:
    """A recording or turn that is kept, and its duplicates."""

    recording: str
    turn: int | None
    copies: int
    similarity: float  # the lowest
    examples: list[str]  # recordings of copies


@dataclass
class Duplicates:
    recordings: dict[str, int]  # reason -> whole recordings that are duplicates
    turns: dict[str, int]  # reason -> turns that are
    clusters: list[Cluster]  # those with the most copies


def read_duplicates(folder: Path) -> Duplicates | None:
    """Counts and largest clusters of duplicates.parquet."""
    path = folder / DUPLICATES_FILE
    if not path.is_file():
        return None
    recordings: Counter[str] = Counter()
    turns: Counter[str] = Counter()
    sizes: Counter[tuple[str, int | None]] = Counter()
    kept = ["kept_recording", "kept_turn"]
    for table in batches(path, ["reason", "turn", *kept]):
        for row in (
            table.group_by("reason", use_threads=False).aggregate([("turn", "count"), ([], "count_all")]).to_pylist()
        ):
            turns[row["reason"]] += row["turn_count"]
            recordings[row["reason"]] += row["count_all"] - row["turn_count"]
        for row in table.group_by(kept, use_threads=False).aggregate([([], "count_all")]).to_pylist():
            sizes[row["kept_recording"], row["kept_turn"]] += row["count_all"]
    largest = sorted(sizes.items(), key=lambda item: (-item[1], item[0][0], item[0][1] or 0))[:CLUSTERS]
    clusters = {key: Cluster(*key, size, 1.0, []) for key, size in largest}
    for table in batches(path, [*kept, "recording", "similarity"]):
        mine = pc.is_in(table["kept_recording"], pa.array([recording for recording, _ in clusters]))
        for row in table.filter(mine).to_pylist():
            cluster = clusters.get((row["kept_recording"], row["kept_turn"]))
            if cluster:
                cluster.similarity = min(cluster.similarity, row["similarity"])
                if len(cluster.examples) < EXAMPLES and row["recording"] not in cluster.examples:
                    cluster.examples.append(row["recording"])
    return Duplicates(_nonzero(recordings), _nonzero(turns), list(clusters.values()))


def _nonzero(counts: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in counts.most_common() if count}


# ----------------------------------------------------------------------------------------------- throughput


@dataclass
class StageRate:
    """The time of a stage over all units; seconds of several workers add up."""

    stage: str
    backends: list[str]
    devices: list[str]
    units: int
    audio_seconds: float
    wall_seconds: float
    cpu_seconds: float

    @property
    def real_time(self) -> float | None:
        """Seconds of audio per second of one worker."""
        return self.audio_seconds / self.wall_seconds if self.wall_seconds else None

    @property
    def real_time_cpu(self) -> float | None:
        """Seconds of audio per second of one processor."""
        return self.audio_seconds / self.cpu_seconds if self.cpu_seconds else None


def read_rates(folder: Path) -> list[StageRate] | None:
    """Throughput by stage, from stages.parquet."""
    path = folder / STAGES_FILE
    if not path.is_file():
        return None
    rates: dict[str, StageRate] = {}
    for row in read_rows(path, StageTime):
        rate = rates.setdefault(row.stage, StageRate(row.stage, [], [], 0, 0.0, 0.0, 0.0))
        rate.units += 1
        rate.audio_seconds += row.audio_seconds
        rate.wall_seconds += row.wall_seconds
        rate.cpu_seconds += row.cpu_seconds
        rate.backends = sorted({*rate.backends, row.backend})
        rate.devices = sorted({*rate.devices, row.device})
    return sorted(rates.values(), key=lambda rate: stage_order(rate.stage))
