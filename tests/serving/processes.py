"""`csm serve` in a process of its own, and a tiny model on disk for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import torch

from csm.codec import SpectralCodec
from csm.config import CodecConfig, CodecKind
from csm.formats.native import write_native
from csm.formats.tensors import lazy
from csm.model.csm import CSM
from csm.text import ByteTokenizer
from tests.conftest import ROOT
from tests.tiny import CODEBOOK_SIZE, K, tiny_config

PORT = 8000 + os.getpid() % 20_000


def write_tiny_model(folder: Path) -> Path:
    """A random model that reads bytes, with a codec at 24 kHz fitted to noise."""
    folder.mkdir()
    config = replace(tiny_config(), text_vocab_size=ByteTokenizer.vocab_size, max_seq_len=512)
    torch.manual_seed(0)
    weights = lazy(CSM(config).state_dict())
    noise = 0.1 * torch.randn(60_000, generator=torch.Generator().manual_seed(0))
    codec = SpectralCodec.fit([noise], num_codebooks=K, codebook_size=CODEBOOK_SIZE)
    kind = CodecConfig(kind=CodecKind.spectral, num_codebooks=K, codebook_size=CODEBOOK_SIZE)
    write_native(folder, weights, config, kind, codec.info, codec, ByteTokenizer(), {})
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
