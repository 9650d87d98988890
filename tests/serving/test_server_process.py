"""`csm serve` as a process: the official client, kill -9 in the middle of conversations, SIGTERM, wrong options."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest
import torch

from csm.codec import SpectralCodec
from csm.config import CodecConfig, CodecKind
from csm.formats.load import load_generator
from csm.formats.native import write_native
from csm.formats.tensors import lazy
from csm.model.csm import CSM
from csm.text import ByteTokenizer
from tests.conftest import ROOT
from tests.serving.served import heard_samples
from tests.tiny import CODEBOOK_SIZE, K, tiny_config

PORT = 8000 + os.getpid() % 20_000


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    config = replace(tiny_config(), text_vocab_size=ByteTokenizer.vocab_size, max_seq_len=512)
    torch.manual_seed(0)
    weights = lazy(CSM(config).state_dict())
    noise = 0.1 * torch.randn(60_000, generator=torch.Generator().manual_seed(0))
    codec = SpectralCodec.fit([noise], num_codebooks=K, codebook_size=CODEBOOK_SIZE)
    kind = CodecConfig(kind=CodecKind.spectral, num_codebooks=K, codebook_size=CODEBOOK_SIZE)
    write_native(
        folder,
        weights,
        config,
        kind,
        codec.info,
        codec,
        ByteTokenizer(),
        {},
    )
    return folder


@contextmanager
def serving(model: Path, data: Path, *options: str) -> Iterator[tuple[subprocess.Popen, httpx.Client]]:
    command = [sys.executable, "-m", "csm.cli", "serve", str(model), "--port", str(PORT), "--data", str(data), *options]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=60) as client:
            while not ready(client):
                assert process.poll() is None
                time.sleep(0.1)
            yield process, client
    finally:
        process.kill()
        process.wait()


def ready(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_the_official_client_gets_every_format(model, tmp_path):
    generator = load_generator(model)
    expected = generator.generate("Hello.", 0, [], max_audio_length_ms=800, seed=1)
    os.environ["CSM_TEST_KEY"] = "a-secret-key"
    with serving(model, tmp_path, "--voice", "alloy=0", "--api-key-env", "CSM_TEST_KEY") as (_, http):
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

    for _ in range(2):
        with serving(model, tmp_path) as (process, client):
            for session, texts in finished.items():
                turns = client.get(f"/v1/conversations/{session}").json()["turns"]
                assert [turn["text"] for turn in turns][: len(texts)] == texts and len(turns) <= len(texts) + 1
                assert all(turn["seconds"] > 0 for turn in turns)
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
    with serving(model, tmp_path) as (process, client):
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
        (["--num-codebooks", "99"], "num_codebooks=99"),
    ],
)
def test_mistakes_are_one_line(model, tmp_path, options, message):
    command = [sys.executable, "-m", "csm.cli", "serve", str(model), "--port", str(PORT), "--data", str(tmp_path)]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
