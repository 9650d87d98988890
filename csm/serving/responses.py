"""Bodies of speech: pieces of audio marked, encoded and sent as they come, as a file, as SSE events, or at once."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send
from torch import Tensor

from csm.serving.encoders import MEDIA_TYPES, AudioFormat, complete_wav, open_encoder
from csm.serving.errors import ApiError, invalid
from csm.serving.service import Service
from csm.serving.speech import Speech


class SpeechFile:
    """The encoded bytes of one response. Marks and encoders run in threads: some take longer than a frame."""

    def __init__(self, service: Service, audio_format: AudioFormat) -> None:
        rate = service.loaded.generator.sample_rate
        self._mark = service.marking.new(rate)
        try:
            self._encoder = open_encoder(audio_format, rate)
        except (ValueError, OSError) as error:
            raise invalid(
                f"response_format={audio_format}: does not take {rate} Hz ({error})", "response_format"
            ) from error

    async def push(self, audio: Tensor) -> bytes:
        return await asyncio.to_thread(lambda: self._encoder.push(self._mark.push(audio)))

    async def finish(self) -> bytes:
        return await asyncio.to_thread(lambda: self._encoder.push(self._mark.flush()) + self._encoder.finish())


async def pieces(speech: Speech) -> AsyncIterator[Tensor]:
    """Audio until the end of the response. Raises the error that ended it."""
    while (piece := await speech.pieces.get()) is not None:
        if isinstance(piece, ApiError):
            raise piece
        yield piece


async def encoded(speech: Speech, file: SpeechFile) -> AsyncIterator[bytes]:
    async for piece in pieces(speech):
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
        self,
        service: Service,
        content: AsyncIterator[bytes],
        media_type: str,
        headers: dict[str, str],
        left: Callable[[], None],
    ) -> None:
        super().__init__(content, 200, headers, media_type)
        self._service, self._left = service, left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_soon(message: Message) -> None:
            await asyncio.wait_for(send(message), self._service.limits.send)

        self._service.listening += 1
        try:
            await super().__call__(scope, receive, send_soon)
        finally:
            self._service.listening -= 1
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
    """All bytes of a response; a WAV file then has its sizes."""
    content = b"".join([data async for data in encoded(speech, file)])
    return complete_wav(content, speech.generator.sample_rate) if audio_format == "wav" else content


def whole_response(speech: Speech, content: bytes, audio_format: AudioFormat, headers: dict[str, str]) -> Response:
    rate = speech.generator.codec.frame_rate
    about = {"X-Finish-Reason": speech.finish_reason, "X-Audio-Seconds": f"{speech.frames / rate:.2f}"}
    return Response(content, 200, {**headers, **about}, MEDIA_TYPES[audio_format])


async def gone(request: Request) -> None:
    """Returns when the client has disconnected. The body has to be read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
