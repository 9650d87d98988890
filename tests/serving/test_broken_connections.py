"""Answers on the WebSocket that are broken off, fail or come at bad times; conversations and voices a crash leaves."""

from __future__ import annotations

import json
import shutil

import httpx
import numpy as np
import pytest

from csm import Conversation
from csm.serving.settings import Limits
from tests.serving.served import OPTIONS, heard_samples, recording, running, service_of, speaking_generator
from tests.serving.test_voices_and_conversations import upload
from tests.serving.test_websocket import opened, receive, send, text, until

DONE = {"type": "input.done"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    service = service_of(tmp_path_factory.mktemp("data"), limits=Limits(loaded=1, turns=12, context_turns=3))
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client, service


def begun(client) -> str:
    return client.post("/v1/conversations", json={}).json()["id"]


def turns_of(client, session: str) -> list[tuple[str, float]]:
    return [(turn["text"], turn["seconds"]) for turn in client.get(f"/v1/conversations/{session}").json()["turns"]]


def test_long_pieces_keep_their_spaces(served):
    """Words of a sentence longer than a turn, and nothing but spaces."""
    client, _ = served
    words = [f"word{n}" for n in range(90)]
    with opened(client, max_audio_length_ms=160) as socket:
        for piece in (" " * 300, *(f"{word} " for word in words), " " * 300):
            send(socket, text(piece))
        send(socket, DONE)
        events, _ = until(socket, "audio.done")
    spoken = " ".join(event["text"] for event in events if event["type"] == "audio.sentence")
    assert spoken.split() == words


def test_breaking_in_ends_any_number_of_answers(served):
    client, service = served
    with opened(client, max_audio_length_ms=28_000) as socket:
        for _ in range(12):
            send(socket, text("x" * 120), DONE)
        while not isinstance(receive(socket), bytes):
            pass
        send(socket, {"type": "response.cancel", "played_ms": 0})
        events, _ = until(socket, "audio.cancelled")
        assert events[-1]["answer"] == 0 and service.live == 0
        assert not [event for event in events if event["type"] == "audio.done"]


def test_nothing_stays_that_comes_after_what_was_heard(served):
    """The first answer was played to its end, the second not begun: it is forgotten."""
    client, _ = served
    session = begun(client)
    with opened(client, session_id=session, max_audio_length_ms=400) as socket:
        for word in ("One.", "Two.", "Three."):
            send(socket, text(word), DONE)
            until(socket, "audio.done")
        send(socket, {"type": "response.cancel", "answer": 0, "played_ms": 60_000})
        events, _ = until(socket, "audio.cancelled")
        assert events[-1]["heard"][0]["complete"]
        assert [name for name, _ in turns_of(client, session)] == ["One."]


def test_an_answer_is_cut_though_its_conversation_left_the_memory(served):
    client, _ = served
    session = begun(client)
    with opened(client, session_id=session, max_audio_length_ms=800) as socket:
        send(socket, text("One."), DONE)
        until(socket, "audio.done")
        begun(client)  # only one stays in memory
        assert [name for name, _ in turns_of(client, session)] == ["One."]  # loaded anew
        send(socket, {"type": "response.cancel", "played_ms": 160})
        assert until(socket, "audio.cancelled")[0][-1]["heard"][0]["played_ms"] == 160
        assert turns_of(client, session) == [("One.", 0.16)]
        send(socket, text("Next."), DONE)
        _, audio = until(socket, "audio.done")

    conversation = Conversation(speaking_generator())
    conversation.say("One.", 1, seed=3, max_audio_length_ms=800)
    conversation.cut(conversation.turns[0], 2)
    expected = conversation.say("Next.", 1, seed=4, max_audio_length_ms=800).audio.numpy()
    assert np.abs(heard_samples(audio, "pcm") - expected).max() < 1e-4


def test_an_answer_that_cannot_be_kept_is_an_error_event(served):
    """The conversation's folder has become unwritable: the client is told so, and the next answer is spoken."""
    client, service = served
    session = begun(client)
    with opened(client, session_id=session, max_audio_length_ms=400) as socket:
        folder = service.model.dialogues.folder / session
        shutil.rmtree(folder)
        folder.write_text("not a folder")
        send(socket, text("One."), DONE)
        events, _ = until(socket, "error")
        assert events[-1]["answer"] == 0 and events[-1]["error"]["code"] == "server_error"
        assert service.live == 0
        folder.unlink()
        send(socket, text("Two."), DONE)
        assert until(socket, "audio.done")[1]


def test_an_answer_in_events_that_cannot_be_kept_ends_with_an_error(served):
    """All that was spoken has been sent by then."""
    client, service = served
    session = begun(client)
    folder = service.model.dialogues.folder / session
    shutil.rmtree(folder)
    folder.write_text("not a folder")  # the conversation itself is in memory
    body = {**OPTIONS, "voice": None, "session_id": session, "stream_format": "sse"}
    answer = client.post("/v1/audio/speech", json=body)
    folder.unlink()
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")]
    kinds = [event["type"] for event in events]
    assert answer.status_code == 200
    assert kinds == ["speech.audio.delta"] * (len(events) - 1) + ["speech.audio.error"] and len(events) > 1
    assert events[-1]["error"]["code"] == "server_error" and service.live == 0


def test_a_conversation_has_the_most_turns_whoever_speaks(served):
    client, _ = served
    session = begun(client)
    with opened(client, session_id=session, max_audio_length_ms=80) as socket:
        for number in range(13):
            send(socket, text(f"{number}."), DONE)
            events, _ = until(socket, "audio.done" if number < 12 else "error")
    assert events[-1]["error"]["code"] == "too_many_turns" and len(turns_of(client, session)) == 12
    voices = {"voices": [{"voice": "speaker_0"}] * 4}
    assert client.post("/v1/conversations", json=voices).json()["error"]["param"] == "voices"


def test_a_draining_server_ends_what_it_began(tmp_path):
    """Answers that wait are spoken, and a listener who breaks in is heard; new ones are refused."""
    service = service_of(tmp_path)
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client:
        session = begun(client)
        with opened(client, session_id=session, max_audio_length_ms=2_000) as socket:
            send(socket, text("x" * 60), DONE, text("Then this."), DONE)
            send(socket, {"type": "unknown"})
            until(socket, "error")  # so both answers have been taken
            service.draining = True
            send(socket, text("Too late."))
            events, _ = until(socket, "error")
            assert events[-1]["error"]["code"] == "server_draining"
            while events[-1].get("answer") != 1 or events[-1]["type"] != "audio.done":
                events, _ = until(socket, "audio.done")
            send(socket, {"type": "response.cancel", "answer": 1, "played_ms": 80})
            assert until(socket, "audio.cancelled")[0][-1]["heard"][0]["played_ms"] == 80
        service.draining = False
        assert turns_of(client, session)[1] == ("Then this.", 0.08)


def test_a_server_told_to_stop_while_it_prepares_speaks(tmp_path):
    """The request was taken before the signal came."""
    service = service_of(tmp_path)
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client:
        session = begun(client)
        prepare = service.prepare

        async def stopped(function, *arguments, **options):
            if getattr(function, "__name__", "") == "_prepare":
                service.draining = True
            return await prepare(function, *arguments, **options)

        service.prepare = stopped
        answer = client.post("/v1/audio/speech", json={**OPTIONS, "voice": None, "session_id": session})
        assert answer.status_code == 200 and answer.content


def test_conversations_of_another_codec_can_be_deleted(tmp_path):
    with running(service_of(tmp_path)) as address, httpx.Client(base_url=address, timeout=30) as client:
        session = begun(client)
    about = tmp_path / "conversations" / session / "conversation.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "codec": "another"}))
    with running(service_of(tmp_path)) as address, httpx.Client(base_url=address, timeout=30) as client:
        spoken = client.post("/v1/audio/speech", json={**OPTIONS, "voice": None, "session_id": session})
        for answer in (spoken, client.get(f"/v1/conversations/{session}")):
            assert answer.status_code == 409
            assert answer.json()["error"]["code"] == "conversation_of_another_codec"
        assert client.delete(f"/v1/conversations/{session}").json()["deleted"] and not about.parent.exists()
        assert client.delete(f"/v1/conversations/{session}").status_code == 404


def test_voices_that_a_kill_left_half_are_gone(tmp_path):
    """Killed while it wrote one voice and deleted another."""
    with running(service_of(tmp_path)) as address, httpx.Client(base_url=address, timeout=30) as client:
        assert upload(client, recording(1.0)).status_code == 201
    voices = tmp_path / "voices"
    shutil.copytree(voices / "anna", voices / "bert.partial")
    (voices / "bert.partial" / "voice.json").write_text('{"name": "be')
    shutil.copytree(voices / "anna", voices / "carl.deleted")
    (voices / "carl.deleted" / "audio.wav").unlink()
    with running(service_of(tmp_path)) as address, httpx.Client(base_url=address, timeout=30) as client:
        assert client.get("/v1/audio/voices").json()["uploaded_voices"] == ["anna"]
        assert [path.name for path in voices.iterdir()] == ["anna"]
