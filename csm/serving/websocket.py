"""WebSocket /v1/audio/speech/stream: text comes in pieces, as a language model writes it, and is spoken at once.

    client: session.config {model, voice, ...}     server: session.created
            input.text {text} ...                          audio.start, audio.sentence, binary frames ...
            input.flush | input.done                       audio.done
            response.cancel {played_ms}                    audio.cancelled {heard}
            session.close                                  session.done

Whole sentences are spoken as soon as they are complete, each with the ones before as context (csm/serving/answer.py).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from fastapi import APIRouter, WebSocket
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect

from csm.serving.answer import Answer, Session
from csm.serving.dialogues import Dialogue
from csm.serving.errors import ApiError, busy, invalid, validation_error
from csm.serving.prompting import check_model, context_of, options_of, speaker_in
from csm.serving.responses import SpeechFile
from csm.serving.schemas import Cancel, InputDone, InputText, SessionClose, SessionConfig
from csm.serving.service import Service

_EVENTS: dict[str, type[InputText | InputDone | Cancel | SessionClose]] = {
    "input.text": InputText,
    "input.flush": InputDone,
    "input.done": InputDone,
    "response.cancel": Cancel,
    "session.close": SessionClose,
}
KEPT_ANSWERS = 8
"""Answers that can be cut after they are sent, since their listener may still be playing them."""


def speech_socket(service: Service) -> APIRouter:
    router = APIRouter()

    @router.websocket("/v1/audio/speech/stream")
    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        await _Connection(service, socket).serve()

    return router


class _Connection:
    def __init__(self, service: Service, socket: WebSocket) -> None:
        self.service, self.socket = service, socket
        self.session: Session | None = None
        self.answers: list[Answer] = []
        self.count = 0
        self._unspoken = 0
        self._place = ExitStack()  # for all answers of its own dialogue, spoken one after another

    async def serve(self) -> None:
        try:
            while True:
                try:
                    event = await self._receive()
                    if event["type"] == "session.config":
                        await self._configure(event)
                    elif await self._take(event):
                        await self.socket.close()
                        return
                except ValidationError as error:
                    await self._refuse(validation_error(error.errors()))
                except ApiError as error:
                    await self._refuse(error)
        except (WebSocketDisconnect, asyncio.TimeoutError, RuntimeError):
            pass  # the client has gone, or reads nothing
        finally:
            for answer in self.answers:
                answer.leave()

    async def _receive(self) -> dict[str, Any]:
        message = await self.socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        try:
            event = json.loads(message.get("text") or "")
        except (ValueError, RecursionError):
            raise invalid("events are JSON in text messages", code="json_invalid") from None
        if not isinstance(event, dict) or not isinstance(event.get("type"), str):
            raise invalid('events are objects with a "type"', "type")
        return event

    async def _configure(self, event: dict[str, Any]) -> None:
        if self.session is not None:
            raise invalid("session.config: comes once, first", "type")
        config = SessionConfig.model_validate(event)
        check_model(self.service, config.model)
        SpeechFile(self.service, config.response_format)  # refused now, not by the first answer
        if config.session_id is None:
            speaker, segments = await context_of(self.service, config.voice, config.speaker, config.context)
            try:
                own = await self.service.prepare(Dialogue, self.service.loaded.generator, None, segments)
            except ValueError as error:
                raise invalid(str(error), "context") from error
        else:
            if config.context:
                raise invalid("context: a conversation has its own", "context")
            own, dialogue = None, await self.service.lock_dialogue(config.session_id)
            try:
                speaker = speaker_in(self.service, dialogue, config.voice, config.speaker)
            finally:
                dialogue.lock.release()
        options = options_of(self.service, config, speaker)
        self.session = Session(config.session_id, own, options, config.response_format)
        rate = self.service.loaded.generator.sample_rate
        about = {"sample_rate": rate, "response_format": config.response_format}
        await self._send({"type": "session.created", **about, "watermark": self.service.marking.name})

    async def _take(self, values: dict[str, Any]) -> bool:
        """True when the session ends."""
        if self.session is None:
            raise invalid("session.config: has to come first", "type")
        if values["type"] not in _EVENTS:
            raise invalid(f"type: must be one of {', '.join(_EVENTS)}", "type")
        event = _EVENTS[values["type"]].model_validate(values)
        if isinstance(event, InputText):
            self._open_answer().write(event.text)
        elif isinstance(event, InputDone):
            if self.answers:
                self.answers[-1].flush(done=event.type == "input.done")
        elif isinstance(event, Cancel):
            await self._cancel(event)
        else:
            for answer in self.answers:
                answer.flush(done=True)
                await answer.ended.wait()
            await self._send({"type": "session.done"})
            return True
        return False

    def _open_answer(self) -> Answer:
        """The answer that text belongs to. Raises ApiError if there is no room for one."""
        if self.answers and not self.answers[-1].closed:
            return self.answers[-1]
        assert self.session is not None
        self.service.check_open()
        if self._unspoken >= self.service.room:
            raise busy(f"{self._unspoken} answers of this connection are not yet spoken")
        before = self.answers[-1].ended if self.answers else None
        answer = Answer(self.service, self.session, self.count, self._send, self._send_audio, before)
        if self._unspoken == 0 and self.session.own is not None:
            self._place.enter_context(self.service.reserve())
        self._unspoken += 1
        room = ExitStack()
        room.callback(self._spoken)
        self.service.keep(answer.run(room))
        ended = [one for one in self.answers if one.ended.is_set()][-KEPT_ANSWERS:]
        self.answers = [*ended, *(one for one in self.answers if not one.ended.is_set()), answer]
        self.count += 1
        return answer

    def _spoken(self) -> None:
        self._unspoken -= 1
        if self._unspoken == 0:
            self._place.close()

    async def _cancel(self, event: Cancel) -> None:
        """Ends what is being spoken; the conversation keeps what was heard of `event.answer`, and nothing after it."""
        live = [answer for answer in self.answers if not answer.ended.is_set()]
        if event.answer is None:
            targets = live or self.answers[-1:]
        else:
            targets = [answer for answer in self.answers if answer.number == event.answer]
        if not targets:
            raise invalid("answer: there is no such answer to cancel", "answer")
        for answer in live:
            answer.leave()
        for answer in live:
            await answer.ended.wait()
        for answer in reversed(self.answers):
            if answer.number > targets[0].number:
                await answer.cut(0)  # also where all of the one before was heard
        await self._send({"type": "audio.cancelled", **await targets[0].cut(event.played_ms)})

    async def _refuse(self, error: ApiError) -> None:
        self.service.metrics.refusals.labels(error.code).inc()
        await self._send({"type": "error", **error.envelope})

    async def _send(self, event: Mapping[str, Any]) -> None:
        await asyncio.wait_for(self.socket.send_text(json.dumps(event)), self.service.limits.send)

    async def _send_audio(self, data: bytes) -> None:
        await asyncio.wait_for(self.socket.send_bytes(data), self.service.limits.send)
