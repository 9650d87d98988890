"""`csm serve` as a process: the official client, kill -9 in the middle of conversations, SIGTERM, wrong options."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest

from csm.formats.load import load_generator
from tests.conftest import ROOT
from tests.serving.processes import PORT, serving, write_tiny_model
from tests.serving.served import heard_samples

UNMARKED = ("--watermark", "none")
"""A mark's rounding depends on the pieces that it comes in, and so on time."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.slow
def test_the_official_client_gets_every_format(model, tmp_path):
    generator = load_generator(model)
    expected = generator.generate("Hello.", 0, [], max_audio_length_ms=800, seed=1)
    os.environ["CSM_TEST_KEY"] = "a-secret-key"
    options = ("--voice", "alloy=0", "--api-key-env", "CSM_TEST_KEY", *UNMARKED)
    with serving(model, tmp_path, *options) as (_, http):
        client = openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="a-secret-key", max_retries=0)
        assert [one.id for one in client.models.list()] == ["tiny"]
        fields = {"model": "tiny", "voice": "alloy", "input": "Hello."}
        extra = {"seed": 1, "max_audio_length_ms": 800}
        for name in ("mp3", "opus", "aac", "flac", "wav", "pcm"):
            whole = client.audio.speech.create(**fields, response_format=name, extra_body={**extra, "stream": False})
            with client.audio.speech.with_streaming_response.create(
                **fields, response_format=name, extra_body=extra
            ) as answer:
                streamed = b"".join(answer.iter_bytes())
            assert streamed[44:] == whole.read()[44:]
            assert len(heard_samples(streamed, name)) >= len(expected)
        events = client.audio.speech.create(**fields, stream_format="sse", extra_body=extra).text
        assert "event: speech.audio.done" in events
        with pytest.raises(openai.BadRequestError, match="speed"):
            client.audio.speech.create(**fields, speed=2)
        with pytest.raises(openai.NotFoundError):
            client.audio.speech.create(**{**fields, "voice": "nobody"})
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="wrong-key", max_retries=0).models.list()


@pytest.mark.slow
def test_conversations_survive_kill_9(model, tmp_path):
    """Every turn whose answer was received is there, none is half, whenever the server is killed."""
    finished: dict[str, list[str]] = {}

    def talk(client: httpx.Client, session: str) -> None:
        for number in range(1000):
            text, length = f"turn {number}", 80 * (1 + number % 5)
            body = {"model": "tiny", "input": text, "session_id": session, "max_audio_length_ms": length}
            try:
                answer = client.post("/v1/audio/speech", json=body)
            except httpx.TransportError:
                return
            assert answer.status_code == 200
            finished[session].append(text)

    for kills in range(3):
        with serving(model, tmp_path) as (process, client):
            for session, texts in finished.items():
                turns = client.get(f"/v1/conversations/{session}").json()["turns"]
                assert [turn["text"] for turn in turns][: len(texts)] == texts and len(turns) <= len(texts) + 1
                assert all(turn["seconds"] > 0 for turn in turns)
            if kills == 2:
                return
            finished.clear()
            sessions = [client.post("/v1/conversations", json={}).json()["id"] for _ in range(3)]
            finished.update({session: [] for session in sessions})
            threads = [threading.Thread(target=talk, args=(client, session)) for session in sessions]
            for thread in threads:
                thread.start()
            while min(map(len, finished.values())) < 4:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            for thread in threads:
                thread.join()


@pytest.mark.slow
def test_sigterm_lets_what_is_spoken_finish(model, tmp_path):
    with serving(model, tmp_path, *UNMARKED) as (process, client):
        body = {"model": "tiny", "input": "x" * 60, "max_audio_length_ms": 3_000, "response_format": "pcm", "seed": 2}
        expected = client.post("/v1/audio/speech", json=body).content
        with client.stream("POST", "/v1/audio/speech", json=body) as answer:
            parts = answer.iter_bytes()
            first = next(parts)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            refused = httpx.post(f"{client.base_url}/v1/audio/speech", json=body)
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "server_draining"
            assert first + b"".join(parts) == expected
        assert process.wait(20) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, message",
    [
        (["--host", "0.0.0.0"], "--api-key-env VARIABLE, or --open"),
        (["--api-key-env", "CSM_NO_SUCH_KEY"], "must hold a key"),
        (["--voice", "alloy"], "must be NAME=SPEAKER"),
        (["--voice", "anna=nobody"], "voice voices/nobody.safetensors does not exist"),
        (["--num-codebooks", "99"], "num_codebooks=99"),
    ],
)
def test_mistakes_are_one_line(model, tmp_path, options, message):
    command = [sys.executable, "-m", "csm.cli", "serve", str(model), "--port", str(PORT), "--data", str(tmp_path)]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
