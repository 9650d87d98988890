"""Re-reads a finished dataset in full and names everything that is broken."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import track

from csm.data.dataset import DATASET_FILE, ShardedDataset, fingerprint, is_remote
from csm.data.folder import sha256_of
from csm.data.sample import CODES_MEMBER, JSON_MEMBER
from data_prep.index import member_ranges


def verify(path: str | Path) -> list[str]:
    """Problems of a dataset, one sentence each; an empty list means that it is whole.

    Hashes every file that `dataset.json` names, compares every shard's members with the index, and reads and checks
    every sample. Raises FileNotFoundError or ValueError if the dataset cannot even be opened.
    """
    if is_remote(path):
        raise ValueError(f"{path}: verify reads local folders; run it where the dataset is stored")
    dataset = ShardedDataset(path)
    problems: list[str] = []
    info = dataset.info
    for file in filter(None, [info.index, info.codec_file]):
        if sha256_of(dataset.path / file.name) != file.sha256:
            problems.append(f"{dataset.path / file.name}: content differs from its hash in {DATASET_FILE}")
    if info.fingerprint != fingerprint(info.shards):
        problems.append(f"{dataset.path / DATASET_FILE}: the fingerprint does not belong to the shards it names")
    for number in track(range(len(info.shards)), "Verifying shards", console=Console(stderr=True)):
        problems += _verify_shard(dataset, number)
    if len(set(dataset.keys)) != len(dataset):
        problems.append(f"{dataset.path / info.index.name}: some keys occur twice")
    problems += _verify_totals(dataset)
    return problems


def _verify_shard(dataset: ShardedDataset, number: int) -> list[str]:
    shard = dataset.info.shards[number]
    path = dataset.path / shard.name
    samples = dataset.samples_of(number)
    problems = []
    if sha256_of(path) != shard.sha256:
        problems.append(f"{path}: content differs from its hash in {DATASET_FILE}")
    expected = {f"{dataset.keys[i]}.{member}" for i in samples for member in (CODES_MEMBER, JSON_MEMBER)}
    try:
        members = set(member_ranges(path))
    except OSError as error:  # tarfile.ReadError is one
        return [*problems, f"{path}: not a readable tar file ({error})"]
    for name in sorted(members ^ expected):
        problems.append(f"{path}: {name} is {'not in the index' if name in members else 'missing from the tar'}")
    for i in samples:
        try:
            sample = dataset.read(int(i))
        except ValueError as error:
            problems.append(str(error))
            continue
        if sample.codec != dataset.codec:
            problems.append(f"{path}, sample {sample.key}: made with another codec than {DATASET_FILE} names")
        counts = (sample.split, sample.num_frames, len(sample.turns))
        if counts != (dataset.split[i], dataset.n_frames[i], dataset.n_turns[i]):
            problems.append(f"{path}, sample {sample.key}: the index has other counts or another split")
    return problems


def _verify_totals(dataset: ShardedDataset) -> list[str]:
    problems = []
    for split, totals in dataset.info.totals.items():
        selected = dataset.select(split)
        found = {
            "samples": len(selected),
            "turns": int(dataset.n_turns[selected].sum()),
            "frames": int(dataset.n_frames[selected].sum()),
        }
        for name, value in found.items():
            if totals[name] != value:
                where = dataset.path / DATASET_FILE
                problems.append(f"{where}: says {totals[name]} {name} in split {split}, the index {value}")
    return problems
