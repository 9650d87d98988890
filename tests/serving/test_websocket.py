"""Text in pieces over the WebSocket: what is said, what was heard when a listener breaks in, what is refused."""

from __future__ import annotations

import json
import signal
from contextlib import ExitStack, contextmanager

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from csm import Conversation
from csm.serving.dialogues import Dialogue
from csm.serving.errors import invalid
from csm.serving.settings import Limits
from tests.serving.served import (
    FRAME,
    OPTIONS,
    heard_samples,
    running,
    service_of,
    speaking_generator,
    started,
    wait_for,
)

CONFIG = {"type": "session.config", "model": "tiny", "voice": "speaker_1", "seed": 3, "max_audio_length_ms": 2_000}
PIECES = ["One, t", "wo. Thr", "ee, four. Fi", "ve"]
SENTENCES = ["One, two.", "Three, four.", "Five"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    service = service_of(tmp_path_factory.mktemp("data"))
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client, service


@contextmanager
def opened(client, **changes):
    with connect(f"ws://{client.base_url.netloc.decode()}/v1/audio/speech/stream") as socket:
        send(socket, {**CONFIG, **changes})
        assert receive(socket)["type"] == "session.created"
        yield socket


def send(socket, *events):
    for event in events:
        socket.send(json.dumps(event))


def receive(socket):
    message = socket.recv(timeout=20)
    return message if isinstance(message, bytes) else json.loads(message)


def until(socket, kind: str) -> tuple[list[dict], bytes]:
    """Events up to the first of a kind, and the audio before it."""
    events, audio = [], b""
    while not events or events[-1]["type"] != kind:
        message = receive(socket)
        if isinstance(message, bytes):
            audio += message
        else:
            events.append(message)
    return events, audio


def text(piece: str) -> dict:
    return {"type": "input.text", "text": piece}


def spoken_in_turn(texts, most: float):
    """The sentences as one conversation says them, as long as there is time."""
    conversation, turns = Conversation(speaking_generator()), []
    for number, part in enumerate(texts):
        left = most - sum(turn.frames for turn in turns) * 80
        if left:
            turns.append(conversation.say(part, 1, seed=3 + number, max_audio_length_ms=left))
    return turns


def test_sentences_are_spoken_as_they_are_complete(served):
    client, service = served
    with opened(client, max_audio_length_ms=20_000) as socket:
        send(socket, *map(text, PIECES))
        before, _ = until(socket, "audio.sentence")
        assert [event["type"] for event in before] == ["audio.start", "audio.sentence"]
        send(socket, {"type": "input.done"})
        events, _ = until(socket, "audio.done")
        assert [event["text"] for event in events[:-1]] == SENTENCES[1:]
        send(socket, {"type": "session.close"})
        assert receive(socket) == {"type": "session.done"}
    assert service.live == 0


def test_an_answer_is_what_the_conversation_says(served):
    client, _ = served
    turns = spoken_in_turn(SENTENCES, 8_000)
    assert len(turns) == 2
    expected = np.concatenate([turn.audio.numpy() for turn in turns])
    with opened(client, response_format="flac", max_audio_length_ms=8_000) as socket:
        send(socket, *map(text, PIECES), {"type": "input.done"})
        events, audio = until(socket, "audio.done")
    assert np.abs(heard_samples(audio, "flac") - expected).max() < 1e-4
    assert events[-1]["usage"]["output_tokens"] == sum(turn.frames for turn in turns)


def test_what_is_flushed_is_spoken_before_its_sentence_ends(served):
    client, _ = served
    with opened(client, max_audio_length_ms=4_000) as socket:
        send(socket, text("One, two"))
        send(socket, {"type": "input.flush"})
        events, _ = until(socket, "audio.sentence")
        assert events[-1]["text"] == "One, two"
        send(socket, text("and three."), {"type": "input.done"})
        events, _ = until(socket, "audio.done")
    assert [event["text"] for event in events[:-1]] == ["and three."] and events[-1]["answer"] == 0


def test_the_conversation_keeps_what_was_heard(served):
    client, _ = served
    session = client.post("/v1/conversations", json={}).json()["id"]
    with opened(client, session_id=session) as socket:
        send(socket, text("One, two. "), text("Three. "), {"type": "input.done"})
        _, audio = until(socket, "audio.done")
        frames = len(audio) // 2 // FRAME
        send(socket, {"type": "response.cancel", "played_ms": 3.5 * 80})
        events, _ = until(socket, "audio.cancelled")
        assert events[-1]["played_ms"] == 280
        assert events[-1]["heard"] == [
            {"text": "One, two.", "played_ms": 320, "spoken_ms": frames * 80, "complete": False}
        ]
        turns = client.get(f"/v1/conversations/{session}").json()["turns"]
        assert [(turn["text"], turn["seconds"]) for turn in turns] == [("One, two.", 0.32)]
        send(socket, text("Next."), {"type": "input.done"})
        _, audio = until(socket, "audio.done")

    conversation = Conversation(speaking_generator())
    conversation.say("One, two.", 1, seed=3, max_audio_length_ms=2_000)
    conversation.cut(conversation.turns[0], 4)
    expected = conversation.say("Next.", 1, seed=4, max_audio_length_ms=2_000).audio.numpy()
    assert np.abs(heard_samples(audio, "pcm") - expected).max() < 1e-4


def test_breaking_in_ends_what_is_spoken(served):
    client, service = served
    with opened(client, max_audio_length_ms=28_000) as socket:
        send(socket, text("x" * 120), {"type": "input.done"}, text("And then more."), {"type": "input.done"})
        while not isinstance(receive(socket), bytes):
            pass
        send(socket, {"type": "response.cancel", "played_ms": 0})
        events, _ = until(socket, "audio.cancelled")
        assert events[-1] == {"type": "audio.cancelled", "answer": 0, "played_ms": 0, "heard": []}
        assert service.live == 0 and not any(service.model.generator.engine.slots)
        send(socket, text("Now this."), {"type": "input.done"})
        events, audio = until(socket, "audio.done")
        assert events[-1]["answer"] == 2 and audio


def test_a_connection_takes_one_place(tmp_path):
    """However many answers it has not yet spoken, of which there is a most."""
    service = service_of(tmp_path, slots=2, limits=Limits(queue=1))
    with (
        running(service) as address,
        httpx.Client(base_url=address, timeout=30) as client,
        opened(client, max_audio_length_ms=25_000) as socket,
        opened(client) as other,
    ):
        for _ in range(4):
            send(socket, text("x" * 120), {"type": "input.done"})
        events, _ = until(socket, "error")
        assert events[-1]["error"]["code"] == "server_busy" and service.live == 1
        send(other, text("Hello."), {"type": "input.done"})
        assert until(other, "audio.done")[1]
        send(socket, {"type": "response.cancel", "played_ms": 0})
        until(socket, "audio.cancelled")
        assert service.live == 0
        send(socket, text("Next."), {"type": "input.done"})
        assert until(socket, "audio.done")[1]


def test_answers_that_wait_for_their_conversation_take_no_place(tmp_path):
    """They are spoken when it is free, if there is a place then, also while the server drains."""
    service = service_of(tmp_path, slots=2, limits=Limits(queue=1))
    with (
        started(service) as (server, address),
        httpx.Client(base_url=address, timeout=30) as client,
        ExitStack() as sockets,
    ):
        session = client.post("/v1/conversations", json={}).json()["id"]
        options = {"session_id": session, "voice": None, "max_audio_length_ms": 25_000}
        speaking, cancelled, refused, last = (sockets.enter_context(opened(client, **options)) for _ in range(4))
        dialogue = service.loaded.dialogues.get(session)
        send(speaking, text("x" * 120))  # goes on until it is done
        wait_for(dialogue.lock.locked)
        for number, socket in enumerate((cancelled, refused, last), 1):
            send(socket, text("I waited."), {"type": "input.done"})
            wait_for(lambda most=number: dialogue.waiting == most)
        assert service.live == 1
        assert client.post("/v1/audio/speech", json=OPTIONS).status_code == 200
        send(cancelled, {"type": "response.cancel"})
        reserve, asked = service.reserve, iter([4, 1])  # of three places
        service.reserve = lambda: reserve(next(asked))
        server.handle_exit(signal.SIGTERM, None)
        send(speaking, {"type": "input.done"})
        assert until(speaking, "audio.done")[1]
        assert [event["type"] for event in until(cancelled, "audio.cancelled")[0]] == ["audio.cancelled"]
        assert until(refused, "error")[0][-1]["error"]["code"] == "server_busy"
        assert until(last, "audio.done")[1]
        wait_for(lambda: server.should_exit)


def test_an_answer_that_cannot_be_made_takes_no_place(served, monkeypatch):
    client, service = served

    def refuse(*_) -> None:
        raise invalid("response_format: has no encoder", "response_format")

    with opened(client) as socket:
        with monkeypatch.context() as patched:
            patched.setattr("csm.serving.answer.SpeechFile", refuse)
            send(socket, text("Hello."))
            assert until(socket, "error")[0][-1]["error"]["param"] == "response_format"
        assert service.live == 0
        send(socket, text("Hello."), {"type": "input.done"})
        assert until(socket, "audio.done")[1]
    wait_for(lambda: service.live == 0)


def test_an_idle_connection_keeps_no_keys_and_values(tmp_path):
    """They are computed anew: the next answer is what it would have been."""
    service, dialogues = service_of(tmp_path, limits=Limits(idle=1.0)), []
    prepare = service.prepare

    async def seen(function, *arguments, **options):
        result = await prepare(function, *arguments, **options)
        if function is Dialogue:
            dialogues.append(result)
        return result

    service.prepare = seen
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client, opened(client) as socket:
        (dialogue,) = dialogues
        send(socket, text("One."), {"type": "input.done"})
        until(socket, "audio.done")
        assert dialogue.conversation._cached is not None
        wait_for(lambda: dialogue.conversation._cached is None)
        send(socket, text("Two."), {"type": "input.done"})
        _, audio = until(socket, "audio.done")
    conversation = Conversation(speaking_generator())
    conversation.say("One.", 1, seed=3, max_audio_length_ms=2_000)
    expected = conversation.say("Two.", 1, seed=4, max_audio_length_ms=2_000).audio.numpy()
    assert np.abs(heard_samples(audio, "pcm") - expected).max() < 1e-4


def test_leaving_ends_what_is_spoken(served):
    client, service = served
    with opened(client, max_audio_length_ms=28_000) as socket:
        send(socket, text("x" * 120), {"type": "input.done"})
        while not isinstance(receive(socket), bytes):
            pass
    wait_for(lambda: service.live == 0)
    assert not any(service.model.generator.engine.slots)


def test_mistakes_are_events_and_the_session_goes_on(served):
    client, _ = served
    with connect(f"ws://{client.base_url.netloc.decode()}/v1/audio/speech/stream") as socket:
        mistakes = [
            ("nonsense", "json_invalid"),
            ("[" * 100_000, "json_invalid"),
            (b"binary", "json_invalid"),
            (json.dumps(text("too early")), "invalid_value"),
            (json.dumps({**CONFIG, "voice": "nobody"}), "voice_not_found"),
            (json.dumps({**CONFIG, "surprise": 1}), "unknown_parameter"),
            (json.dumps({**CONFIG, "session_id": "conv_0"}), "conversation_not_found"),
        ]
        for message, code in mistakes:
            socket.send(message)
            assert receive(socket)["error"]["code"] == code
        send(socket, CONFIG)
        assert receive(socket)["type"] == "session.created"
        for event, param, code in [
            (CONFIG, "type", "invalid_value"),
            ({"type": "unknown"}, "type", "invalid_value"),
            ({"type": "input.text"}, "text", "missing"),
            ({"type": "response.cancel"}, "answer", "invalid_value"),
            (text("x" * 5000), "text", "string_too_long"),
        ]:
            send(socket, event)
            error = until(socket, "error")[0][-1]["error"]
            assert (error["param"], error["code"]) == (param, code)
        assert until(socket, "audio.done")[0][-1]["answer"] == 0  # the one that had become too long
        send(socket, text("Hello."), {"type": "input.done"})
        assert until(socket, "audio.done")[1]


def test_a_message_of_more_than_a_mebibyte_ends_the_session(served):
    client, _ = served
    with opened(client) as socket:
        send(socket, text("x" * (1 << 20)))
        with pytest.raises(ConnectionClosedError) as caught:
            receive(socket)
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1009


def test_keys_and_origins_of_sockets(tmp_path):
    with running(service_of(tmp_path, api_key="secret-key")) as address:
        url = address.replace("http", "ws") + "/v1/audio/speech/stream"
        headers = {"Authorization": "Bearer secret-key"}
        for wrong, status in [({}, 401), ({**headers, "Origin": "https://elsewhere.example"}, 403)]:
            with pytest.raises(InvalidStatus) as caught:
                connect(url, additional_headers=wrong)
            assert caught.value.response.status_code == status
        with connect(url, additional_headers=headers) as socket:
            send(socket, CONFIG)
            assert receive(socket)["type"] == "session.created"
