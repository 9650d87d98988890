"""Refusals before anything is spoken: full, loading and draining servers, keys, origins, hosts, sizes."""

from __future__ import annotations

import httpx

from csm.serving.settings import Limits
from tests.serving.served import FRAME, OPTIONS, running, service_of, wait_for


def test_a_full_server_says_when_to_try_again(tmp_path):
    service = service_of(tmp_path, slots=1, limits=Limits(queue=1, body=5_000, connections=3))
    long = {**OPTIONS, "input": "x" * 40, "max_audio_length_ms": 9_000}
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client:
        with client.stream("POST", "/v1/audio/speech", json=long), client.stream("POST", "/v1/audio/speech", json=long):
            answer = client.post("/v1/audio/speech", json=OPTIONS)
            assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["type"] == "rate_limit_error"
        wait_for(lambda: service.live == 0)
        assert client.post("/v1/audio/speech", json=OPTIONS).content
        assert client.post("/v1/audio/speech", json={**OPTIONS, "input": "x" * 6000}).status_code == 413
        chunks = iter([b"x" * 3000, b"y" * 3000])
        assert client.post("/v1/audio/speech", content=chunks).json()["error"]["code"] == "body_too_large"
        packed = client.post("/v1/audio/speech", content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
        assert packed.status_code == 415
        assert 'csm_refusals_total{code="server_busy"} 1.0' in client.get("/metrics").text


def test_keys_origins_and_hosts(tmp_path):
    service = service_of(tmp_path, api_key="secret-key", allowed_origins=("https://talk.example",), local_only=True)
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client:
        assert client.get("/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret-key"}):
            answer = client.post("/v1/audio/speech", json=OPTIONS, headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        client.headers["Authorization"] = "Bearer secret-key"
        assert client.get("/v1/models").status_code == 200
        for headers, status in [
            ({"Origin": "https://elsewhere.example"}, 403),
            ({"Origin": address}, 200),
            ({"Origin": "https://talk.example"}, 200),
            ({"Host": "rebound.example"}, 403),
        ]:
            assert client.get("/v1/models", headers=headers).status_code == status


def test_pages_of_allowed_origins_may_send_the_headers_of_balancers(tmp_path):
    service = service_of(tmp_path, allowed_origins=("https://talk.example",))
    asked = {"Access-Control-Request-Method": "POST"}
    with running(service) as address, httpx.Client(base_url=address, headers=asked) as client:
        for origin, header, status in [
            ("https://talk.example", "x-conversation, content-type", 200),
            ("https://talk.example", "x-session-id, authorization", 200),
            ("https://talk.example", "x-surprise", 400),
            ("https://elsewhere.example", "content-type", 400),
        ]:
            headers = {"Origin": origin, "Access-Control-Request-Headers": header}
            answer = client.options("/v1/audio/speech", headers=headers)
            assert answer.status_code == status
            if status == 400:
                assert answer.json()["error"]["code"] == "cors_refused"
            readable = answer.headers.get("access-control-allow-origin") == "https://talk.example"
            assert readable == (origin == "https://talk.example")


def test_loading_and_draining_servers_refuse(tmp_path):
    service = service_of(tmp_path)
    load, refused_once = service._load, service.metrics.refusals.labels("server_loading")._value.get
    service._load = lambda: wait_for(refused_once) or load()
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client:
        long = {**OPTIONS, "input": "x" * 40, "max_audio_length_ms": 4_000, "response_format": "pcm"}
        with client.stream("POST", "/v1/audio/speech", json=long) as answer:
            service.draining = True
            refused = client.post("/v1/audio/speech", json=OPTIONS)
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "server_draining"
            assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200
            assert len(b"".join(answer.iter_bytes())) == 2 * FRAME * 50
