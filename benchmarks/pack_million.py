"""How much memory and time it takes to stage, pack and verify a million small samples.

    python benchmarks/pack_million.py [--samples 1000000] [--units 1000] [--workers 2] [--shard-mb 64] [--keep FOLDER]

Each step runs in a process of its own: staging as a worker does it, unit by unit; packing; verifying. Printed are the
peak of its memory, and that of it and its workers together with pages they share counted once (looked at every second);
both begin with the libraries' 500 MB or so. Record results in docs/benchmarks.md with hardware.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from csm.codec.base import CodecInfo
from csm.data.sample import Sample, Turn
from data_prep.dataset.index import write_dataset_json
from data_prep.dataset.verify import verify
from data_prep.packing.shards import write_shards
from data_prep.packing.staging import StagedUnit

CODEC = CodecInfo("mimi", "0123456789abcdef", num_codebooks=4, codebook_size=2048, frame_rate=12.5, sample_rate=24000)


def stage(folder: Path, samples: int, units: int) -> None:
    staging = folder / "staging"
    staging.mkdir()
    rng = np.random.default_rng(0)
    pool = rng.integers(1, 2048, (4, 4096)).astype(np.uint16)
    for number in range(units):
        with StagedUnit(staging, f"unit-{number:05d}") as unit:
            for i in range(number, samples, units):
                first, second = (i * 7) % 13 + 4, (i * 11) % 17 + 4
                turns = [
                    Turn(0, f"what number is it, {i}?", 0.0, 1.2, 0, first, q={"ovrl": 3.1}),
                    Turn(1, f"it is {i}", 1.5, 2.9, first, second, gap=0.3, q={"ovrl": 2.9}),
                ]
                start = (i * 29) % 4000
                codes = pool[:, start : start + first + second]
                name, group = f"made/{i:07d}", f"show-{i // 50}"
                split = "val" if i // 50 % 50 == 0 else "train"
                unit.add(Sample(f"made-{i:07d}", "made", name, group, split, "en", "none", CODEC, turns, codes))


def pack(folder: Path, shard_mb: float, workers: int) -> None:
    shards, index = write_shards(folder / "staging", folder, "made", round(shard_mb * 1e6), seed=1, workers=workers)
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


def run_step(options: argparse.Namespace) -> None:
    """One step in this process; prints its seconds and peak memory in MB as JSON."""
    began = time.perf_counter()
    if options.step == "stage":
        stage(options.keep, options.samples, options.units)
    elif options.step == "pack":
        pack(options.keep, options.shard_mb, options.workers)
    else:
        assert verify(options.keep, options.workers) == []
    peak = field(Path("/proc/self/status"), "VmHWM")  # getrusage's includes the parent's before this program was loaded
    print(json.dumps({"seconds": time.perf_counter() - began, "peak": peak}))


def field(path: Path, name: str) -> float:
    """A field of a file in /proc, in MB; 0 if the process has ended."""
    try:
        lines = path.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":")), 0.0)


def memory_of_all(pid: int) -> float:
    """Of a process and its descendants, in MB."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return field(Path(f"/proc/{pid}/smaps_rollup"), "Pss") + sum(memory_of_all(int(child)) for child in children)


def run(command: list[str]) -> dict[str, float]:
    """Numbers that the step printed, and `all`: the peak of the memory of all its processes."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, memory_of_all(process.pid))
        time.sleep(1.0)
    if process.returncode:
        raise SystemExit(process.returncode)
    return json.loads(process.stdout.read().splitlines()[-1]) | {"all": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--units", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard-mb", type=float, default=64.0)
    parser.add_argument("--keep", type=Path, help="folder for the dataset; without it a temporary one")
    parser.add_argument("--step", choices=["stage", "pack", "verify"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run_step(options)
        return
    folder = options.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        print(f"{options.samples:,} samples, {options.units} units, {options.workers} workers, {os.cpu_count()} cores")
        for step in ("stage", "pack", "verify"):
            command = [sys.executable, __file__, *sys.argv[1:], "--keep", str(folder), "--step", step]
            took = run(command)
            print(
                f"{step}: {took['seconds']:.0f} s, {options.samples / took['seconds']:,.0f} samples/s; "
                f"peak {took['peak']:.0f} MB, with its workers {took['all']:.0f} MB",
                flush=True,
            )
        print(f"{sum(file.stat().st_size for file in folder.glob('*.tar')) / 1e6:,.0f} MB of shards")
    finally:
        if options.keep is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
