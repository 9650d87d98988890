"""Anything that clients may send to any route is answered, and never with an error of the server's own."""

from __future__ import annotations

import json
import os

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csm.serving.settings import Limits
from tests.serving.served import OPTIONS, recording, running, service_of, wait_for

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
            for path in (
                "/v1/models/{}",
                "/v1/audio/voices",
                "/v1/conversations",
                "/{}",
                "/metrics",
                "/ready",
                "/health",
            )
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
