"""Patience of the server, and its bounds: slow readers while it drains, text that does not come, marks that fail."""

from __future__ import annotations

import base64
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest
import torch

from csm.serving.marks import Marking
from csm.serving.server import run_server
from csm.serving.settings import Limits
from csm.watermark import WatermarkUnavailable
from tests.serving.processes import PORT, ready
from tests.serving.served import FRAME, OPTIONS, asking, recording, running, service_of, started, wait_for
from tests.serving.test_voices_and_conversations import upload
from tests.serving.test_websocket import opened, send, text, until

LONG = {**OPTIONS, "input": "x" * 120, "max_audio_length_ms": 25_000, "response_format": "pcm"}


@pytest.mark.parametrize("stream", [True, False])
def test_a_listener_who_reads_slowly_gets_all_of_it(tmp_path, stream):
    """Told to stop when all is spoken, and most of it is not yet read, the server waits for the reader."""
    service = service_of(tmp_path)
    with started(service) as (server, address):
        server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # connections inherit it
        last = b"\r\n0\r\n\r\n" if stream else b""
        with asking(address, {**LONG, "stream": stream}, buffer=4096) as reader:
            received = reader.recv(100)
            wait_for(lambda: service.live == 0, 60)
            server.handle_exit(signal.SIGTERM, None)
            time.sleep(0.5)
            assert not server.should_exit
            while part := reader.recv(1 << 16):
                received += part
        assert received.endswith(last) and len(received) > 2 * FRAME * 312
        assert server.should_exit


def test_what_is_spoken_is_marked_and_encoded_before_the_server_stops(tmp_path):
    """The mark of an unstreamed answer takes a while after the last word."""
    service = service_of(tmp_path)
    service.marking = Marking("late", lambda rate: Late())
    short = {**OPTIONS, "stream": False, "response_format": "pcm"}
    with started(service) as (server, address), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{address}/v1/audio/speech", json=short, timeout=30)
        wait_for(lambda: service.live == 1)
        wait_for(lambda: service.live == 0)
        server.handle_exit(signal.SIGTERM, None)
        time.sleep(0.3)
        assert not server.should_exit and not answer.done()
        assert len(answer.result().content) == 2 * FRAME * 10


def test_what_waits_for_its_conversation_is_spoken_before_the_server_stops(tmp_path):
    """Requests that come later are refused, also those that only read."""
    service = service_of(tmp_path)
    with started(service) as (server, address), ThreadPoolExecutor(2) as pool:
        speech = partial(httpx.post, f"{address}/v1/audio/speech", timeout=30)
        with httpx.Client(base_url=address, timeout=30) as client:
            session = client.post("/v1/conversations", json={}).json()["id"]
            url, dialogue = f"/v1/conversations/{session}", service.loaded.dialogues.get(session)
            body = {**LONG, "voice": None, "session_id": session, "stream": False}
            first = pool.submit(speech, json=body)
            wait_for(dialogue.lock.locked)
            short = {**body, "input": "I waited.", "max_audio_length_ms": 800}
            second = pool.submit(speech, json=short)
            wait_for(lambda: dialogue.waiting == 1)
            server.handle_exit(signal.SIGTERM, None)
            for refused in (
                client.post("/v1/audio/speech", json=short),
                client.post("/v1/audio/speech/batch", json={"model": "tiny", "items": [{"input": "Late."}]}),
                client.post("/v1/conversations", json={}),
                client.get(url),
            ):
                assert refused.status_code == 503 and refused.json()["error"]["code"] == "server_draining"
        assert first.result().status_code == 200
        assert second.result().status_code == 200 and len(second.result().content) == 2 * FRAME * 10
        wait_for(lambda: server.should_exit)


class Late:
    """A mark that keeps all audio to its end."""

    def __init__(self) -> None:
        self.kept = torch.zeros(0)

    def push(self, audio):
        self.kept = torch.cat([self.kept, audio])
        return torch.zeros(0)

    def flush(self):
        time.sleep(1.0)
        return self.kept


def test_an_answer_whose_text_does_not_come_ends(tmp_path):
    """It would hold a place for a response, and its conversation, as long as the connection is open."""
    service = service_of(tmp_path, limits=Limits(text_wait=0.2))
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client, opened(client) as socket:
        send(socket, text("And"))
        events, _ = until(socket, "error")
        assert events[-1]["error"]["code"] == "text_timeout"
        events, audio = until(socket, "audio.done")
        assert events[0]["text"] == "And" and audio
        wait_for(lambda: service.live == 0)
        send(socket, text("Next."), {"type": "input.done"})
        assert until(socket, "audio.done")[0][-1]["answer"] == 1


def test_a_server_whose_engine_failed_ends_with_its_error(tmp_path):
    """The turn that was being spoken is refused, and the error leaves the process: a supervisor sees its exit code."""
    service, errors = service_of(tmp_path), []

    def serve() -> None:
        try:
            run_server(service, "127.0.0.1", PORT)
        except ZeroDivisionError as error:
            errors.append(error)

    threading.Thread(target=serve, daemon=True).start()
    with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=30) as client:
        wait_for(lambda: ready(client))
        service.loaded.engine.streams.advance = lambda: 1 / 0
        answer = client.post("/v1/audio/speech", json={**OPTIONS, "stream": False})
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "server_failed"
        wait_for(lambda: errors == [service.failure])


class Failing:
    """A mark that fails from some piece on."""

    def __init__(self, pieces: int) -> None:
        self.left = pieces

    def push(self, audio):
        if self.left == 0:
            raise WatermarkUnavailable("its weights are not there")
        self.left -= 1
        return audio

    def flush(self):
        return torch.zeros(0)


def test_a_mark_without_weights_is_met_before_the_server_is_ready(tmp_path):
    service = service_of(tmp_path)
    service.marking = Marking("failing", lambda rate: Failing(0))
    service.start()
    wait_for(lambda: service.failure is not None)
    assert isinstance(service.failure, WatermarkUnavailable) and service.state == "failed"
    service.stop()


def test_an_answer_that_fails_frees_its_slot(tmp_path):
    service = service_of(tmp_path)
    service.marking = Marking("failing", lambda rate: Failing(1))
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client:
        engine = service.loaded.engine
        requests, speak = [], engine.speak
        engine.speak = lambda request, *rest: requests.append(request) or speak(request, *rest)
        with pytest.raises(httpx.RemoteProtocolError):
            client.post("/v1/audio/speech", json=LONG)
        wait_for(lambda: service.live == 0)
        assert [request.finished for request in requests] == ["cancelled"]
        answer = client.post("/v1/audio/speech", json={**LONG, "stream": False})
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "server_error"
        wait_for(lambda: service.live == 0)


class Slow:
    """A mark that takes as long for a second of audio as for a frame: longer than a frame lasts."""

    def __init__(self, pushes):
        self.pushes = pushes

    def push(self, audio):
        time.sleep(0.1)
        self.pushes.append(len(audio) // FRAME)
        return audio

    def flush(self):
        return torch.zeros(0)


def test_a_mark_slower_than_frames_takes_several_at_a_time(tmp_path):
    service = service_of(tmp_path)
    pushes: list[int] = []
    service.marking = Marking("slow", lambda rate: Slow(pushes))
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client:
        pushes.clear()  # of the start
        marked = client.post("/v1/audio/speech", json=LONG).content
        in_time = list(pushes)
        pushes.clear()
        assert marked == client.post("/v1/audio/speech", json={**LONG, "stream": False}).content
        assert pushes == [
            125,
            125,
            62,
        ]  # whatever the time: the same bytes again with marks that depend on their pieces
        service.marking = Marking()
        assert marked == client.post("/v1/audio/speech", json=LONG).content
    assert sum(in_time) == len(marked) // 2 // FRAME == 312
    assert in_time[0] < 100 and max(in_time) > 1 and len(in_time) < 100


def test_threads_leave_each_other_a_core(tmp_path):
    """More threads of torch than cores wait for each other by spinning."""
    service = service_of(tmp_path)
    counts: dict[str, set[int]] = {"mark": set(), "engine": set()}

    class Counting(Slow):
        def push(self, audio):
            counts["mark"].add(torch.get_num_threads())
            return audio

    service.marking = Marking("counting", lambda rate: Counting([]))
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with running(service) as address, httpx.Client(base_url=address, timeout=30) as client:
            counts["mark"].clear()  # of the start
            streams, advance = service.loaded.engine.streams, service.loaded.engine.streams.advance
            streams.advance = lambda: counts["engine"].add(torch.get_num_threads()) or advance()
            assert client.post("/v1/audio/speech", json=LONG).status_code == 200
    finally:
        torch.set_num_threads(before)
    assert counts == {"mark": {1}, "engine": {3}}


def test_a_folder_is_one_server_s(tmp_path):
    with running(service_of(tmp_path)):
        second = service_of(tmp_path)
        second.start()
        wait_for(lambda: second.failure is not None)
        assert "another server is using this folder" in str(second.failure)
        second.stop()


def test_a_context_that_is_too_long_is_refused_before_it_is_encoded(tmp_path):
    service = service_of(tmp_path)
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client:
        assert upload(client, recording(45.0)).status_code == 201  # the model reads 512 positions, 41 s
        codec, encoded = service.loaded.generator.codec, []
        encode = codec.encode
        codec.encode = lambda audio: encoded.append(audio) or encode(audio)
        voices = [{"voice": "anna"}]
        turn = {"text": "a tone", "audio": base64.b64encode(recording(25.0)).decode()}
        for path, body, param in (
            ("audio/speech", {**OPTIONS, "voice": "anna"}, "context"),
            ("conversations", {"voices": voices}, "voices"),
            ("conversations", {"turns": [turn, turn]}, "turns"),
        ):
            answer = client.post(f"/v1/{path}", json=body)
            error = answer.json()["error"]
            assert answer.status_code == 400 and error["code"] == "context_too_long" and error["param"] == param
            assert "last 45 s" in error["message"] or param == "turns"
        assert not encoded
        session = client.post("/v1/conversations", json={"turns": [turn]}).json()["id"]
        long = {"voice": "anna"}
        assert client.post(f"/v1/conversations/{session}/turns", json=long).json()["error"]["param"] == "turns"
