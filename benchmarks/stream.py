"""Streamed speech, codec included: time to the first sound, and whether listeners ever wait.

    python benchmarks/stream.py MODEL                          a model directory, alone and under load
    python benchmarks/stream.py --size csm_1b --device cuda --mode cuda_graph --slots 32 --rates 1 2 4
                                                               random weights, with a random Mimi

alone:  TTFA (time from the request to the first sound, median and largest) and RTF (time taken by a second of audio)
loaded: requests come at random at each of the rates, see benchmarks/listeners.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.generate import SIZES, model
from benchmarks.listeners import loaded, request, warm_up, with_random_codec
from csm.formats.load import load_generator
from csm.inference.generator import Generator


def alone(generator: Generator, frames: int, rounds: int, clock: Callable[[], float]) -> None:
    first, factors = [], []
    for number in range(rounds + 1):
        turn = request(frames, number)
        started = clock()
        samples, sound = 0, None
        for chunk in generator.stream(turn.text, 0, (), turn.max_audio_length_ms, seed=number, guards=turn.guards):
            sound = sound or clock() - started
            samples += len(chunk)
        if number and sound is not None:  # the first one warms up
            first.append(1000 * sound)
            factors.append((clock() - started) * generator.sample_rate / samples)
    print(
        f"alone: TTFA {np.median(first):.0f} ms, largest {max(first):.0f} ms; RTF {np.median(factors):.2f}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a model directory; without one, random weights")
    parser.add_argument("--size", default="csm_tiny", choices=SIZES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mode", default="eager", choices=["eager", "compiled", "cuda_graph"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--frames", type=int, default=40, help="of every request")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rates", type=float, nargs="*", default=[0.2, 0.5])
    parser.add_argument("--seconds", type=float, default=20.0, help="in which requests come")
    parser.add_argument("--cpu-time", action="store_true", help="alone: count only the own time of the process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.model:
        generator = load_generator(options.model, options.device, slots=options.slots, mode=options.mode)
    else:
        random_model = model(SIZES[options.size], torch.device(options.device))
        generator = with_random_codec(random_model, options.slots, options.mode)
    warm_up(generator, options.frames)
    alone(generator, options.frames, options.rounds, time.process_time if options.cpu_time else time.perf_counter)
    for rate in options.rates:
        print(loaded(generator, options.frames, rate, options.seconds), flush=True)


if __name__ == "__main__":
    main()
