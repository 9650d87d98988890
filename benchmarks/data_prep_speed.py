"""How fast annotated recordings become a dataset, without recognition: each stage, and the whole.

    python benchmarks/data_prep_speed.py [--hours 2] [--workers 2] [--dnsmos]

Synthetic telephone-like recordings of 5 minutes (16 kHz FLAC, two speakers taking turns of 2 to 8 s) in a temporary
folder; spectral codec of 32 codebooks, fitted to a minute. Times are those of the processes that a user would start,
imports included. Record results in docs/benchmarks.md with hardware.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile

RATE = 16_000
SECONDS = 300.0


def make_recordings(folder: Path, hours: float) -> Path:
    """Noise with the envelope of speech, and the manifest of its turns."""
    rows = []
    for number in range(round(hours * 3600 / SECONDS)):
        rng = np.random.default_rng(number)
        samples = round(SECONDS * RATE)
        envelope = np.interp(np.arange(samples), np.linspace(0, samples, samples // 1600), rng.random(samples // 1600))
        sound = 0.1 * envelope * np.convolve(rng.standard_normal(samples), rng.random(5), "same")
        soundfile.write(folder / f"call{number:04d}.flac", sound.astype(np.float32), RATE)
        turns, at = [], 0.3
        while at < SECONDS - 9:
            length = float(rng.uniform(2, 8))
            text = "words that were said " * round(length)
            turns.append(
                {"speaker": "ab"[len(turns) % 2], "text": text, "start": round(at, 2), "end": round(at + length, 2)}
            )
            at += length + float(rng.uniform(0.2, 0.8))
        rows.append({"audio": f"call{number:04d}.flac", "turns": turns})
    manifest = folder / "calls.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--dnsmos", action="store_true", help="score every turn with DNSMOS")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        manifest = make_recordings(folder, arguments.hours)
        options = [f"input={manifest}", f"output={folder / 'out'}", "codec=spectral", "encode.fit_minutes=1"]
        options += ["plan.unit_hours=0.5", "transcribe=none", "strict=off", f"score.dnsmos={arguments.dnsmos}"]
        options += [f"executor.workers={arguments.workers}", f"pack.workers={arguments.workers}"]
        total = 0.0
        for command in ("plan", "run", "pack", "report", "verify"):
            begun = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "data_prep", command, *options], check=True, stdout=subprocess.DEVNULL
            )
            took = time.perf_counter() - begun
            total += took
            print(f"{command:8} {took:7.1f} s  {arguments.hours * 3600 / took:8.0f} times real time")
        print(f"{'together':8} {total:7.1f} s  {arguments.hours * 3600 / total:8.0f} times real time")
        audio, cpu = defaultdict(float), defaultdict(float)
        for row in pq.read_table(folder / "out" / "stages.parquet").to_pylist():
            audio[row["stage"]] += row["audio_seconds"]
            cpu[row["stage"]] += row["cpu_seconds"]
        for stage, seconds in audio.items():
            print(f"  stage {stage:12} {seconds / max(cpu[stage], 1e-9):10.0f} times real time on a core")


if __name__ == "__main__":
    main()
