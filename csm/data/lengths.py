"""Lengths of all samples in positions, measured once for each tokenizer and kept in a memory-mapped file.

    lengths-<dataset fingerprint>-<tokenizer identity>.npy      int32 [2, samples]: whole conversation, its first turn
    lengths-<...>-<tokenizer identity>-<model.layout>.npy       the same, for layouts without a depth decoder

The file is stored next to the index, or in the cache folder if the dataset is read-only. A length is the number of text
tokens (BOS, "[speaker]" and EOS included), frames, and end-of-speech frames, one for each turn. Without a depth decoder
frames take as many positions as csm/arrangement.py says. Each turn is tokenized with the speaker id of its conversation
that gives the most tokens, so lengths are upper bounds however training permutes the ids.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock

from csm.arrangement import audio_positions
from csm.config import CodeLayout
from csm.data.dataset import ShardedDataset
from csm.data.folder import LocalFolder
from csm.files import write_atomically
from csm.progress import track
from csm.text import TextTokenizer

log = logging.getLogger(__name__)

_PARALLEL_FROM = 20_000  # samples; with fewer, starting processes takes longer than measuring


def load_lengths(
    dataset: ShardedDataset,
    tokenizer: TextTokenizer,
    cache_dir: Path | None,
    layout: CodeLayout = CodeLayout.depth,
) -> np.ndarray:
    """int32 [2, samples], memory-mapped; measured first if that has not been done yet.

    cache_dir: folder for the file if the dataset is remote or read-only

    If several processes start together, one measures and the others wait. Raises ValueError if the file is damaged, a
    sample cannot be read, or the dataset cannot be written to and `cache_dir` is None.
    """
    suffix = "" if layout is CodeLayout.depth else f"-{layout.value}"
    name = f"lengths-{dataset.info.fingerprint}-{tokenizer.identity}{suffix}.npy"
    found = dataset.folder.find(name)
    if found is None:
        folder = cache_dir
        if isinstance(dataset.folder, LocalFolder) and os.access(dataset.folder.path, os.W_OK):
            folder = dataset.folder.path
        if folder is None:
            raise ValueError(f"{dataset.path}: cannot be written to, so its lengths cannot be stored there")
        found = folder / name
        found.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{found}.lock"):
            if not found.exists():
                lengths = measure(dataset, tokenizer, layout)
                write_atomically(found, partial(_save, lengths))
    return open_lengths(found, len(dataset))


@dataclass(frozen=True)
class Fit:
    """How the samples of a split fit into rows."""

    samples: int
    shortened: int  # samples of which only the leading turns fit
    too_long: np.ndarray  # int64 [n], numbers of the samples whose first turn does not fit


def fit(shards: np.ndarray, lengths: np.ndarray, max_seq_len: int) -> Fit:
    """Compares the samples of a split with the length of a row.

    shards:  int64 [m, 2], first sample and number of samples of each shard
    lengths: int32 [2, samples of the dataset], see `load_lengths`
    """
    too_long, longer = [np.empty(0, dtype=np.int64)], 0
    for first, count in shards:
        whole, first_turn = lengths[:, first : first + count]
        too_long.append(first + np.flatnonzero(first_turn > max_seq_len))
        longer += int(np.count_nonzero(whole > max_seq_len))
    numbers = np.concatenate(too_long)
    return Fit(int(shards[:, 1].sum()), longer - len(numbers), numbers)


def measure(dataset: ShardedDataset, tokenizer: TextTokenizer, layout: CodeLayout = CodeLayout.depth) -> np.ndarray:
    """int32 [2, samples], from the texts of all samples; large datasets are read by one process per CPU core."""
    numbers = range(len(dataset.info.shards))
    lengths = np.zeros((2, len(dataset)), dtype=np.int32)
    if len(dataset) < _PARALLEL_FROM:
        _fill(lengths, dataset, map(partial(_shard_lengths, dataset, tokenizer, layout), numbers))
        return lengths
    processes = min(len(numbers), len(os.sched_getaffinity(0)))
    log.info("%s: counting the tokens of %d conversations in %d processes", dataset.path, len(dataset), processes)
    # Spawned, because this process may have threads (torch's, the tokenizer's), which do not survive a fork.
    with ProcessPoolExecutor(
        processes,
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(dataset, tokenizer, layout),
    ) as pool:
        _fill(lengths, dataset, pool.map(_worker_lengths, numbers))
    return lengths


def _fill(lengths: np.ndarray, dataset: ShardedDataset, results: Iterator[np.ndarray]) -> None:
    start, total = 0, len(dataset.info.shards)
    for part in track(results, "Counting tokens", total):
        lengths[:, start : start + part.shape[1]] = part
        start += part.shape[1]


def _shard_lengths(dataset: ShardedDataset, tokenizer: TextTokenizer, layout: CodeLayout, shard: int) -> np.ndarray:
    samples, codebooks = dataset.samples_of(shard), dataset.codec.num_codebooks
    lengths = np.zeros((2, len(samples)), dtype=np.int32)
    for place, number in enumerate(samples):
        turns = dataset.read_turns(number)
        speakers = {turn.speaker for turn in turns}
        positions = [
            max(len(tokenizer.encode_turn(turn.text, speaker)) for speaker in speakers)
            + audio_positions(turn.num_frames + 1, layout, codebooks)
            for turn in turns
        ]
        lengths[:, place] = sum(positions), positions[0]
    return lengths


_worker: tuple[ShardedDataset, TextTokenizer, CodeLayout] | None = None  # set in a worker process


def _start_worker(dataset: ShardedDataset, tokenizer: TextTokenizer, layout: CodeLayout) -> None:
    global _worker
    _worker = (dataset, tokenizer, layout)


def _worker_lengths(shard: int) -> np.ndarray:
    assert _worker is not None, "set by the pool's initializer"
    return _shard_lengths(*_worker, shard)


def _save(lengths: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, lengths)


def open_lengths(path: Path, samples: int) -> np.ndarray:
    """Reads the lengths of a dataset of `samples` samples: int32 [2, samples], memory-mapped.

    Raises ValueError if the file is damaged.
    """
    try:
        lengths = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: damaged ({error}); delete it, and it will be measured again") from error
    if lengths.shape != (2, samples) or lengths.dtype != np.int32:
        raise ValueError(f"{path}: holds {lengths.dtype} {lengths.shape}, not int32 (2, {samples}); delete it")
    return lengths
