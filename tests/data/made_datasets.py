"""Datasets of made-up conversations, written by the code that writes real ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from csm.codec.base import CodecInfo
from csm.data.sample import Sample, Turn
from data_prep.dataset.index import write_dataset_json
from data_prep.packing.shards import write_shards
from data_prep.packing.staging import StagedUnit

CODEC = CodecInfo("spectral", "0123456789abcdef", num_codebooks=5, codebook_size=23, frame_rate=12.5, sample_rate=24000)


def made_sample(number: int, split: str = "train", source: str = "made", codec: CodecInfo = CODEC) -> Sample:
    """One to three turns of 2 to 19 frames."""
    rng = np.random.default_rng(number)
    turns, frame = [], 0
    for i in range(int(rng.integers(1, 4))):
        count = int(rng.integers(2, 20))
        turns.append(Turn(i % 2, f"turn {i} of {source} {number}", float(i), i + 0.9, frame, count))
        frame += count
    codes = rng.integers(1, codec.codebook_size, (codec.num_codebooks, frame)).astype(np.uint16)
    return Sample(f"{source}-{number:05d}", source, f"r{number}", f"r{number}", split, "en", "cc0", codec, turns, codes)


def write_dataset(
    folder: Path,
    samples: list[Sample],
    shard_bytes: int = 20_000,
    units: int = 1,
    workers: int = 1,
    name: str | None = None,
) -> Path:
    """name: of the dataset; None: the first sample's source"""
    staging = folder / "staging"
    staging.mkdir(parents=True)
    for number in range(units):
        with StagedUnit(staging, f"unit-{number}") as unit:
            for sample in samples[number::units]:
                unit.add(sample)
    name = name or samples[0].source
    shards, index = write_shards(staging, folder, name, shard_bytes, seed=0, workers=workers)
    shutil.rmtree(staging)
    write_dataset_json(
        folder,
        source=name,
        codec=samples[0].codec,
        codec_file=None,
        audio_root=str(folder),
        index=index,
        shards=shards,
        rejected={},
    )
    return folder


def made_dataset(folder: Path, train: int, val: int = 0, source: str = "made", **options) -> Path:
    """`train` + `val` samples, in shards of about 30."""
    samples = [made_sample(i, "train", source) for i in range(train)]
    samples += [made_sample(i, "val", source) for i in range(train, train + val)]
    return write_dataset(folder, samples, **options)
