"""How fast turns are measured on one core, and how well fingerprints find the same speech again.

    python benchmarks/data_quality.py FOLDER [--dnsmos] [--codecs mp3 opus] [--made-up 1000000]

FOLDER holds short recordings that all differ, any format; every one that is not silent is taken for a turn. Prints for
each measure its rate in times real time, on one thread. Then, for recordings of at least 3 and 5 s, how many are found
again after cutting up to 0.25 s from both ends, lowering the level, and a lossy codec at a low rate; how many of those
are taken for another; and how many of the recordings themselves are taken for one another. --made-up: time and memory
of the search among that many fingerprints of 64 codes (8 s), of which one in fifty repeats another with 6% of its bits
changed. Record results in docs/benchmarks.md with hardware.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import soundfile
import soxr

from csm.audio import load_audio
from csm.judges.dnsmos import Dnsmos
from data_prep.config import DedupConfig
from data_prep.records import MODEL_RATE
from data_prep.speech.fingerprint import fingerprint, same_sound
from data_prep.stages.score import bandwidth, clipped, loudness

RATE = 24_000
CODES = 64
SILENCE_LUFS = -50.0  # the noise of an empty line; nobody's turn
LOSSY = {
    "mp3": {"format": "MP3", "bitrate_mode": "CONSTANT", "compression_level": 0.8},  # 40 kbit/s at 16 kHz
    "opus": {"format": "OGG", "subtype": "OPUS", "compression_level": 0.95},  # 18 kbit/s
}


def rates(turns: list[np.ndarray], with_dnsmos: bool) -> None:
    """`turns` are float32 [N] at 16 kHz."""
    seconds = sum(len(turn) for turn in turns) / MODEL_RATE
    at_24k = [soxr.resample(turn, MODEL_RATE, RATE) for turn in turns]
    measures: dict[str, Callable[[], object]] = {
        "loudness, 24 kHz": lambda: [loudness(turn, RATE) for turn in at_24k],
        "clipped share, 24 kHz": lambda: [clipped(turn) for turn in at_24k],
        "bandwidth, 24 kHz": lambda: [bandwidth(turn, RATE) for turn in at_24k],
        "fingerprint, 16 kHz": lambda: [fingerprint(turn) for turn in turns],
        "sha256 of float32, 24 kHz": lambda: [hashlib.sha256(turn.tobytes()) for turn in at_24k],
    }
    if with_dnsmos:
        measures["DNSMOS, 16 kHz"] = lambda: Dnsmos(9.01)(turns)
    print(f"{len(turns)} turns, {seconds / 60:.1f} min")
    for name, measure in measures.items():
        start = time.process_time()
        measure()
        print(f"  {name:28} {seconds / (time.process_time() - start):9.0f} x real time")


def recall(turns: list[np.ndarray], codec: str, min_seconds: float) -> None:
    rng = np.random.default_rng(0)
    long = [turn for turn in turns if len(turn) >= min_seconds * MODEL_RATE]
    again = []
    for turn in long:
        start, end = rng.integers(0, MODEL_RATE // 4, size=2)
        again.append(encoded(0.3 * turn[start : len(turn) - end], codec))
    repeats = search([fingerprint(turn) for turn in [*long, *again]])
    found = sum(number - twin == len(long) for number, (twin, _) in repeats.items())
    errors = [error for _, error in repeats.values()]
    print(
        f"  {codec}, >= {min_seconds:g} s: {found} of {len(long)} found, {len(repeats) - found} taken for another, "
        f"bit error median {np.median(errors):.3f}, most {max(errors):.3f}"
    )


def encoded(audio: np.ndarray, codec: str) -> np.ndarray:
    """Float32 [N] at 16 kHz after a lossy codec."""
    file = io.BytesIO()
    soundfile.write(file, audio, MODEL_RATE, **LOSSY[codec])
    file.seek(0)
    decoded, rate = soundfile.read(file, dtype="float32")
    return soxr.resample(decoded, rate, MODEL_RATE)


def search(fingerprints: list[list[int]]) -> dict[int, tuple[int, float]]:
    codes = np.concatenate([np.array(one, dtype=np.uint32) for one in fingerprints])
    return same_sound(codes, np.array([len(one) for one in fingerprints]), DedupConfig().max_bit_error)


def made_up(count: int) -> None:
    """Codes as fingerprint.py makes them from levels that are noise, smooth in time and frequency."""
    rng = np.random.default_rng(0)
    codes = np.concatenate([noise_codes(rng, min(2000, count - first)) for first in range(0, count, 2000)])
    copies = rng.choice(np.arange(count // 2, count), count // 50, replace=False)
    flips = np.packbits(rng.random((len(copies), CODES, 32)) < 0.06, axis=2).view(np.uint32)[..., 0]
    codes[copies] = codes[rng.choice(count // 2, len(copies))] ^ flips
    start = time.process_time()
    repeats = same_sound(codes.reshape(-1), np.full(count, CODES), DedupConfig().max_bit_error)
    found = len(repeats.keys() & set(copies.tolist()))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) >> 10  # KiB
    print(
        f"{count} made-up fingerprints: {found} of {len(copies)} copies found, {len(repeats) - found} false, "
        f"{time.process_time() - start:.0f} s, peak memory {peak} MiB"
    )


def noise_codes(rng: np.random.Generator, count: int) -> np.ndarray:
    """uint32 [count, CODES]."""
    noise = rng.standard_normal((count, CODES + 4 + 7, 36 + 4), dtype=np.float32)
    level = sum(weight * noise[:, i : i + CODES + 4] for i, weight in enumerate(np.hanning(8)))
    level = sum(weight * level[:, :, i : i + 36] for i, weight in enumerate(np.hanning(5)))
    tilt = level[:, :, :-4] - level[:, :, 4:]
    return np.packbits(tilt[:, 4:] > tilt[:, :-4], axis=2).view(np.uint32)[..., 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dnsmos", action="store_true")
    parser.add_argument("--codecs", nargs="*", choices=LOSSY, default=list(LOSSY))
    parser.add_argument("--made-up", type=int, default=0)
    args = parser.parse_args()
    sounds = {
        str(path.relative_to(args.folder)): load_audio(path, MODEL_RATE).numpy()
        for path in sorted(args.folder.rglob("*"))
        if path.is_file() and path.suffix != ".txt"
    }
    speech = {name: sound for name, sound in sounds.items() if (loudness(sound, MODEL_RATE) or -70.0) > SILENCE_LUFS}
    print(f"{len(sounds) - len(speech)} of {len(sounds)} recordings are silent and left out")
    names, turns = list(speech), list(speech.values())
    rates(turns, args.dnsmos)
    print("fingerprints")
    for codec in args.codecs:
        for min_seconds in (3.0, 5.0):
            recall(turns, codec, min_seconds)
    fingerprints = [fingerprint(turn) for turn in turns]
    alike = search(fingerprints)
    for number, (twin, error) in alike.items():
        print(f"  {names[number]} is taken for {names[twin]}, bit error {error:.3f}")
    print(f"  {len(alike)} of {sum(map(bool, fingerprints))} recordings with a fingerprint are taken for another")
    if args.made_up:
        search_alone = multiprocessing.get_context("spawn").Process(target=made_up, args=(args.made_up,))
        search_alone.start()  # its peak memory is its own
        search_alone.join()


if __name__ == "__main__":
    main()
