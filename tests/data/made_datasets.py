"""Datasets of made-up conversations, written by the code that writes real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from csm.codec.base import CodecInfo
from csm.config import DataPrepConfig
from csm.data.sample import Sample, Turn
from data_prep.index import write_dataset_json, write_index
from data_prep.pack import Staging, write_shards

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


def write_dataset(folder: Path, samples: list[Sample], shard_bytes: int = 20_000) -> Path:
    folder.mkdir(parents=True)
    with Staging(folder) as staging:
        for sample in samples:
            staging.add(sample)
        shards = write_shards(staging, folder, samples[0].source, shard_bytes, seed=0)
    index = write_index(folder, shards)
    config = DataPrepConfig(source=samples[0].source)
    write_dataset_json(folder, config, folder, samples[0].codec, None, index, shards, {})
    return folder


def made_dataset(folder: Path, train: int, val: int = 0, source: str = "made", **options) -> Path:
    """`train` + `val` samples, in shards of about 30."""
    samples = [made_sample(i, "train", source) for i in range(train)]
    samples += [made_sample(i, "val", source) for i in range(train, train + val)]
    return write_dataset(folder, samples, **options)
