"""A server that is used for long: random lengths, formats, listeners who leave, and garbage."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from csm.formats.load import load_generator
from csm.serving.dialogues import Dialogue
from csm.serving.encoders import AudioFormat, open_encoder
from csm.serving.engine_thread import Turn
from csm.serving.speech import Speech
from tests.serving.processes import serving, write_tiny_model
from tests.serving.served import OPTIONS, RATE, heard_samples, running, service_of, wait_for

SECONDS = float(os.environ.get("CSM_SOAK_SECONDS", "15"))
MODEL = os.environ.get("CSM_SOAK_MODEL")
"""A model directory instead of a tiny random model."""
FORMATS = {"flac": 1e-4, "wav": 1e-4, "pcm": 1e-4, "mp3": 0.02, "opus": 0.02, "aac": 0.02}
"""How far samples may be from the same audio encoded alone: the engine's rounding, and what codecs make of it."""


@pytest.mark.slow
def test_a_soak_mixes_nothing_up_and_leaks_nothing(tmp_path):
    """Every answer is the one that its seed gives alone; no slot stays taken; the server's memory is level."""
    model = Path(MODEL) if MODEL else write_tiny_model(tmp_path / "tiny")
    generator = load_generator(model, "cpu", slots=1, watermark="none")
    random.seed(0)
    jobs = [
        {"input": "x" * random.randint(1, 60), "seed": n, "max_audio_length_ms": 80 * random.randint(1, 40)}
        for n in range(12)
    ]
    alone = [
        torch.cat([*generator.stream(job["input"], 1, [], job["max_audio_length_ms"], seed=job["seed"])])
        for job in jobs
    ]
    expected = {name: [encoded(audio, name) for audio in alone] for name in FORMATS}
    answers = {"complete": 0, "left": 0, "garbage": 0}
    sizes: list[int] = []

    async def listener(client: httpx.AsyncClient, process: int, until: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until or min(answers.values()) <= 5:  # of every kind some, however slow the machine
            number, kind = random.randrange(len(jobs)), random.random()
            name = random.choice([*FORMATS])
            body = {**OPTIONS, **jobs[number], "response_format": name, "stream": random.random() < 0.7}
            if kind < 0.2:
                answer = await client.post("/v1/audio/speech", json={**body, "seed": "garbage"})
                assert answer.status_code == 400
                answers["garbage"] += 1
            elif kind < 0.5:
                async with client.stream("POST", "/v1/audio/speech", json={**body, "stream": True}) as answer:
                    async for _ in answer.aiter_bytes():
                        if random.random() < 0.5:
                            break
                answers["left"] += 1
            else:
                answer = await client.post("/v1/audio/speech", json=body)
                assert answer.status_code == 200, answer.text
                heard, right = heard_samples(answer.content, name), expected[name][number]
                assert heard.shape == right.shape and np.abs(heard - right).max() < FORMATS[name], (name, number)
                answers["complete"] += 1
            sizes.append(resident(process))

    async def soak(address: str, process: int) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=300) as client:
            for name in FORMATS:  # what libraries allocate once
                await client.post("/v1/audio/speech", json={**OPTIONS, **jobs[0], "response_format": name})
            until = asyncio.get_running_loop().time() + SECONDS
            await asyncio.gather(*(listener(client, process, until) for _ in range(8)))

    options = ("--name", OPTIONS["model"], "--slots", "3", "--queue", "20", "--watermark", "none")
    with serving(model, tmp_path / "data", *options) as (process, client):
        asyncio.run(soak(str(client.base_url), process.pid))
        wait_for(lambda: gauges(client) == {"csm_slots_busy": 0, "csm_queue": 0, "csm_slots": 3}, 60)
    quarters = [float(np.median(part)) for part in np.array_split(sizes, 4)]  # of the allocators' ups and downs
    print(f"{SECONDS:g} s: {answers}, MiB of memory in each quarter: {quarters}")
    assert quarters[3] < 1.05 * quarters[2], quarters


def encoded(audio: torch.Tensor, name: AudioFormat) -> np.ndarray:
    """Samples of a file of `audio` [n]."""
    encoder = open_encoder(name, RATE)
    return heard_samples(encoder.push(audio) + encoder.finish(), name)


def resident(process: int) -> float:
    """MiB of a process in memory."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def gauges(client: httpx.Client) -> dict[str, float]:
    found = re.findall(r"^(csm_slots_busy|csm_queue|csm_slots) (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def objects_of_answers() -> set[int]:
    gc.collect()
    return {id(one) for one in gc.get_objects() if type(one) in (Speech, Turn, Dialogue)}


def test_nothing_of_an_answer_stays(tmp_path):
    of_other_tests = objects_of_answers()
    service = service_of(tmp_path)
    with running(service) as address, httpx.Client(base_url=address, timeout=60) as client:
        for number in range(6):
            body = {**OPTIONS, "input": "x" * 60, "max_audio_length_ms": 3_000, "response_format": "pcm"}
            with client.stream("POST", "/v1/audio/speech", json=body) as answer:
                received = next(answer.iter_bytes()) if number % 2 else answer.read()
            assert received
        wait_for(lambda: service.live == 0 and service.listening == 0)
        engine, streams = service.model.generator.engine, service.model.generator.streams
        assert not any(engine.slots) and not engine.waiting
        assert streams.listeners == [] and len(streams.free) == 3
    assert objects_of_answers() <= of_other_tests
