"""POST /v1/audio/speech and /v1/audio/speech/batch."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from csm.serving.dialogues import Dialogue
from csm.serving.encoders import MEDIA_TYPES, AudioFormat
from csm.serving.errors import ApiError, invalid
from csm.serving.prompting import check_model, check_unsupported, context_of, options_of, speaker_in
from csm.serving.responses import SpeechFile, SpeechStream, encoded, events, gone, headers, whole, whole_response
from csm.serving.schemas import BatchBody, SpeechBody, Spoken
from csm.serving.service import Service
from csm.serving.speech import Options, Speech, texts_of

T = TypeVar("T")


def speech_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/audio/speech", response_class=Response)
    async def speech(body: SpeechBody, request: Request) -> Response:
        check_model(service, body.model)
        file = SpeechFile(service, body.response_format)
        with ExitStack() as held:
            if body.session_id is None:
                held.enter_context(service.reserve())
                spoken, texts = await prepared(service, body)
            else:
                spoken, texts = await in_session(service, body, body.session_id, request, held)
            segment = service.new_segment()
            about = {
                **headers(service, segment),
                "Content-Disposition": f'inline; filename="speech.{body.response_format}"',
            }
            rest = held.pop_all()
        service.keep(spoken.run(texts, finished(service, spoken, segment, rest)))
        if body.stream_format == "sse":
            content, media_type = events(spoken, file), "text/event-stream"
        elif body.stream:
            content, media_type = encoded(spoken, file), MEDIA_TYPES[body.response_format]
        else:
            work = whole(spoken, file, body.response_format)
            data = await unless_gone(request, work, spoken.leave)
            return whole_response(spoken, data, body.response_format, about)
        return SpeechStream(content, media_type, about, spoken.leave)

    @router.post("/v1/audio/speech/batch")
    async def batch(body: BatchBody, request: Request) -> dict[str, Any]:
        check_model(service, body.model)
        count = len(body.items)
        most = min(service.limits.batch, service.room)
        if count > most:
            raise invalid(f"items: has {count}; at most {most} are taken", "items")
        with service.reserve(count), ExitStack() as speeches:
            ready: list[tuple[Speech, list[str]]] = []
            for number, item in enumerate(body.items):  # what is wrong is refused before anything is spoken
                await check_listens(request)
                ready.append(await prepared(service, item, f"items.{number}."))
            for spoken, _ in ready:
                speeches.callback(spoken.leave)
            work = asyncio.gather(*(item_result(service, *one, body.response_format) for one in ready))
            results = await unless_gone(request, _awaited(work), speeches.close)
        return {"object": "list", "data": [{"index": number, **result} for number, result in enumerate(results)]}

    return router


async def _awaited(work: asyncio.Future[T]) -> T:
    return await work


async def prepared(service: Service, body: Spoken, param: str = "") -> tuple[Speech, list[str]]:
    """A speech after the voice and the context of its own request, and its texts; its first turn is ready."""
    texts = checked_texts(service, body, param)
    speaker, segments = await context_of(service, body.voice, body.speaker, body.context, param)
    options = options_of(service, body, speaker, param)
    try:
        dialogue = await service.prepare(Dialogue, service.loaded.generator, None, segments)
    except ValueError as error:
        raise invalid(str(error), f"{param}context") from error
    return await begun(service, dialogue, options, texts), texts


async def in_session(
    service: Service, body: SpeechBody, name: str, request: Request, held: ExitStack
) -> tuple[Speech, list[str]]:
    """A speech in a conversation that is kept; `held` unlocks it, and gives back the place to speak.

    The place is taken when the conversation is free: those who wait for one busy conversation keep nobody else out.
    """
    texts = checked_texts(service, body)
    if body.context:
        message = "context: a conversation has its own; add turns with POST /v1/conversations/{id}/turns"
        raise invalid(message, "context")
    dialogue = await service.lock_dialogue(name)
    held.callback(dialogue.lock.release)
    await check_listens(request)
    held.enter_context(service.reserve())
    dialogue.check_room(service.limits)
    options = options_of(service, body, speaker_in(service, dialogue, body.voice, body.speaker))
    return await begun(service, dialogue, options, texts), texts


async def check_listens(request: Request) -> None:
    """Raises ApiError, which nobody receives, if the client has disconnected."""
    if await request.is_disconnected():
        raise ApiError(499, "the client has gone", code="client_gone")


async def begun(service: Service, dialogue: Dialogue, options: Options, texts: list[str]) -> Speech:
    speech = Speech(service, dialogue, options)
    await speech.begin(texts[0])
    return speech


def checked_texts(service: Service, body: Spoken, param: str = "") -> list[str]:
    check_unsupported(body.instructions, body.speed, param)
    if len(body.input) > service.limits.text:
        message = f"input: has {len(body.input)} characters; at most {service.limits.text} are taken"
        raise invalid(message, f"{param}input", "string_too_long")
    return texts_of(body.input)


def finished(service: Service, speech: Speech, segment: str, held: ExitStack) -> Callable[[], None]:
    """The callback for the end of a speech: keeps its segments and closes `held`, before its listener is told."""

    def end() -> None:
        if speech.segments:
            service.keep_segments(segment, speech.segments)
        held.close()

    return end


async def item_result(service: Service, speech: Speech, texts: list[str], audio_format: AudioFormat) -> dict[str, Any]:
    """An item of a batch: its file in base64, or the error that it met."""
    segment = service.new_segment()
    service.keep(speech.run(texts, finished(service, speech, segment, ExitStack())))
    try:
        content = await whole(speech, SpeechFile(service, audio_format), audio_format)
    except ApiError as error:
        return error.envelope
    return {
        "audio": base64.b64encode(content).decode(),
        "response_format": audio_format,
        "finish_reason": speech.finish_reason,
        "segment_id": segment,
        "usage": speech.usage,
    }


async def unless_gone(request: Request, work: Coroutine[Any, Any, T], left: Callable[[], object]) -> T:
    """The result of `work`; calls `left`, which ends it soon, if the client disconnects before, or it fails."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            left()
        return await task
    except Exception:
        left()
        raise
    finally:
        watch.cancel()
