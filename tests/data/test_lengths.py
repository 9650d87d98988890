"""Lengths: measured once, by the first process, and equal to the lengths of the rows' documents."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from csm.data.dataset import ShardedDataset
from csm.data.lengths import load_lengths
from csm.data.rows import sample_turns
from csm.text import ByteTokenizer, HFTokenizer
from tests.conftest import ROOT
from tests.data.made_datasets import made_dataset

TOKENIZER = ByteTokenizer()


@pytest.fixture
def dataset(tmp_path) -> ShardedDataset:
    return ShardedDataset(made_dataset(tmp_path / "data", 90, 20))


def expected_lengths(dataset: ShardedDataset, tokenizer) -> np.ndarray:
    turns = [sample_turns(dataset.read(i), tokenizer, 10**6) for i in range(len(dataset))]
    return np.array([[sum(t.num_positions for t in ts) for ts in turns], [ts[0].num_positions for ts in turns]])


@pytest.mark.slow
def test_lengths_are_those_of_the_rows_whoever_measures(dataset, llama_tokenizer, tmp_path, monkeypatch):
    for tokenizer in (TOKENIZER, HFTokenizer.load(llama_tokenizer)):
        expected = expected_lengths(dataset, tokenizer)
        lengths = load_lengths(dataset, tokenizer, tmp_path)
        assert lengths.dtype == np.int32 and isinstance(lengths, np.memmap)
        assert np.array_equal(lengths, expected)
    monkeypatch.setattr("csm.data.lengths._PARALLEL_FROM", 0)  # now in processes, and elsewhere
    monkeypatch.setattr("csm.data.lengths.os.access", lambda path, mode: False)
    for file in dataset.local_path.glob("lengths-*"):
        file.unlink()
    assert np.array_equal(load_lengths(dataset, TOKENIZER, tmp_path / "cache"), expected_lengths(dataset, TOKENIZER))
    assert [file.suffix for file in sorted((tmp_path / "cache").iterdir())] == [".npy", ".lock"]


def _load(path: Path, barrier, results) -> None:
    dataset = ShardedDataset(path)
    barrier.wait()
    lengths = load_lengths(dataset, TOKENIZER, path)
    results.put((int(lengths.sum()), os.stat(next(path.glob("*.npy"))).st_ino))


def test_processes_that_start_together_measure_once(dataset):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_load, args=(dataset.local_path, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1, "one file, written once"
    assert found.pop()[0] == int(expected_lengths(dataset, TOKENIZER).sum())


@pytest.mark.slow
def test_command_prepares_what_training_would(dataset):
    command = [sys.executable, "-m", "data_prep", "lengths", f"output={dataset.path}", "tokenizer=bytes"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    total = int(expected_lengths(dataset, TOKENIZER)[0].sum())
    assert result.stdout == f"{dataset.path}: 110 conversations, {total} positions\n"
    assert (dataset.local_path / f"lengths-{dataset.info.fingerprint}-{TOKENIZER.identity}.npy").is_file()


def test_damaged_file_is_named(dataset, tmp_path):
    load_lengths(dataset, TOKENIZER, tmp_path)
    (file,) = dataset.local_path.glob("*.npy")
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match=rf"{file}: damaged .*; delete it"):
        load_lengths(dataset, TOKENIZER, tmp_path)
