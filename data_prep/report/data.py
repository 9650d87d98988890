"""Statistics of a dataset: its whole index, and the codes of a random part of its conversations.

Totals, positions and the counts of turns and speakers are exact: they come from the index, read in batches. Times and
measures (turns.py) and codes are read from at most `MAX_CONVERSATIONS` samples, drawn from the seed (all of them in a
smaller dataset). Memory use is about 20 bytes per conversation and 40 bytes per turn read, for any number of shards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from csm.config import DataConfig
from csm.data.dataset import ShardedDataset
from csm.data.lengths import fit, open_lengths
from csm.data.plan import EpochPlan
from csm.progress import track
from data_prep.packing.conversation import BYTES_PER_TOKEN, TURN_OVERHEAD
from data_prep.report.tables import GroupedSums, batches

MAX_CONVERSATIONS = 200_000  # read for times and measures
MAX_CODE_FRAMES = 4_000_000  # read for the codebooks: 89 hours at 12.5 frames/s
MAX_WINDOWS = 4  # of an epoch, packed as training packs them

ROW_POSITIONS = DataConfig().max_seq_len
_WINDOW_SHARDS = DataConfig().window_shards


@dataclass
class Distribution:
    """The distribution of a measure. Values beyond the outer edges count in the outermost bins."""

    name: str
    unit: str
    of: str  # unit of `count`: "turns" or "conversations"
    count: int
    mean: float
    quantiles: dict[str, float]  # p1 p5 p25 p50 p75 p95 p99
    edges: list[float]
    counts: list[int]
    below: int  # values of the first bin that lie below its edge
    above: int  # values of the last bin that lie above its edge


def distribution(name: str, unit: str, of: str, values: np.ndarray, edges: np.ndarray) -> Distribution | None:
    """None if there are no values; NaN values are ignored."""
    values = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    if not len(values):
        return None
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    percents = (1, 5, 25, 50, 75, 95, 99)
    quantiles = dict(zip((f"p{p}" for p in percents), np.percentile(values, percents).tolist(), strict=True))
    return Distribution(
        name, unit, of, len(values), float(values.mean(dtype=np.float64)), quantiles, edges.tolist(), counts.tolist(),
        int((values < edges[0]).sum()), int((values > edges[-1]).sum()),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ the index


@dataclass
class Contents:
    """Totals over all conversations."""

    conversations: int
    turns: int
    frames: int
    loss_frames: int  # of the turns that are predicted
    hours: float
    recordings: int
    speakers: int  # sum over recordings of the largest number of speakers in a conversation
    one_speaker: int  # conversations with a single speaker
    groups: int
    largest_group: str
    largest_group_frames: int
    groups_on_both_sides: int  # in train and in val
    splits: dict[str, dict[str, Any]]
    sources: dict[str, dict[str, Any]]
    langs: dict[str, dict[str, Any]]
    licences: dict[str, dict[str, Any]]


@dataclass
class Columns:
    """Columns with one entry per conversation, in the order of the index."""

    turns: np.ndarray  # int32
    speakers: np.ndarray  # int32
    positions: np.ndarray  # int32, estimated


def read_index(dataset: ShardedDataset) -> tuple[Contents, Columns]:
    """Reads the whole index, in batches. Raises ValueError if it is damaged."""
    info, total = dataset.info, len(dataset)
    found = Columns(*(np.zeros(total, np.int32) for _ in range(3)))
    groups = GroupedSums(["group", "split"], {"n_frames": "sum"})
    recordings = GroupedSums(["recording"], {"n_speakers": "max"})
    names = ["recording", "group", "split", "n_frames", "n_turns", "n_speakers", "loss_frames", "text_bytes"]
    loss_frames = start = 0
    for table in batches(dataset.local_path / info.index.name, names):
        groups.add(table)
        recordings.add(table)
        frames, turns, text = (table[name].to_numpy() for name in ("n_frames", "n_turns", "text_bytes"))
        part = slice(start, start + len(table))
        found.turns[part], found.speakers[part] = turns, table["n_speakers"].to_numpy()
        found.positions[part] = np.ceil(text / BYTES_PER_TOKEN) + TURN_OVERHEAD * turns + frames
        loss_frames += pc.sum(table["loss_frames"]).as_py() or 0
        start = part.stop
    frames_of: dict[str, int] = {}
    splits_of: dict[str, set[str]] = {}
    for row in groups.result().to_pylist():
        frames_of[row["group"]] = frames_of.get(row["group"], 0) + row["n_frames"]
        splits_of.setdefault(row["group"], set()).add(row["split"])
    largest = min(frames_of, key=lambda name: (-frames_of[name], name))
    speakers = recordings.result()["n_speakers"]
    totals = info.totals.values()
    frames = sum(split["frames"] for split in totals)
    return Contents(
        conversations=total,
        turns=sum(split["turns"] for split in totals),
        frames=frames,
        loss_frames=loss_frames,
        hours=frames / dataset.codec.frame_rate / 3600,
        recordings=len(speakers),
        speakers=pc.sum(speakers).as_py(),
        one_speaker=int((found.speakers == 1).sum()),
        groups=len(frames_of),
        largest_group=largest,
        largest_group_frames=frames_of[largest],
        groups_on_both_sides=sum(len(splits) > 1 for splits in splits_of.values()),
        splits=info.totals,
        sources=info.sources,
        langs=info.langs,
        licences=info.licences,
    ), found


# --------------------------------------------------------------------------------------------- positions


@dataclass
class RowFill:
    """How well the conversations of a split fill rows of `ROW_POSITIONS`, packed as in training."""

    split: str
    exact: bool  # lengths were counted by a tokenizer, not estimated
    tokenizer: str | None  # identity of that tokenizer
    positions: int  # of all conversations in all splits
    rows: int  # that were packed
    windows: int  # that were packed
    windows_in_epoch: int
    efficiency: float  # share of positions that are not padding
    shortened: int  # conversations of the split longer than a row, which lose their last turns
    left_out: int  # conversations dropped because their first turn alone is longer


def measure_row_fill(dataset: ShardedDataset, columns: Columns, seed: int) -> tuple[RowFill, np.ndarray]:
    """Also returns the positions of each conversation, int32: from the dataset's lengths file, or estimated."""
    counted = sorted(dataset.local_path.glob(f"lengths-{dataset.info.fingerprint}-*.npy"))
    if counted:
        lengths = open_lengths(counted[0], len(dataset))
        tokenizer = counted[0].stem.rpartition("-")[2]
    else:
        # The index does not tell the length of the first of several turns. We assume that it fits: data preparation
        # makes a turn longer than a row a conversation of its own.
        first = np.where(columns.turns == 1, columns.positions, 1)
        lengths, tokenizer = np.stack([columns.positions, first]), None
    split = "train" if "train" in dataset.info.totals else next(iter(dataset.info.totals))
    shards = dataset.shards(split)
    plan = EpochPlan(dataset.info.source, shards, lengths, ROW_POSITIONS, _WINDOW_SHARDS, seed)
    windows = min(plan.windows, MAX_WINDOWS)
    rows = used = 0
    for window in range(windows):
        packed = plan.rows(0, window)
        rows += len(packed)
        used += int(np.minimum(lengths[0][packed.samples], ROW_POSITIONS).sum(dtype=np.int64))
    fitted = fit(shards, lengths, ROW_POSITIONS)
    return RowFill(
        split=split,
        exact=tokenizer is not None,
        tokenizer=tokenizer,
        positions=int(lengths[0].sum(dtype=np.int64)),
        rows=rows,
        windows=windows,
        windows_in_epoch=plan.windows,
        efficiency=used / (rows * ROW_POSITIONS) if rows else 0.0,
        shortened=fitted.shortened,
        left_out=len(fitted.too_long),
    ), lengths[0]


def choose(total: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """At most `count` random numbers below `total`, ascending: int64."""
    if total <= count:
        return np.arange(total)
    return np.sort(rng.choice(total, count, replace=False, shuffle=False))


# ------------------------------------------------------------------------------------------------- codebooks


@dataclass
class Level:
    """One codebook. perplexity: exp of the entropy of its codes, the effective number of entries."""

    used: int  # entries that occur
    perplexity: float


@dataclass
class Codebooks:
    """Usage of all codebooks."""

    conversations: int  # read
    frames: int
    size: int  # entries of each codebook
    levels: list[Level]


def measure_codebooks(dataset: ShardedDataset, numbers: np.ndarray, rng: np.random.Generator) -> Codebooks:
    """Counts the codes of a random subset of samples `numbers` with about `MAX_CODE_FRAMES` frames.

    Raises ValueError, naming shard and key, for a sample that cannot be read.
    """
    levels, size = dataset.codec.num_codebooks, dataset.codec.codebook_size
    mean_frames = sum(split["frames"] for split in dataset.info.totals.values()) / len(dataset)
    numbers = numbers[choose(len(numbers), math.ceil(MAX_CODE_FRAMES / mean_frames), rng)]
    offsets = (np.arange(levels) * size)[:, None]
    counts = np.zeros(levels * size, np.int64)
    frames = 0
    for number in track(numbers.tolist(), "Reading codes"):
        codes = dataset.read(number).codes
        counts += np.bincount((codes + offsets).ravel(), minlength=len(counts))
        frames += codes.shape[1]
    found = []
    for level in counts.reshape(levels, size):
        share = level[level > 0] / level.sum()
        found.append(Level(int((level > 0).sum()), float(np.exp(-(share * np.log(share)).sum()))))
    return Codebooks(len(numbers), frames, size, found)
