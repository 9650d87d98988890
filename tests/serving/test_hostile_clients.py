"""Anything that clients may send to any route is answered, and never with an error of the server's own."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random

import httpx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csm.formats.load import load_generator
from csm.inference.generator import Generator
from csm.serving.dialogues import Dialogue
from csm.serving.encoders import AudioFormat, open_encoder
from csm.serving.engine_thread import Turn
from csm.serving.settings import Limits
from csm.serving.speech import Speech
from tests.serving.served import (
    OPTIONS,
    RATE,
    heard_samples,
    recording,
    running,
    service_of,
    speaking_generator,
    wait_for,
)

EXAMPLES = int(os.environ.get("CSM_FUZZ_REQUESTS", "200"))

NASTY = st.sampled_from(
    [
        "../../../../etc/passwd",
        "/etc/passwd",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "data:audio/wav;base64,UklGRg==",
        "\x00",
        "\ud800",
        "conv_000000000000000000000000",
        "speaker_0",
        "speaker_99999999999999999999",
        "speaker_٣",
        "\U0001d518 \u202e\u2028",
        "tiny",
        "x" * 5_000,
    ]
)
SCALARS = st.one_of(
    NASTY,
    st.text(max_size=30),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([10**30, -(2**63), 2**63, 0, -1, 1e308]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["type", "text", "audio", "voice", "id", "speaker", "segment_id"]), inner, max_size=4
        ),
    ),
    max_leaves=6,
)
FIELDS = [
    *("model", "input", "voice", "response_format", "speed", "instructions", "stream_format", "stream", "speaker"),
    *(
        "context",
        "session_id",
        "temperature",
        "top_k",
        "guidance",
        "seed",
        "max_audio_length_ms",
        "num_codebooks",
        "surprise",
    ),
]
SPEECH = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4).map(lambda fields: {**OPTIONS, **fields})
MIXED = st.dictionaries(st.sampled_from(["model", "items", "voices", "turns", "response_format"]), JSON, max_size=4)
ROUTES = st.sampled_from(
    [
        *(
            ("POST", path)
            for path in ("/v1/audio/speech", "/v1/audio/speech/batch", "/v1/conversations", "/v1/audio/voices")
        ),
        *((method, "/v1/conversations/{}") for method in ("GET", "DELETE")),
        ("POST", "/v1/conversations/{}/turns"),
        ("DELETE", "/v1/audio/voices/{}"),
        *(
            ("GET", path)
            for path in ("/v1/models/{}", "/v1/audio/voices", "/v1/conversations", "/{}", "/metrics", "/ready")
        ),
        *((method, "/v1/audio/speech") for method in ("GET", "PUT", "OPTIONS", "TRACE")),
    ]
)
HEADERS = st.sampled_from(
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Encoding": "gzip"},
        {"Authorization": b"Bearer \xe9"},
        {"Origin": "null"},
    ]
)
BODIES = st.one_of(
    SPEECH.map(lambda value: json.dumps(value).encode()),
    MIXED.map(lambda value: json.dumps({"model": "tiny", **value}).encode()),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=200),
    st.sampled_from([b"[" * 200_000, b'{"input": 1' + b"0" * 6_000 + b"}", b"\x1f\x8b" + bytes(100)]),
)
FORM = st.fixed_dictionaries(
    {"name": st.one_of(NASTY, st.text(max_size=9)), "ref_text": st.one_of(NASTY, st.text(max_size=9))},
    optional={"consent": st.just("The speaker agrees to this use."), "speaker": st.one_of(NASTY, st.integers())},
)
FILES = st.one_of(st.binary(max_size=400), st.binary(max_size=60).map(lambda tail: recording(0.6)[:-60] + tail))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    limits = Limits(body=1 << 20, reference=2.0, conversations=20, voices=5)
    service = service_of(tmp_path_factory.mktemp("data"), limits=limits)
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client, service


def quoted(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode(errors="surrogatepass"))


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(route=ROUTES, name=st.one_of(NASTY, st.text(max_size=9)), headers=HEADERS, body=BODIES)
def test_no_request_meets_an_error_of_the_server(served, route, name, headers, body):
    client, service = served
    method, path = route
    answer = client.request(
        method, path.format(quoted(name)[:3000]), content=body, headers={"Content-Type": "application/json", **headers}
    )
    check(answer, service)


@pytest.mark.slow
@settings(max_examples=EXAMPLES // 4, deadline=None, suppress_health_check=list(HealthCheck))
@given(form=FORM, content=FILES, file_name=st.one_of(NASTY, st.text(max_size=9)))
def test_no_upload_meets_an_error_of_the_server(served, form, content, file_name):
    client, service = served
    data = {key: str(value).encode(errors="replace") for key, value in form.items()}
    files = {"audio_sample": (file_name.encode(errors="replace").decode(), content)}
    check(client.post("/v1/audio/voices", data=data, files=files), service)


def check(answer: httpx.Response, service) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400 and answer.request.method != "HEAD":
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    wait_for(lambda: service.live == 0)


SECONDS = float(os.environ.get("CSM_SOAK_SECONDS", "15"))
MODEL = os.environ.get("CSM_SOAK_MODEL")
"""A model directory instead of the tiny model of the tests."""
FORMATS = {"flac": 1e-4, "wav": 1e-4, "pcm": 1e-4, "mp3": 0.02, "opus": 0.02, "aac": 0.02}
"""How far samples may be from the same audio encoded alone: the engine's rounding, and what codecs make of it."""


def soaked_generator(slots: int) -> Generator:
    return speaking_generator(slots) if MODEL is None else load_generator(MODEL, "cpu", slots=slots, watermark="none")


def encoded(audio: torch.Tensor, name: AudioFormat) -> np.ndarray:
    """Samples of a file of `audio` [n]."""
    encoder = open_encoder(name, RATE)
    return heard_samples(encoder.push(audio) + encoder.finish(), name)


@pytest.mark.slow
def test_a_soak_mixes_nothing_up_and_leaks_nothing(tmp_path):
    """Random lengths, formats, listeners who leave, and garbage: every answer is the one that its seed gives alone."""
    generator = soaked_generator(1)
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
    service = service_of(tmp_path, limits=Limits(queue=20), generator=soaked_generator)
    answers = {"complete": 0, "left": 0, "garbage": 0}
    sizes: list[int] = []

    async def listener(client: httpx.AsyncClient, until: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < until:
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
            sizes.append(resident())

    async def soak(address: str) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=300) as client:
            until = asyncio.get_running_loop().time() + SECONDS
            await asyncio.gather(*(listener(client, until) for _ in range(8)))

    with running(service) as address:
        asyncio.run(soak(address))
        wait_for(lambda: service.live == 0, 60)
        engine = service.model.generator.engine
        assert not any(engine.slots) and not engine.waiting
        assert service.model.generator.streams.listeners == [] and len(service.model.generator.streams.free) == 3
    assert min(answers.values()) > 5, answers
    quarters = [float(np.median(part)) for part in np.array_split(sizes, 4)]  # of the allocators' ups and downs
    print(f"{SECONDS:g} s: {answers}, pages of memory in each quarter: {quarters}")
    assert quarters[3] < 1.05 * quarters[2], quarters
    gc.collect()
    assert not any(type(one) in (Speech, Turn, Dialogue) for one in gc.get_objects())


def resident() -> int:
    """Pages of this process in memory, server and clients alike."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])
