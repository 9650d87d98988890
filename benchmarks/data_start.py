"""How soon training can read its first row from 10,000 shards of 36 million samples, how full its rows are, and how
fast they are built.

    python benchmarks/data_start.py [--shards 10000] [--samples-per-shard 3600] [--rows 300]

Start: a synthetic dataset in a temporary folder (sparse tar files; index and lengths are real, 2 GB), opened in a
process of its own up to the first planned step, from the beginning and from a cursor in the middle of an epoch; with
the index read for the first sample of the step. Packing: windows of as many samples as 16 of those shards hold, and of
few, with lengths of several distributions, beside next-fit over a permutation. Rows: one process builds steps of real
bytes, rows of 2048 positions with 32 codebooks. Record results in docs/benchmarks.md with hardware.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import combinations, islice, product
from pathlib import Path

import numpy as np
import pyarrow as pa

from csm.codec.base import CodecInfo
from csm.config import DataConfig, LossConfig
from csm.data.dataset import DatasetInfo, IndexInfo, ShardedDataset, ShardInfo, fingerprint
from csm.data.index import DATASET_FILE, INDEX_FILE, INDEX_SCHEMA, footer_sha256, write_index_file
from csm.data.lengths import fit, load_lengths
from csm.data.plan import EpochPlan
from csm.data.rows import TrainRows
from csm.data.sample import SCHEMA_VERSION, Sample, Turn
from csm.data.stream import MixtureSource, RankShare, StepSampler
from csm.text import ByteTokenizer
from data_prep.dataset.index import write_dataset_json
from data_prep.packing.shards import write_shards
from data_prep.packing.staging import StagedUnit

CODEC = CodecInfo("mimi", "0123456789abcdef", num_codebooks=32, codebook_size=2048, frame_rate=12.5, sample_rate=24000)
TOKENIZER = ByteTokenizer()
POSITIONS, ROWS_PER_STEP = 2048, 256
CONVERSATIONS = (  # name, their lengths, positions of a row
    ("500 to 2900", lambda rng, n: rng.integers(500, 2901, n), 4096),
    ("900 to 2300", lambda rng, n: rng.integers(900, 2301, n), 4096),
    ("50 to 600", lambda rng, n: rng.integers(50, 601, n), 2048),
    ("lognormal(7, 0.6)", lambda rng, n: rng.lognormal(7, 0.6, n).astype(int), 4096),
)


def write_synthetic(folder: Path, shards: int, samples_per_shard: int) -> None:
    """One shard in fifty is of split "val"."""
    member = 150_000  # bytes
    infos = [
        ShardInfo(f"made-{i:06d}.tar", samples_per_shard * member, f"{i:064x}", samples_per_shard)
        for i in range(shards)
    ]
    for info in infos:
        with (folder / info.name).open("wb") as file:
            file.truncate(info.size)

    def tables() -> Iterator[pa.Table]:
        rng = np.random.default_rng(0)
        numbers = np.arange(samples_per_shard)
        for i in range(shards):
            columns = {
                "key": [f"made-{i * samples_per_shard + n:08d}" for n in range(samples_per_shard)],
                "recording": [f"recording-{i:05d}-{n // 4:04d}" for n in range(samples_per_shard)],
                "source": ["made"] * samples_per_shard,
                "lang": ["en"] * samples_per_shard,
                "licence": ["none"] * samples_per_shard,
                "group": [f"show-{i:05d}-{n // 40:03d}" for n in range(samples_per_shard)],
                "split": ["val" if i % 50 == 49 else "train"] * samples_per_shard,
                "shard": np.full(samples_per_shard, i),
                "codes_offset": numbers * member + 512,
                "codes_size": np.full(samples_per_shard, 128 + 64 * 1500),
                "json_offset": numbers * member + 110_000,
                "json_size": np.full(samples_per_shard, 3000),
                "n_frames": rng.integers(600, 1900, samples_per_shard),
                "n_turns": rng.integers(2, 40, samples_per_shard),
                "n_speakers": np.full(samples_per_shard, 2),
                "loss_frames": np.full(samples_per_shard, 600),
                "text_bytes": rng.integers(300, 2000, samples_per_shard),
                "quality": rng.uniform(2.5, 4.0, samples_per_shard).astype(np.float32),
            }
            yield pa.table(columns, schema=INDEX_SCHEMA)

    index = folder / INDEX_FILE
    write_index_file(index, tables())
    total = shards * samples_per_shard
    info = DatasetInfo(
        schema=SCHEMA_VERSION,
        source="made",
        codec=CODEC,
        codec_file=None,
        audio_root="",
        index=IndexInfo(index.name, index.stat().st_size, "not hashed", footer_sha256(index)),
        shards=infos,
        takedown=None,
        totals={"train": {"samples": total, "frames": total * 1250}},
        sources={},
        langs={},
        licences={},
        rejected={},
        fingerprint=fingerprint(infos, None),
    )
    (folder / DATASET_FILE).write_text(info.to_json())
    rng = np.random.default_rng(1)
    whole = rng.integers(900, 2300, total, dtype=np.int32)
    np.save(
        folder / f"lengths-{info.fingerprint}-{TOKENIZER.identity}.npy",
        np.stack([whole, np.full(total, 300, np.int32)]),
    )


def start(folder: Path, cursor: dict | None) -> dict[str, float]:
    """Seconds from nothing but imports to the first step's specification, rank 0 of 8; peak memory in MB."""
    before = memory("VmRSS")
    began = time.perf_counter()
    dataset = ShardedDataset(folder)
    opened = time.perf_counter()
    lengths = load_lengths(dataset, TOKENIZER, folder)
    fit(dataset.shards("train"), lengths, POSITIONS)
    plan = EpochPlan("data", dataset.shards("train"), lengths, POSITIONS, 16, seed=1)
    sampler = StepSampler({"data": MixtureSource(plan)}, RankShare(ROWS_PER_STEP, 4, 0, 8), 1, cursor)
    spec = next(iter(sampler))
    planned = time.perf_counter()
    dataset.key(int(spec.rows[0].samples[0]))
    located = time.perf_counter()
    return {
        "open": opened - began,
        "plan": planned - opened,
        "locate": located - planned,
        "peak": memory("VmHWM"),  # not getrusage's: that includes the parent's before this program was loaded
        "libraries": before,
        "private": memory("RssAnon"),  # without mapped files
    }


def memory(field: str) -> float:
    """A field of this process's status, in MB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) / 1024


def next_fit(lengths: np.ndarray, max_seq_len: int) -> int:
    """Number of rows if a sample that does not fit into the last row begins a new one."""
    rows, left = 0, -1
    for length in lengths.tolist():
        if length > left:
            rows, left = rows + 1, max_seq_len
        left -= length
    return rows


def pack_window(
    draw: Callable[[np.random.Generator, int], np.ndarray], samples: int, max_seq_len: int
) -> dict[str, float]:
    """Of one window that is planned in two epochs: seconds, shares of positions filled, pairs that met in both epochs
    as a share of those that met in the first."""
    lengths = np.minimum(draw(np.random.default_rng(0), samples), max_seq_len)
    plan = EpochPlan("made", np.array([[0, len(lengths)]]), np.stack([lengths, lengths]), max_seq_len, 1, seed=1)
    began = time.perf_counter()
    first = plan.rows(0, 0)
    seconds = time.perf_counter() - began
    pairs = [
        {pair for row in window for pair in combinations(sorted(row.tolist()), 2)}
        for window in (first, plan.rows(1, 0))
    ]
    permuted = np.random.default_rng(1).permutation(lengths)
    return {
        "seconds": seconds,
        "filled": lengths.sum() / (len(first) * max_seq_len),
        "next_fit": lengths.sum() / (next_fit(permuted, max_seq_len) * max_seq_len),
        "repeated": len(pairs[0] & pairs[1]) / len(pairs[0]),
    }


def write_real(folder: Path, samples: int) -> None:
    rng = np.random.default_rng(0)
    staging = folder / "staging"
    staging.mkdir()
    with StagedUnit(staging, "all") as unit:
        for number in range(samples):
            counts = rng.integers(10, 110, int(rng.integers(8, 30)))
            starts = np.cumsum(counts) - counts
            turns = [
                Turn(int(i % 2), "word " * int(count // 8 + 1), float(i), i + 0.9, int(f0), int(count))
                for i, (f0, count) in enumerate(zip(starts, counts, strict=True))
            ]
            codes = rng.integers(1, 2048, (32, int(counts.sum()))).astype(np.uint16)
            key = f"made-{number:06d}"
            unit.add(Sample(key, "made", key, key, "train", "en", "none", CODEC, turns, codes))
    shards, index = write_shards(staging, folder, "made", 20_000_000, seed=0, workers=1)
    write_dataset_json(
        folder,
        source="made",
        codec=CODEC,
        codec_file=None,
        audio_root="",
        index=index,
        shards=shards,
        rejected={},
    )


def build_rows(folder: Path, rows: int) -> dict[str, float]:
    dataset = ShardedDataset(folder)
    lengths = load_lengths(dataset, TOKENIZER, folder)
    plan = EpochPlan("data", dataset.shards("train"), lengths, POSITIONS, 16, seed=1)
    sampler = StepSampler({"data": MixtureSource(plan)}, RankShare(4, 4, 0, 1), 1, None)
    data = DataConfig(path="", max_seq_len=POSITIONS, global_batch_size=4, micro_batch_size=4)
    builder = TrainRows({"data": dataset}, TOKENIZER, data, LossConfig(), seed=1)
    specs = list(islice(iter(sampler), rows // 4))
    builder[specs[0]]
    began = time.perf_counter()
    filled = sum(builder[spec].positions for spec in specs)
    seconds = time.perf_counter() - began
    return {"rows": rows / seconds, "positions": rows * POSITIONS / seconds, "filled": filled / (rows * POSITIONS)}


def in_process(*arguments: str) -> dict[str, float]:
    output = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(output.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--samples-per-shard", type=int, default=3_600)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cursor", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        print(json.dumps(start(options.start, options.cursor)))
        return
    if options.build:
        print(json.dumps(build_rows(options.build, options.rows)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        began = time.perf_counter()
        folder = Path(temporary)
        write_synthetic(folder, options.shards, options.samples_per_shard)
        index = (folder / INDEX_FILE).stat().st_size / 1e6
        print(
            f"{options.shards * options.samples_per_shard:,} samples in {options.shards:,} shards, "
            f"index {index:.0f} MB, written in {time.perf_counter() - began:.0f} s; {os.cpu_count()} cores"
        )
        windows = -(-(options.shards - options.shards // 50) // 16)
        middle = {"step": 59_000, "rows": 59_000 * ROWS_PER_STEP, "sources": {"data": [1, windows // 2, 1000]}}
        for name, cursor in (("first run", None), ("again", None), ("middle of an epoch", middle)):
            took = in_process("--start", str(folder), *([] if cursor is None else ["--cursor", json.dumps(cursor)]))
            print(
                f"{name}: open {took['open']:.2f} s, first step planned after {took['open'] + took['plan']:.2f} s, "
                f"first sample located in {1000 * took['locate']:.0f} ms; peak {took['peak']:.0f} MB "
                f"(libraries {took['libraries']:.0f} MB), private now {took['private']:.0f} MB"
            )
    for samples, (name, draw, positions) in product(
        (16 * options.samples_per_shard, 1000, 300, 100, 30), CONVERSATIONS
    ):
        took = pack_window(draw, samples, positions)
        print(
            f"a window of {samples:,} conversations of {name} positions in rows of {positions}: planned in "
            f"{took['seconds']:.3f} s, {100 * took['filled']:.1f} % of the positions filled (next-fit: "
            f"{100 * took['next_fit']:.1f} %), {100 * took['repeated']:.2f} % of the pairs in a row meet again in the "
            "next epoch"
        )
    with tempfile.TemporaryDirectory() as temporary:
        write_real(Path(temporary), 300)
        took = in_process("--build", temporary, "--rows", str(options.rows))
        print(
            f"rows of {POSITIONS} positions x 32 codebooks, one process: {took['rows']:.1f} rows/s, "
            f"{took['positions']:,.0f} positions/s, {100 * took['filled']:.1f} % of the positions filled"
        )


if __name__ == "__main__":
    main()
