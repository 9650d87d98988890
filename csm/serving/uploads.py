"""Audio that clients send: base64 or a file, decoded in a process of its own (csm/serving/decode_upload.py)."""

from __future__ import annotations

import asyncio
import base64
import binascii

import numpy as np
import torch
from torch import Tensor

from csm.audio import mix_to_mono, resample
from csm.serving.decode_upload import LONGEST_DECODING, Refused, command, decoded
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
        try:
            async with self._turns:
                rate, samples = await self._run(data)
        except Refused as error:
            raise invalid(f"{param}: {error}", param, "invalid_audio") from error
        return await asyncio.to_thread(_mono, samples, rate, sample_rate)

    async def _run(self, data: bytes) -> tuple[int, np.ndarray]:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command(self.limits.reference), stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(data), LONGEST_DECODING)
        except asyncio.TimeoutError:
            raise Refused("it takes too long to decode") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return decoded(output, process.returncode)

    def _too_large(self, param: str) -> ApiError:
        megabytes = self.limits.upload / (1 << 20)
        return ApiError(413, f"{param}: is larger than {megabytes:g} MiB", param, "file_too_large")


def _mono(samples: np.ndarray, from_rate: int, to_rate: int) -> Tensor:
    return resample(torch.tensor(mix_to_mono(samples)[0]), from_rate, to_rate).clamp(-1.0, 1.0)
