"""A server under open-loop load: python benchmarks/serve.py MODEL --rates 0.2,0.4,0.8 --seconds 60.

Requests come at random times (a Poisson process), whether or not earlier ones have been answered, as listeners do. For
each rate: time to the first audio (TTFA, p50, p95, p99), viability (the share of pieces of audio that arrive before a
listener who began with the first has run dry; VoxServe's definition), and audio seconds a second. Rates are tried in
order until viability falls below 99 %.

The server is started here (`csm serve`), or is already there (--url). Clients read 16-bit samples, streamed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from contextlib import nullcontext
from dataclasses import dataclass

import httpx
import numpy as np

from benchmarks.serve_check import served

WORDS = "the all circuits busy now please leave a message after tone and then press pound key we will call".split()  # noqa: SIM905
ENOUGH = 0.99


@dataclass
class Heard:
    """ttfa: seconds, None for a request that was refused; pieces, late: of its audio."""

    ttfa: float | None
    pieces: int = 0
    late: int = 0
    audio: float = 0.0


async def listen(client: httpx.AsyncClient, model: str, seconds: tuple[float, float], seed: int) -> Heard:
    generator = random.Random(seed)
    body = {
        "model": model,
        "input": " ".join(generator.choices(WORDS, k=generator.randint(4, 14))),
        "response_format": "pcm",
        "max_audio_length_ms": 1000 * generator.uniform(*seconds),
        "seed": seed,
    }
    sent = time.perf_counter()
    heard = Heard(None)
    async with client.stream("POST", "/v1/audio/speech", json=body) as answer:
        if answer.status_code != 200:
            return heard
        rate = int(answer.headers["x-sample-rate"])
        async for data in answer.aiter_bytes():
            now = time.perf_counter() - sent
            if heard.ttfa is None:
                heard.ttfa = now
            elif now - heard.ttfa > heard.audio:
                heard.late += 1
            heard.pieces += 1
            heard.audio += len(data) / 2 / rate
    return heard


async def load(address: str, model: str, rate: float, duration: float, seconds: tuple[float, float]) -> list[Heard]:
    """Sends requests for `duration` seconds and waits for all answers."""
    arrivals = random.Random(0)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=300, limits=limits) as client:
        tasks, begun = [], time.perf_counter()
        while time.perf_counter() - begun < duration:
            tasks.append(asyncio.ensure_future(listen(client, model, seconds, len(tasks))))
            await asyncio.sleep(arrivals.expovariate(rate))
        return await asyncio.gather(*tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="of `csm serve`; with --url, the model's name in requests")
    parser.add_argument("--url", help="of a server that runs")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--rates", default="0.1,0.2,0.4,0.8,1.6", help="requests a second")
    parser.add_argument("--seconds", type=float, default=60, help="of load for each rate")
    parser.add_argument("--audio", type=float, nargs=2, default=(2.0, 6.0), help="bounds of answers, in seconds")
    arguments = parser.parse_args()
    if arguments.url:
        server, name = nullcontext(arguments.url), arguments.model
    else:
        server, name = served(arguments.model, "--name", "served", "--slots", str(arguments.slots)), "served"
    print(f"{'rate':>6} {'requests':>8} {'refused':>7} {'p50':>6} {'p95':>6} {'p99':>6} {'viable':>7} {'audio s/s':>9}")
    with server as address:
        for rate in map(float, arguments.rates.split(",")):
            begun = time.perf_counter()
            heard = asyncio.run(load(address, name, rate, arguments.seconds, tuple(arguments.audio)))
            took = time.perf_counter() - begun
            first = [one.ttfa for one in heard if one.ttfa is not None]
            refused = len(heard) - len(first)
            viable = 1 - sum(one.late for one in heard) / max(1, sum(one.pieces for one in heard))
            p50, p95, p99 = np.percentile(first or [np.nan], [50, 95, 99])
            speed = sum(one.audio for one in heard) / took
            print(
                f"{rate:6.2f} {len(heard):8} {refused:7} {p50:6.2f} {p95:6.2f} {p99:6.2f} {viable:7.1%} {speed:9.2f}",
                flush=True,
            )
            if viable < ENOUGH:
                break


if __name__ == "__main__":
    main()
