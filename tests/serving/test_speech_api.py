"""Speech over HTTP: formats, streams, refusals, limits, listeners who leave."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from dataclasses import replace

import httpx
import numpy as np
import pytest
import torch

from csm.audio import load_audio
from csm.inference.segments import Segment
from csm.inference.voice import Voice as SavedVoice
from csm.inference.voice import make_voice
from csm.serving.marks import Marking
from tests.serving.served import (
    FRAME,
    OPTIONS,
    RATE,
    TEXT,
    asking,
    heard_samples,
    recording,
    running,
    service_of,
    speaking_generator,
    started,
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
    assert events[-1]["type"] == "speech.audio.done" and 3 <= len(events) <= 11  # ten frames, some of them together
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


def test_a_voice_made_on_disk_comes_first(tmp_path):
    generator = speaking_generator()
    (tmp_path / "anna.wav").write_bytes(recording(0.8))
    recorded = Segment(0, "Hi there.", load_audio(tmp_path / "anna.wav", RATE))
    make_voice("anna", [recorded], generator.codec).save(tmp_path / "anna.safetensors")
    anna = SavedVoice.load(tmp_path / "anna.safetensors")
    service = service_of(tmp_path / "data", voices={"anna": anna})
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client:
        for speaker, fields in ((0, {}), (1, {"speaker": 1})):
            said = generator.generate_segment(
                TEXT, speaker, [replace(recorded, speaker=speaker)], 800, seed=OPTIONS["seed"]
            )
            heard = heard_samples(speak(client, voice="anna", response_format="pcm", **fields).content, "pcm")
            assert np.abs(heard - said.audio.numpy()).max() < 1e-4
        listed = {voice["id"]: voice for voice in client.get("/v1/audio/voices").json()["data"]}
        assert listed["anna"]["seconds"] == 0.8 and not listed["anna"]["uploaded"]
        session = client.post("/v1/conversations", json={"voices": [{"voice": "anna", "speaker": 2}]}).json()["id"]
        speak(client, voice="anna", session_id=session)
        turns = client.get(f"/v1/conversations/{session}").json()["turns"]
        assert [(turn["speaker"], turn["text"]) for turn in turns] == [(2, "Hi there."), (2, TEXT)]
    stranger = replace(anna, codec=replace(anna.codec, codebook_size=999))
    refused = service_of(tmp_path / "other", voices={"anna": stranger})
    refused.start()
    wait_for(lambda: refused.failure is not None)
    assert "voice anna and the model" in str(refused.failure)
    refused.stop()


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
        ({"voice": "../../etc/passwd"}, 400, "voice", "string_pattern_mismatch"),
        ({"voice": {"id": "my voice!"}}, 400, "voice", "string_pattern_mismatch"),
        ({"voice": {"id": "anna", "body": 1}}, 400, "voice", "string_type"),
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
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert error["message"].startswith(param) or status == 404


def test_unknown_routes_and_methods_have_the_envelope(served):
    client, _ = served
    for method, path, status, allowed in [
        ("GET", "/nothing", 404, None),
        ("GET", "/v1/audio/speech", 405, "POST"),
        ("PUT", "/v1/audio/voices", 405, "GET, POST"),
        ("POST", "/v1/conversations/conv_0", 405, "GET, DELETE"),
        ("GET", "/v1/models/x", 404, None),
    ]:
        answer = client.request(method, path)
        assert answer.status_code == status and set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.headers.get("allow") == allowed
    headers = {"Content-Type": "application/json"}
    error = client.post("/v1/audio/speech", content=b"{", headers=headers).json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "json_invalid")
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


def test_whoever_leaves_frees_the_slot_within_two_frames(tmp_path, monkeypatch):
    """Counted from when the connection is lost; a frame takes half as long as it lasts."""
    service, lost = service_of(tmp_path), []
    with started(service) as (server, address):
        engine, slots = service.loaded.engine, service.loaded.generator.engine.slots
        advance = engine.streams.advance
        engine.streams.advance = lambda: time.sleep(0.04) or advance()
        protocol = server.config.http_protocol_class
        closed = protocol.connection_lost

        def connection_lost(self, error):
            lost.extend(len(slot.request.frames) for slot in slots if slot is not None)
            closed(self, error)

        monkeypatch.setattr(protocol, "connection_lost", connection_lost)
        for stream in (True, False):
            lost.clear()
            with asking(address, {**OPTIONS, "input": "x" * 120, "max_audio_length_ms": 25_000, "stream": stream}):
                wait_for(lambda: any(slot is not None and len(slot.request.frames) > 4 for slot in slots))
                spoken = next(slot.request for slot in slots if slot is not None)
            wait_for(lambda: service.live == 0)
            assert not any(slots) and spoken.finished == "cancelled"
            assert len(lost) == 1 and len(spoken.frames) - lost[0] <= 2


def test_a_batch_is_prepared_as_long_as_somebody_listens(tmp_path):
    service = service_of(tmp_path)
    with running(service) as address:
        prepare, prepared = service.prepare, []

        async def slow(function, *arguments, **options):
            prepared.append(function)
            await asyncio.sleep(0.1)
            return await prepare(function, *arguments, **options)

        service.prepare = slow
        body = {"model": "tiny", "items": [{"input": "Hello."}] * 20}
        with asking(address, body, path="/v1/audio/speech/batch"):
            wait_for(lambda: prepared)
        wait_for(lambda: service.live == 0)
        assert len(prepared) <= 4  # two for each item


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
