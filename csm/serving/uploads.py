"""Audio that clients send: base64 or a file, decoded in a process of its own (csm/serving/decode_upload.py)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import sys

import numpy as np
import torch
from torch import Tensor

from csm.audio import mean_of_channels, mono_channel, resample
from csm.serving.decode_upload import CPU_SECONDS
from csm.serving.errors import ApiError, invalid
from csm.serving.settings import Limits

_AT_ONCE = 2
"""Processes that decode at the same time."""


class Uploads:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def bytes_of(self, encoded: str, param: str) -> bytes:
        """The bytes of base64, bare or in a data: URL. Raises ApiError for anything else, such as a path or a URL."""
        if encoded.startswith("data:"):
            encoded = encoded.partition(",")[2]
        if len(encoded) > self.limits.upload * 4 // 3 + 4:
            raise self._too_large(param)
        try:
            return base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise invalid(f"{param}: is not base64; files and URLs named by clients are not opened", param) from None

    async def decode(self, data: bytes, sample_rate: int, param: str) -> Tensor:
        """Mono float32 `[num_samples]` at `sample_rate`. Raises ApiError, naming what is wrong with the file."""
        if len(data) > self.limits.upload:
            raise self._too_large(param)
        async with self._turns:
            head, rest = await self._run(data, param)
        if "error" in head:
            raise invalid(f"{param}: {head['error']}", param, "invalid_audio")
        return await asyncio.to_thread(_mono, rest, head["channels"], head["sample_rate"], sample_rate)

    async def _run(self, data: bytes, param: str) -> tuple[dict, bytes]:
        command = [sys.executable, "-m", "csm.serving.decode_upload", str(self.limits.reference)]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(data), 2 * CPU_SECONDS)
        except asyncio.TimeoutError:
            raise invalid(f"{param}: takes too long to decode", param, "invalid_audio") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        line, _, rest = output.partition(b"\n")
        if process.returncode or not line:
            raise invalid(f"{param}: is damaged, its decoder failed", param, "invalid_audio")
        return json.loads(line), rest

    def _too_large(self, param: str) -> ApiError:
        megabytes = self.limits.upload / (1 << 20)
        return ApiError(413, f"{param}: is larger than {megabytes:g} MiB", param, "file_too_large")


def _mono(data: bytes, channels: int, from_rate: int, to_rate: int) -> Tensor:
    samples = np.frombuffer(data, np.float32).reshape(-1, channels)
    mean = mean_of_channels(samples)
    chosen = mono_channel(np.einsum("nc,nc->c", samples, samples), float(np.dot(mean, mean)))
    mono = mean if chosen is None or channels == 1 else np.ascontiguousarray(samples[:, chosen])
    return resample(torch.from_numpy(mono), from_rate, to_rate).clamp(-1.0, 1.0)
