"""What the server waits for, and how long: slow readers while it drains, text that does not come, marks that fail."""

from __future__ import annotations

import json
import signal
import socket
import time

import httpx
import torch

from csm.serving.marks import Marking
from csm.serving.settings import Limits
from csm.watermark import WatermarkUnavailable
from tests.serving.served import FRAME, OPTIONS, recording, running, service_of, started, wait_for
from tests.serving.test_voices_and_conversations import upload
from tests.serving.test_websocket import opened, send, text, until

LONG = {**OPTIONS, "input": "x" * 120, "max_audio_length_ms": 25_000, "response_format": "pcm"}


def test_a_listener_who_reads_slowly_gets_all_of_it(tmp_path):
    """Told to stop when all is spoken, and most of it is not yet read, the server waits for the reader."""
    service = service_of(tmp_path)
    with started(service) as (server, address):
        server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # connections inherit it
        host, port = address.removeprefix("http://").split(":")
        content = json.dumps(LONG).encode()
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect((host, int(port)))
            head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            reader.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            received = reader.recv(100)
            wait_for(lambda: service.live == 0, 60)
            server.handle_exit(signal.SIGTERM, None)
            time.sleep(0.5)
            assert not server.should_exit
            while not received.endswith(b"\r\n0\r\n\r\n") and (part := reader.recv(1 << 16)):
                received += part
        assert received.endswith(b"\r\n0\r\n\r\n") and len(received) > 2 * FRAME * 312
        wait_for(lambda: server.should_exit)


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
    service.marking = Marking("failing", lambda rate: Failing(3))
    with running(service) as address, httpx.Client(base_url=address, timeout=30) as client:
        engine = service.loaded.engine
        requests, speak = [], engine.speak
        engine.speak = lambda request, *rest: requests.append(request) or speak(request, *rest)
        answer = client.post("/v1/audio/speech", json={**LONG, "stream": False})
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "server_error"
        wait_for(lambda: service.live == 0)
        assert [request.finished for request in requests] == ["cancelled"]


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
        error = client.post("/v1/audio/speech", json={**OPTIONS, "voice": "anna"}).json()["error"]
        assert error["code"] == "context_too_long" and error["param"] == "context" and "last 45 s" in error["message"]
        assert not encoded
