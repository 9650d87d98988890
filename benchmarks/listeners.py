"""Listeners of streamed speech who come at random: how long they wait, and whether they ever wait again.

Shared by benchmarks/generate.py and benchmarks/stream.py.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import numpy as np
import torch

from csm.codec import Codec, SpectralCodec
from csm.inference.generator import Generator, SpeechRequest
from csm.inference.guards import Guards
from csm.inference.modes import Mode
from csm.inference.streams import Listener
from csm.model.csm import CSM
from csm.text import ByteTokenizer

TEXT = "A sentence of the usual length, spoken for one listener."


def with_random_codec(model: CSM, slots: int, mode: Mode) -> Generator:
    """A generator with a random Mimi in full size, or a spectral codec for a model of smaller codebooks."""
    config, device = model.config, model.audio_embeddings.weight.device
    codec: Codec
    if config.codebook_size == 2048:
        from moshi.models import loaders

        from csm.codec.mimi import MimiCodec

        codec = MimiCodec(loaders.get_mimi(None, device=device, num_codebooks=config.num_codebooks))
    else:
        noise = torch.randn(30 * 24_000, generator=torch.Generator().manual_seed(0))
        codec = SpectralCodec.fit([0.1 * noise], config.num_codebooks, config.codebook_size)
    return Generator(model, codec, ByteTokenizer(), slots, mode=mode, share_weights=True)


def warm_up(generator: Generator, frames: int) -> None:
    """Compiles or captures all that requests of so many frames need."""
    if generator.engine.mode != "eager":
        generator.engine.warm_up(len(TEXT) + frames + 16)


def request(frames: int, number: int) -> SpeechRequest:
    return SpeechRequest(TEXT, 0, (), 80 * frames, seed=number, guards=Guards.off())


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


def loaded(generator: Generator, frames: int, rate: float, seconds: float) -> str:
    """Requests of `frames` frames come at random (Poisson), `rate` a second, whether or not there is room.

    Returns a line with TTFA (time from the request to the first sound) and viability, the share of chunks that arrive
    before what came earlier has been played.
    """
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
    return (
        f"{rate:g} requests/s, {len(heard)} in all: TTFA p50 {np.percentile(waits, 50):.0f} ms, "
        f"p95 {np.percentile(waits, 95):.0f} ms; viability {100 * (1 - late / chunks):.1f} %"
    )
