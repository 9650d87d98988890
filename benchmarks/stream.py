"""Streamed speech, codec included: time to the first sound, and whether listeners ever wait.

    python benchmarks/stream.py MODEL                          a model directory, alone and under load
    python benchmarks/stream.py --size csm_1b --device cuda --mode cuda_graph --slots 32 --rates 1 2 4
                                                               random weights, with a random Mimi

alone:  TTFA (time from the request to the first sound, median and largest) and RTF (time taken by a second of audio)
loaded: requests come at random (Poisson) at each of the rates, whether or not there is room for them. TTFA p50 and p95;
        viability: share of chunks that arrive before what came earlier has been played
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.generate import SIZES, model
from csm.codec import Codec, SpectralCodec
from csm.formats.load import load_generator
from csm.inference.generator import Generator, SpeechRequest
from csm.inference.guards import Guards
from csm.inference.streams import Listener
from csm.text import ByteTokenizer

TEXT = "A sentence of the usual length, spoken for one listener."


def random_generator(options: argparse.Namespace) -> Generator:
    config = SIZES[options.size]
    codec: Codec
    if config.codebook_size == 2048:
        from moshi.models import loaders

        from csm.codec.mimi import MimiCodec

        codec = MimiCodec(loaders.get_mimi(None, device=options.device, num_codebooks=config.num_codebooks))
    else:
        noise = torch.randn(30 * 24_000, generator=torch.Generator().manual_seed(0))
        codec = SpectralCodec.fit([0.1 * noise], config.num_codebooks, config.codebook_size)
    return Generator(
        model(config, torch.device(options.device)), codec, ByteTokenizer(), options.slots, mode=options.mode
    )


def request(frames: int, number: int) -> SpeechRequest:
    return SpeechRequest(TEXT, 0, (), 80 * frames, seed=number, guards=Guards.off())


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


@dataclass
class Heard:
    """A listener's account: when the request came, the first sound was there, and how much sound there has been."""

    listener: Listener
    came: float
    first: float | None = None
    seconds: float = 0.0
    chunks: int = 0
    late: int = 0

    def take(self, now: float, sample_rate: int) -> None:
        audio = self.listener.take()
        if not len(audio):
            return
        if self.first is None:
            self.first = now
        self.chunks += 1
        self.late += now > self.first + self.seconds
        self.seconds += len(audio) / sample_rate


def loaded(generator: Generator, frames: int, rate: float, seconds: float) -> None:
    chance, streams, heard, running = random.Random(0), generator.streams, [], []
    begin = time.perf_counter()
    arrival = chance.expovariate(rate)
    while arrival < seconds or running:
        now = time.perf_counter() - begin
        while arrival < min(seconds, now):
            one = Heard(streams.listen(generator.request(request(frames, len(heard)))), arrival)
            heard.append(one)
            running.append(one)
            arrival += chance.expovariate(rate)
        if not running:
            time.sleep(max(0.0, arrival - now))
            continue
        streams.advance()
        now = time.perf_counter() - begin
        for one in running:
            one.take(now, generator.sample_rate)
        running = [one for one in running if not one.listener.complete]
    waits = [1000 * (one.first - one.came) for one in heard if one.first is not None]
    chunks, late = sum(one.chunks for one in heard), sum(one.late for one in heard)
    print(
        f"{rate:g} requests/s, {len(heard)} in all: TTFA p50 {np.percentile(waits, 50):.0f} ms, "
        f"p95 {np.percentile(waits, 95):.0f} ms; viability {100 * (1 - late / chunks):.1f} %",
        flush=True,
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
        generator = random_generator(options)
    if options.mode != "eager":
        generator.engine.warm_up(len(TEXT) + options.frames + 16)
    alone(generator, options.frames, options.rounds, time.process_time if options.cpu_time else time.perf_counter)
    for rate in options.rates:
        loaded(generator, options.frames, rate, options.seconds)


if __name__ == "__main__":
    main()
