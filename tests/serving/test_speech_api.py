"""Speech over HTTP: formats, streams, refusals, limits, listeners who leave."""

from __future__ import annotations

import base64
import json
import socket

import httpx
import numpy as np
import pytest
import torch

from csm.inference.segments import Segment
from csm.serving.marks import Marking
from csm.serving.settings import Limits
from tests.serving.served import (
    FRAME,
    OPTIONS,
    TEXT,
    heard_samples,
    recording,
    running,
    service_of,
    speaking_generator,
    wait_for,
)

FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")
LOSSLESS = ("flac", "wav", "pcm")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    service = service_of(tmp_path_factory.mktemp("data"))
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client, service


def expected_turn(**changes):
    options = {"context": [], "max_audio_length_ms": 800, "seed": 3, **changes}
    return speaking_generator().generate_segment(TEXT, 1, **options)


RECORDING = base64.b64encode(recording()).decode()
CUT_OFF = base64.b64encode(recording(2.0)[:3000]).decode()


def speak(client, **changes):
    answer = client.post("/v1/audio/speech", json={**OPTIONS, **changes})
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("name", FORMATS)
def test_a_stream_is_one_file_of_what_the_generator_says(served, name):
    client, _ = served
    expected = expected_turn().audio.numpy()
    streamed = speak(client, response_format=name)
    whole = speak(client, response_format=name, stream=False)
    assert streamed.headers["transfer-encoding"] == "chunked" and whole.headers["x-finish-reason"] == "length"
    assert streamed.content[44:] == whole.content[44:]  # a WAV file's header differs in its sizes
    heard = heard_samples(streamed.content, name)
    if name in LOSSLESS:
        assert len(heard) == len(expected) and np.abs(heard - expected).max() < 1e-4
    else:  # encoders add a few milliseconds before and after
        assert 0 <= len(heard) - len(expected) < 3000
        begin = int(np.correlate(heard, expected, "valid").argmax())
        heard = heard[begin : begin + len(expected)]
        assert heard @ expected / (np.linalg.norm(heard) * np.linalg.norm(expected)) > 0.95


def test_events_carry_the_same_bytes_and_their_usage(served):
    client, _ = served
    answer = speak(client, response_format="pcm", stream_format="sse")
    blocks = answer.text.strip().split("\n\n")
    events = [json.loads(block.split("data: ", 1)[1]) for block in blocks]
    assert [block.split("\n")[0] for block in blocks] == [f"event: {event['type']}" for event in events]
    audio = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert audio == speak(client, response_format="pcm").content
    assert events[-1]["type"] == "speech.audio.done" and len(events) == 11
    assert events[-1]["usage"] == {"input_tokens": len(TEXT) + 3, "output_tokens": 10, "total_tokens": len(TEXT) + 13}


def test_sampling_options_arrive(served):
    client, _ = served
    changes = {"temperature": 0.5, "topk": 3, "guidance": 1.5, "seed": 8}
    expected = expected_turn(**changes).audio.numpy()
    fields = {"temperature": 0.5, "top_k": 3, "guidance": 1.5, "seed": 8, "response_format": "pcm"}
    fields |= {"voice": {"id": "speaker_1"}}
    assert np.abs(heard_samples(speak(client, **fields).content, "pcm") - expected).max() < 1e-4
    assert speak(client, **fields).content != speak(client, **{**fields, "speaker": 2}).content
    assert speak(client, **fields).content != speak(client, **{**fields, "guidance": 1}).content
    assert speak(client, **{**fields, "voice": "alloy"}).content == speak(client, **{**fields, "speaker": 2}).content


def test_context_is_read_from_recordings_and_earlier_answers(served):
    client, _ = served
    generator = speaking_generator()
    first = generator.generate_segment("one", 1, [], max_audio_length_ms=400, seed=1)
    heard = Segment(0, "two", torch.from_numpy(heard_samples(base64.b64decode(RECORDING), "wav")))
    expected = generator.generate_segment(TEXT, 1, [first.segment, heard], max_audio_length_ms=800, seed=3)
    earlier = speak(client, input="one", seed=1, max_audio_length_ms=400)
    context = [
        {"segment_id": earlier.headers["x-segment-id"]},
        {"speaker": 0, "text": "two", "audio": RECORDING},
    ]
    answer = speak(client, context=context, response_format="pcm")
    assert np.abs(heard_samples(answer.content, "pcm") - expected.audio.numpy()).max() < 1e-4


def test_a_long_text_is_spoken_sentence_by_sentence(served):
    client, _ = served
    text = "one two three. " * 25  # more than one turn
    answer = speak(client, input=text, max_audio_length_ms=5_000, response_format="pcm", stream=False)
    assert float(answer.headers["x-audio-seconds"]) <= 5 and len(answer.content) == 2 * FRAME * round(
        float(answer.headers["x-audio-seconds"]) * 12.5
    )


@pytest.mark.parametrize(
    "change, status, param, code",
    [
        ({"speed": 1.5}, 400, "speed", "unsupported_parameter"),
        ({"instructions": "Whisper."}, 400, "instructions", "unsupported_parameter"),
        ({"num_codebooks": 4}, 400, "num_codebooks", "unsupported_parameter"),
        ({"surprise": 1}, 400, "surprise", "unknown_parameter"),
        ({"response_format": "ac3"}, 400, "response_format", "literal_error"),
        ({"input": "  "}, 400, "input", "invalid_value"),
        ({"input": "x" * 4097}, 400, "input", "string_too_long"),
        ({"input": "\ud800"}, 400, "input", "string_unicode"),
        ({"model": "gpt-4o-mini-tts"}, 404, "model", "model_not_found"),
        ({"voice": "nobody"}, 404, "voice", "voice_not_found"),
        ({"voice": "../../etc/passwd"}, 400, "voice.function-after", None),
        ({"session_id": "conv_000000000000000000000000"}, 404, "session_id", "conversation_not_found"),
        ({"context": [{"text": "a", "audio": "http://localhost/a.wav"}]}, 400, "context.0.audio", "invalid_value"),
        ({"context": [{"text": "a", "audio": "/etc/passwd"}]}, 400, "context.0.audio", "invalid_value"),
        ({"context": [{"text": "a", "audio": CUT_OFF}]}, 400, "context.0.audio", "invalid_audio"),
        ({"context": [{"segment_id": "seg_0"}]}, 404, "context.0.segment_id", "segment_not_found"),
        ({"context": [{"speaker": 0}]}, 400, "context.0", "invalid_value"),
        ({"max_audio_length_ms": 1}, 400, "max_audio_length_ms", "invalid_value"),
        ({"temperature": float("nan")}, 400, "temperature", "finite_number"),
        ({"seed": 2**64}, 400, "seed", "less_than"),
    ],
)
def test_mistakes_are_refused_by_name(served, change, status, param, code):
    client, _ = served
    content = json.dumps({**OPTIONS, **change}).encode()
    answer = client.post("/v1/audio/speech", content=content, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == status and set(error) == {"message", "type", "param", "code"}, answer.text
    assert error["param"].startswith(param.split(".function")[0]) and error["type"] == "invalid_request_error"
    assert code is None or error["code"] == code
    assert param.split(".")[0] in error["message"] or status == 404


def test_unknown_routes_and_methods_have_the_envelope(served):
    client, _ = served
    for method, path, status in [
        ("GET", "/nothing", 404),
        ("GET", "/v1/audio/speech", 405),
        ("GET", "/v1/models/x", 404),
    ]:
        answer = client.request(method, path)
        assert answer.status_code == status and set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert client.post("/v1/audio/speech", content=b"{").json()["error"]["type"] == "invalid_request_error"
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny", "alias"]


def test_a_batch_is_its_items_alone(served):
    client, service = served
    items = [{"input": text, "seed": number, "max_audio_length_ms": 400} for number, text in enumerate("abcde")]
    answer = client.post("/v1/audio/speech/batch", json={"model": "tiny", "items": items, "response_format": "pcm"})
    results = answer.json()["data"]
    assert [result["index"] for result in results] == [0, 1, 2, 3, 4] and service.live == 0
    for item, result in zip(items, results, strict=True):
        alone = speak(client, voice=None, response_format="pcm", **item)
        assert base64.b64decode(result["audio"]) == alone.content
    wrong = client.post(
        "/v1/audio/speech/batch", json={"model": "tiny", "items": [items[0], {"input": "a", "speed": 2}]}
    )
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "items.1.speed"


def test_whoever_leaves_frees_the_slot(served):
    client, service = served
    slots = service.model.generator.engine.slots
    body = json.dumps({**OPTIONS, "input": "x" * 120, "max_audio_length_ms": 25_000, "response_format": "pcm"}).encode()
    host = client.base_url.netloc.decode()
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    for unstreamed in (False, True):
        content = body[:-1] + b', "stream": false}' if unstreamed else body
        with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
            connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            if not unstreamed:
                connection.recv(1)
            wait_for(lambda: any(slot is not None and slot.request.frames for slot in slots))
            spoken = next(slot.request for slot in slots if slot is not None)
        wait_for(lambda: service.live == 0)
        assert not any(slots) and spoken.finished == "cancelled" and len(spoken.frames) < 312


def test_a_full_server_says_when_to_try_again(tmp_path):
    service = service_of(tmp_path, slots=1, limits=Limits(queue=1, body=5_000, connections=3))
    long = {**OPTIONS, "input": "x" * 40, "max_audio_length_ms": 9_000}
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client:
        with client.stream("POST", "/v1/audio/speech", json=long), client.stream("POST", "/v1/audio/speech", json=long):
            answer = client.post("/v1/audio/speech", json=OPTIONS)
            assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["type"] == "rate_limit_error"
        wait_for(lambda: service.live == 0)
        assert speak(client).content
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


def test_speech_and_text_are_not_logged(served, caplog, capfd):
    client, _ = served
    with caplog.at_level("DEBUG"):
        speak(client, input="an unusual word")
        client.post(
            "/v1/audio/speech", json={**OPTIONS, "input": "unusual", "context": [{"text": "unusual", "audio": "%"}]}
        )
    assert "unusual" not in caplog.text + "".join(capfd.readouterr())


class Halved:
    """A mark that halves the sound, and keeps 100 samples back."""

    def __init__(self):
        self.kept = torch.zeros(0)

    def push(self, audio):
        audio = torch.cat([self.kept, audio / 2])
        self.kept = audio[-100:]
        return audio[:-100]

    def flush(self):
        return self.kept


def test_what_leaves_is_marked_and_what_is_remembered_is_not(tmp_path):
    service = service_of(tmp_path)
    service.marking = Marking("halved", lambda sample_rate: Halved())
    first = expected_turn()
    second = expected_turn(context=[first.segment])
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client:
        answer = speak(client, response_format="flac")
        assert answer.headers["x-watermark"] == "halved"
        assert np.abs(heard_samples(answer.content, "flac") - first.audio.numpy() / 2).max() < 1e-4
        context = [{"segment_id": answer.headers["x-segment-id"]}]
        answer = speak(client, response_format="pcm", context=context)
        assert np.abs(heard_samples(answer.content, "pcm") - second.audio.numpy() / 2).max() < 1e-4
