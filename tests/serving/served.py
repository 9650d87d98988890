"""A server in a thread, over a tiny model whose codec speaks at 24 kHz."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import soundfile
import torch

from csm.codec.base import CodecInfo
from csm.decode import open_audio
from csm.inference.generator import Generator
from csm.serving.server import Server
from csm.serving.service import Service
from csm.serving.settings import Limits, Settings
from tests.inference.toys import ToyCodec, ToyDecoder, ToyTokenizer
from tests.tiny import CODEBOOK_SIZE, K, tiny_model

RATE, FRAME = 24_000, 1_920
TEXT = "hello you"
OPTIONS = {"model": "tiny", "input": TEXT, "voice": "speaker_1", "seed": 3, "max_audio_length_ms": 800}


class ToneCodec(ToyCodec):
    """Code c0 of a frame is a tone, of whole periods in a frame; a recording's codes are its loudest frequencies'."""

    info = CodecInfo("tone", "0", K, CODEBOOK_SIZE, 12.5, RATE)
    name, sample_rate, samples_per_frame, identity = "tone", RATE, FRAME, "tone"

    def encode(self, audio):
        frames = torch.nn.functional.pad(audio, (0, -audio.shape[-1] % FRAME)).unflatten(
            -1, (-1, FRAME)
        )  # [B, 1, T, F]
        first = ((torch.fft.rfft(frames).abs().argmax(-1) - 16) // 4).clamp(0, CODEBOOK_SIZE - 1)
        return torch.cat([first, torch.ones(first.shape[0], K - 1, first.shape[2], dtype=torch.int64)], dim=1)

    def decode(self, codes):
        return tones(codes[:, 0]).flatten(1)[:, None]

    def streaming_decoder(self, slots):
        return ToneDecoder()


class ToneDecoder(ToyDecoder):
    def decode(self, codes, active):
        return tones(codes[:, 0, 0]) * active[:, None]


def tones(codes):
    """Codes [...] -> audio [..., FRAME]."""
    periods = 16 + 4 * codes[..., None]
    return 0.3 * torch.sin(2 * torch.pi * periods * torch.arange(FRAME) / FRAME)


def speaking_generator(slots: int = 3) -> Generator:
    model = tiny_model()
    model.config = replace(model.config, max_seq_len=512)  # room for turns of text
    return Generator(model, ToneCodec(), ToyTokenizer(), slots=slots)


def service_of(
    folder: Path,
    slots: int = 3,
    limits: Limits | None = None,
    generator: Callable[[int], Generator] = speaking_generator,
    **settings,
) -> Service:
    options = {
        "names": ("tiny", "alias"),
        "data": folder,
        "voices": {"alloy": 2},
        "limits": limits or Limits(),
        **settings,
    }
    return Service(lambda: generator(slots), Settings(**options))


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@contextmanager
def running(service: Service) -> Iterator[str]:
    """Address of a server for `service` that is ready."""
    with started(service) as (_, address):
        yield address


@contextmanager
def started(service: Service) -> Iterator[tuple[Server, str]]:
    """A server for `service` that is ready, and its address."""
    server = Server(service, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        address = f"http://127.0.0.1:{port}"
        while httpx.get(f"{address}/ready").status_code != 200:
            assert service.failure is None, service.failure
            time.sleep(0.01)
        yield server, address
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def asking(address: str, body: dict, buffer: int | None = None, path: str = "/v1/audio/speech") -> socket.socket:
    """A connection on which speech has been asked for; buffer: bytes that are received before they are read."""
    content, url = json.dumps(body).encode(), httpx.URL(address)
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.connect((url.host, url.port))
    head = f"POST {path} HTTP/1.1\r\nHost: {url.netloc.decode()}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def heard_samples(content: bytes, name: str) -> np.ndarray:
    """Samples [n] at 24 kHz."""
    if name == "pcm":
        return np.frombuffer(content, "<i2").astype(np.float32) / 32767
    reader = open_audio(io.BytesIO(content), f"speech.{'ogg' if name == 'opus' else name}")
    samples = np.concatenate(list(reader.blocks()))[:, 0]
    return samples[:: reader.header.sample_rate // RATE]


def recording(seconds: float = 0.4) -> bytes:
    file = io.BytesIO()
    tone = 0.3 * np.sin(2 * np.pi * 400 * np.arange(round(seconds * RATE)) / RATE)
    soundfile.write(file, tone, RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()
