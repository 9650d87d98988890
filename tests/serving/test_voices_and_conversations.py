"""Voices and conversations: kept on disk and in the cache, whatever happens to the server; hostile uploads."""

from __future__ import annotations

import base64
import io
import re
import time
import zipfile
from contextlib import ExitStack
from functools import cache, partial

import httpx
import numpy as np
import pytest
import soundfile
import torch

from csm import Conversation
from csm.inference.segments import Segment
from csm.serving.decode_upload import decode
from csm.serving.settings import Limits
from tests.serving.served import (
    OPTIONS,
    RATE,
    asking,
    heard_samples,
    recording,
    running,
    service_of,
    speaking_generator,
    wait_for,
)

CONSENT = "I am the speaker and agree to the use of my voice."
TURN = {"max_audio_length_ms": 400}


def upload(client, content: bytes, name: str = "anna", **fields):
    form = {"name": name, "ref_text": "a tone", "consent": CONSENT, **fields}
    return client.post("/v1/audio/voices", data=form, files={"audio_sample": ("a.wav", content)})


def say(client, session: str, text: str, seed: int, **fields):
    body = {
        **OPTIONS,
        **TURN,
        "session_id": session,
        "input": text,
        "seed": seed,
        "voice": None,
        "response_format": "pcm",
    }
    answer = client.post("/v1/audio/speech", json={**body, **fields})
    assert answer.status_code == 200, answer.text
    return answer.content


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    service = service_of(tmp_path_factory.mktemp("data"), limits=Limits(reference=3.0, upload=1_000_000, voices=3))
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client, service


def test_a_voice_is_spoken_with_and_survives_a_restart(tmp_path):
    generator = speaking_generator()
    sound = torch.from_numpy(heard_samples(recording(1.0), "wav"))
    expected = generator.generate_segment("hello you", 4, [Segment(4, "a tone", sound)], 800, seed=3).audio
    for start in range(2):
        with running(service_of(tmp_path)) as address, httpx.Client(base_url=address, timeout=30) as client:
            if start == 0:
                added = upload(client, recording(1.0), speaker=4)
                assert added.status_code == 201 and added.json()["seconds"] == 1.0
                assert upload(client, recording(1.0)).json()["error"]["code"] == "voice_exists"
            assert client.get("/v1/audio/voices").json()["uploaded_voices"] == ["anna"]
            answer = client.post("/v1/audio/speech", json={**OPTIONS, "voice": "anna", "response_format": "pcm"})
            assert np.abs(heard_samples(answer.content, "pcm") - expected.numpy()).max() < 1e-4
            if start == 1:
                assert client.delete("/v1/audio/voices/anna").json()["deleted"]
                assert client.delete("/v1/audio/voices/anna").status_code == 404
                assert list((tmp_path / "voices").iterdir()) == []


def test_a_name_is_that_of_one_voice(tmp_path):
    with running(service_of(tmp_path)) as address, httpx.Client(base_url=address, timeout=30) as client:
        assert upload(client, recording(1.0)).status_code == 201
    service = service_of(tmp_path, voices={"anna": 1})
    service.start()
    wait_for(lambda: service.failure is not None)
    assert re.fullmatch(r"--voice anna: .* uploaded to \S+voices/anna; delete that folder, .*", str(service.failure))
    service.stop()


@cache
def ten_hours_of_silence() -> bytes:
    """FLAC of 0.9 MB."""
    file, minute = io.BytesIO(), np.zeros(60 * 8000, np.int16)
    with soundfile.SoundFile(file, "w", 8000, 1, format="FLAC") as writer:
        for _ in range(600):
            writer.write(minute)
    return file.getvalue()


def of_unknown_length(flac: bytes) -> bytes:
    """The same file as recorders write it that cannot go back: 0 samples, see RFC 9639, section 8.2."""
    return flac[:21] + bytes([flac[21] & 0xF0, 0, 0, 0, 0]) + flac[26:]


def float_wav(values) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.asarray(values, np.float32), RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def zip_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", bytes(50_000_000))
    return file.getvalue()


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


HOSTILE = [
    (lambda: zip_bomb(), "a ZIP archive"),
    (lambda: PLAYLIST, "a playlist"),
    (lambda: b"ID3\x03\x00\x00\x00\x00\x00\x00" + PLAYLIST, "cannot be decoded as audio"),
    (lambda: b"<svg/>" + bytes(100), "it is text"),
    (lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG image"),
    (lambda: bytes(1000), "of an unknown format"),
    (lambda: b"", "the file is empty"),
    (lambda: ten_hours_of_silence(), "it lasts 36000 s; at most 3 s"),
    (lambda: of_unknown_length(ten_hours_of_silence()), "it lasts more than 3 s"),
    (lambda: float_wav([0.1, float("nan")] * 9000), "NaN or infinite"),
    (lambda: float_wav(np.zeros((9000, 6))), "it has 6 channels"),
    (lambda: recording(1.0)[:999], "cut off"),
    (lambda: bytes(1_000_001), "larger than"),
]


@pytest.mark.parametrize("content, message", HOSTILE[:-1])
def test_hostile_recordings_are_not_decoded(content, message):
    with pytest.raises(ValueError, match=message):
        decode(content(), 3.0)


@pytest.mark.slow
@pytest.mark.parametrize("content, message", HOSTILE)
def test_hostile_uploads_are_refused_by_name(served, content, message):
    """In a process that can open nothing, whatever a file refers to."""
    client, service = served
    answer = upload(client, content())
    assert answer.status_code in (400, 413) and message in answer.json()["error"]["message"], answer.text
    assert answer.json()["error"]["param"] == "audio_sample" and service.model.voices.uploaded == {}


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"name": "../../../tmp/evil"}, "name"),
        ({"name": "speaker_0"}, "name"),
        ({"name": "alloy"}, "name"),
        ({"consent": ""}, "consent"),
        ({"consent": "yes"}, "consent"),
        ({"ref_text": " "}, "ref_text"),
        ({"speaker": -1}, "speaker"),
    ],
)
def test_voices_need_names_texts_and_consent(served, fields, param):
    client, _ = served
    answer = upload(client, recording(1.0), **fields)
    assert answer.status_code in (400, 409) and answer.json()["error"]["param"] == param, answer.text


def test_a_conversation_goes_on_after_a_restart(tmp_path):
    generator = speaking_generator()
    conversation = Conversation(generator)
    sound = heard_samples(recording(), "wav")
    expected = [conversation.say("one", 0, seed=1, **TURN)]
    conversation.hear(Segment(1, "heard", torch.from_numpy(sound)))
    expected += [conversation.say("two", 0, seed=2, **TURN), conversation.say("three", 0, seed=3, **TURN)]

    with running(service_of(tmp_path)) as address, httpx.Client(base_url=address, timeout=30) as client:
        session = client.post("/v1/conversations", json={}).json()["id"]
        audio = [say(client, session, "one", 1)]
        turn = {"speaker": 1, "text": "heard", "audio": base64.b64encode(recording()).decode()}
        assert client.post(f"/v1/conversations/{session}/turns", json=turn).status_code == 201
        audio.append(say(client, session, "two", 2))
    folder = tmp_path / "conversations" / session
    (folder / "000003.safetensors.partial").write_bytes(b"half a turn")
    with running(service_of(tmp_path)) as address, httpx.Client(base_url=address, timeout=30) as client:
        turns = client.get(f"/v1/conversations/{session}").json()["turns"]
        assert [(turn["kind"], turn["text"]) for turn in turns] == [
            ("spoken", "one"),
            ("heard", "heard"),
            ("spoken", "two"),
        ]
        audio.append(say(client, session, "three", 3))
        for content, turn in zip(audio, expected, strict=True):
            assert np.abs(heard_samples(content, "pcm") - turn.audio.numpy()).max() < 1e-4
        assert client.get("/v1/conversations").json()["data"] == [{"id": session, "object": "conversation"}]
        assert client.delete(f"/v1/conversations/{session}").json()["deleted"]
        assert client.get(f"/v1/conversations/{session}").status_code == 404
        assert list((tmp_path / "conversations").iterdir()) == []


def test_voices_of_a_conversation_stay(served):
    client, _ = served
    upload(client, recording(1.0), speaker=4)
    try:
        session = client.post("/v1/conversations", json={"voices": [{"voice": "anna", "speaker": 5}]}).json()["id"]
        sound = torch.from_numpy(heard_samples(recording(1.0), "wav"))
        conversation = Conversation(speaking_generator(), [Segment(5, "a tone", sound)])
        expected = conversation.say("one", 5, seed=1, **TURN).audio.numpy()
        assert np.abs(heard_samples(say(client, session, "one", 1, voice="anna"), "pcm") - expected).max() < 1e-4
        wrong = client.post("/v1/audio/speech", json={**OPTIONS, "session_id": session, "voice": "anna", "speaker": 1})
        assert wrong.json()["error"]["param"] == "speaker"
        other = client.post("/v1/conversations", json={}).json()["id"]
        wrong = client.post("/v1/audio/speech", json={**OPTIONS, "session_id": other, "voice": "anna"})
        assert wrong.json()["error"]["param"] == "voice"
    finally:
        client.delete("/v1/audio/voices/anna")


def test_a_busy_conversation_keeps_nobody_else_out(tmp_path):
    """Those who wait for it take no place to speak, have a most, and say nothing if they have left meanwhile."""
    service = service_of(tmp_path, slots=2, limits=Limits(queue=1, session_queue=4))
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client:
        session = client.post("/v1/conversations", json={}).json()["id"]
        body = {**OPTIONS, "session_id": session, "voice": None, "input": "x" * 40, "max_audio_length_ms": 9_000}
        dialogue = service.loaded.dialogues.get(session)

        def waited(most: int) -> bool:
            return dialogue.waiting == most

        with asking(address, body) as speaking, ExitStack() as leaving:
            speaking.recv(1)
            for waiting in range(4):
                leaving.enter_context(asking(address, {**body, "input": "I waited."}))
                wait_for(partial(waited, waiting + 1))
            assert service.live == 1
            error = client.post("/v1/audio/speech", json=body).json()["error"]
            assert error["code"] == "conversation_busy" and error["message"].startswith("4 other requests wait")
            assert client.post("/v1/audio/speech", json=OPTIONS).status_code == 200
            leaving.close()
            assert dialogue.waiting == 4
        wait_for(lambda: dialogue.waiting == 0 and not dialogue.lock.locked())
        say(client, session, "after", 1)
        turns = client.get(f"/v1/conversations/{session}").json()["turns"]
        assert [turn["text"] for turn in turns] == ["x" * 40, "after"]


def test_turns_of_one_conversation_wait_for_each_other(served):
    client, service = served
    session = client.post("/v1/conversations", json={}).json()["id"]
    body = {**OPTIONS, "session_id": session, "voice": None, "input": "x" * 40, "max_audio_length_ms": 9_000}
    with client.stream("POST", "/v1/audio/speech", json=body) as answer:
        next(answer.iter_bytes())
    begun = time.monotonic()
    say(client, session, "after", 1)  # waits for the turn that was left, which ends at once
    assert time.monotonic() - begun < service.limits.session_wait
    turns = client.get(f"/v1/conversations/{session}").json()["turns"]
    assert [turn["finish_reason"] for turn in turns] == ["cancelled", "length"] and turns[0]["seconds"] < 9
