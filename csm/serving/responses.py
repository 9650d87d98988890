"""Bodies of speech: pieces of audio marked, encoded and sent as they come, as a file, as SSE events, or at once."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping

import torch
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from torch import Tensor

from csm.serving.encoders import MEDIA_TYPES, AudioFormat, complete_wav, open_encoder
from csm.serving.engine_thread import Store
from csm.serving.errors import ApiError, invalid
from csm.serving.service import Service
from csm.serving.speech import Speech

SOON = 0.4
"""Seconds in store below which a listener gets what there is at once."""
ENOUGH = 0.48
"""Seconds of audio that are worth marking and sending whatever is in store: six frames."""
WHOLE_SECONDS = 10
"""Audio that is marked at a time where nobody listens meanwhile."""


class SpeechFile:
    """The encoded bytes of one response. Marks and encoders run in threads: some take longer than a frame.

    store: what its listener has got and not yet played
    """

    def __init__(self, service: Service, audio_format: AudioFormat) -> None:
        self.service, self.rate = service, service.loaded.generator.sample_rate
        self.store = Store()
        self._mark = service.marking.new(self.rate)
        try:
            self._encoder = open_encoder(audio_format, self.rate)
        except (ValueError, OSError) as error:
            raise invalid(
                f"response_format={audio_format}: does not take {self.rate} Hz ({error})", "response_format"
            ) from error

    async def push(self, audio: Tensor) -> bytes:
        data, samples = await self.service.mark(self._push, audio)
        now = time.perf_counter()
        if self.store.left(now) <= 0:
            self.store.first, self.store.seconds = now, 0.0
        self.store.seconds += samples / self.rate
        return data

    async def finish(self) -> bytes:
        return await self.service.mark(lambda: self._encoder.push(self._mark.flush()) + self._encoder.finish())

    def _push(self, audio: Tensor) -> tuple[bytes, int]:
        marked = self._mark.push(audio)
        return self._encoder.push(marked), len(marked)


async def pieces(speech: Speech, file: SpeechFile) -> AsyncIterator[Tensor]:
    """Audio until the end of the response. Raises the error that ended it.

    A mark costs nearly as much for one frame as for ten, so while the listener of `file` has enough in store, frames
    are collected into larger pieces.
    """
    end: Tensor | ApiError | None = torch.zeros(0)
    while isinstance(end, Tensor):
        audio: list[Tensor] = []
        while isinstance(end := await _next_piece(speech, file, sum(map(len, audio))), Tensor) and len(end):
            audio.append(end)
        if audio:
            yield torch.cat(audio)
    if end is not None:
        raise end


async def _next_piece(speech: Speech, file: SpeechFile, collected: int) -> Tensor | ApiError | None:
    """The next piece of `speech`, its end or its error; empty if the samples collected should not wait for it."""
    if collected and speech.pieces.empty():
        spare = file.store.left(time.perf_counter()) - SOON
        if spare <= 0 or collected >= ENOUGH * file.rate:
            return torch.zeros(0)
        try:
            return await asyncio.wait_for(speech.pieces.get(), spare)
        except asyncio.TimeoutError:
            return torch.zeros(0)
    return await speech.pieces.get()


async def encoded(speech: Speech, file: SpeechFile) -> AsyncIterator[bytes]:
    async for piece in pieces(speech, file):
        if data := await file.push(piece):
            yield data
    if data := await file.finish():
        yield data


async def events(speech: Speech, file: SpeechFile) -> AsyncIterator[bytes]:
    """OpenAI's server-sent events: speech.audio.delta, then speech.audio.done or speech.audio.error."""
    try:
        async for data in encoded(speech, file):
            yield _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
        done = {"type": "speech.audio.done", "usage": speech.usage, "finish_reason": speech.finish_reason}
        yield _event(done)
    except ApiError as error:
        yield _event({"type": "speech.audio.error", **error.envelope})


def _event(values: Mapping[str, object]) -> bytes:
    return f"event: {values['type']}\ndata: {json.dumps(values)}\n\n".encode()


class SpeechStream(StreamingResponse):
    """A streamed response whose speech ends with it, whatever ends it.

    left: called when nobody listens any more
    """

    def __init__(
        self, content: AsyncIterator[bytes], media_type: str, headers: dict[str, str], left: Callable[[], None]
    ) -> None:
        super().__init__(content, 200, headers, media_type)
        self._left = left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._left()


def headers(service: Service, segment: str) -> dict[str, str]:
    return {
        "Cache-Control": "no-cache",
        "X-Accel-Buffering": "no",
        "X-Sample-Rate": str(service.loaded.generator.sample_rate),
        "X-Segment-Id": segment,
        "X-Watermark": service.marking.name,
    }


async def whole(speech: Speech, file: SpeechFile, audio_format: AudioFormat) -> bytes:
    """All bytes of a response; a WAV file then has its sizes. Marked in pieces that do not depend on time: a mark's
    rounding depends on them, and the same speech is to be the same bytes."""
    audio = torch.cat([torch.zeros(0), *[piece async for piece in pieces(speech, file)]])
    marked = [await file.push(part) for part in audio.split(WHOLE_SECONDS * file.rate)]
    content = b"".join([*marked, await file.finish()])
    return complete_wav(content, speech.generator.sample_rate) if audio_format == "wav" else content


def whole_response(speech: Speech, content: bytes, audio_format: AudioFormat, headers: dict[str, str]) -> Response:
    rate = speech.generator.codec.frame_rate
    about = {"X-Finish-Reason": speech.finish_reason, "X-Audio-Seconds": f"{speech.frames / rate:.2f}"}
    return Response(content, 200, {**headers, **about}, MEDIA_TYPES[audio_format])


async def gone(request: Request) -> None:
    """Returns when the client has disconnected. The body has to be read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
