"""An answer on the WebSocket: from its first piece of text to `input.done`, one file of audio.

write(text) --whole sentences--> queue --Speech--> pieces --SpeechFile--> frames of the socket
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any
from weakref import ref

import sentencex

from csm.inference.long_text import LONGEST_PART, split_text
from csm.serving.dialogues import Dialogue
from csm.serving.encoders import AudioFormat
from csm.serving.errors import ApiError, invalid, server_error
from csm.serving.responses import SpeechFile, pieces
from csm.serving.service import Service
from csm.serving.speech import Options, Part, Speech

SendEvent = Callable[[Mapping[str, Any]], Awaitable[None]]
SendAudio = Callable[[bytes], Awaitable[None]]


@dataclass
class Session:
    """State that all answers of a connection share.

    own: a dialogue that ends with it, if it has no session_id; spoken: turns so far, for the seeds of the next
    """

    session_id: str | None
    own: Dialogue | None
    options: Options
    audio_format: AudioFormat
    spoken: int = 0
    _resting: asyncio.TimerHandle | None = None

    def use(self, own: Dialogue, held: ExitStack, idle: float) -> Dialogue:
        """The dialogue for as long as `held`; its keys and values leave the memory `idle` seconds later."""
        if self._resting is not None:
            self._resting.cancel()
        held.callback(self._rest, ref(own), idle)  # which keeps nothing whose connection has ended
        return own

    def _rest(self, own: ref[Dialogue], idle: float) -> None:
        self._resting = asyncio.get_running_loop().call_later(idle, _release, own)


def _release(own: ref[Dialogue]) -> None:
    if (dialogue := own()) is not None:
        dialogue.conversation.release()


class Answer:
    """`ended` is set when all is sent, or given up; before: the `ended` of the answer before."""

    def __init__(
        self,
        service: Service,
        session: Session,
        number: int,
        send: SendEvent,
        send_audio: SendAudio,
        before: asyncio.Event | None,
    ) -> None:
        self.service, self.session, self.number = service, session, number
        self.send, self.send_audio, self.before = send, send_audio, before
        self.file = SpeechFile(service, session.audio_format)
        self.ended = asyncio.Event()
        self.closed = False  # takes no more text
        self.left = False
        self.speech: Speech | None = None
        self._texts: asyncio.Queue[str | None] = asyncio.Queue()
        self._rest, self._written = "", 0
        self._sent_ms = 0.0

    # ------------------------------------------------------------------------------------------------ text

    def write(self, text: str) -> None:
        """Takes a piece of text. Raises ApiError if the answer becomes too long."""
        self._written += len(text)
        if self._written > self.service.limits.text:
            self.flush(done=True)
            most = self.service.limits.text
            raise invalid(f"input.text: an answer has at most {most} characters", "text", "string_too_long")
        self._rest += text
        sentences = list(sentencex.segment("en", self._rest))
        if len(sentences) > 1:  # the last one may go on
            self._put("".join(sentences[:-1]))
            self._rest = sentences[-1]
        elif len(self._rest) > LONGEST_PART and len(parts := split_text(self._rest)) > 1:
            self._put(" ".join(parts[:-1]))
            space = self._rest[len(self._rest.rstrip()) :]  # without it, the next piece goes on with the last word
            self._rest = parts[-1] + space

    def flush(self, done: bool) -> None:
        """Speaks what was written so far; done: and the answer ends with it."""
        self._put(self._rest)
        self._rest = ""
        if done and not self.closed:
            self.closed = True
            self._texts.put_nowait(None)

    def leave(self) -> None:
        """Ends the answer as soon as it can."""
        self.left = self.closed = True
        self._texts.put_nowait(None)
        if self.speech is not None:
            self.speech.leave()

    def _put(self, text: str) -> None:
        for part in split_text(text):
            self._texts.put_nowait(part)

    # ----------------------------------------------------------------------------------------------- speech

    async def run(self, room: ExitStack) -> None:
        """Speaks and sends: the body of the answer's task. room: closed when it has spoken."""
        try:
            with ExitStack() as held:
                held.callback(room.close)
                if self.before is not None:
                    await self.before.wait()
                if not self.left:
                    dialogue = await self._dialogue(held)
                    if self.left:
                        return
                    if self.session.own is None:  # those who wait for one busy conversation keep nobody else out
                        held.enter_context(self.service.reserve())
                        dialogue.check_room(self.service.limits)
                    await self._speak(dialogue)
        except ApiError as error:
            await self._refuse(error)
        except Exception as error:
            await self._refuse(server_error(error, "answering on a WebSocket"))
        finally:
            self.closed = True
            self.ended.set()

    async def _refuse(self, error: ApiError) -> None:
        self.service.metrics.refusals.labels(error.code).inc()
        await self._try_send({"type": "error", "answer": self.number, **error.envelope})

    async def _dialogue(self, held: ExitStack) -> Dialogue:
        if self.session.own is not None:
            return self.session.use(self.session.own, held, self.service.limits.idle)
        assert self.session.session_id is not None
        dialogue = await self.service.lock_dialogue(self.session.session_id)
        held.callback(dialogue.lock.release)
        return dialogue

    async def _speak(self, dialogue: Dialogue) -> None:
        session = self.session
        seed = None if session.options.seed is None else session.options.seed + session.spoken
        self.speech = speech = Speech(self.service, dialogue, replace(session.options, seed=seed))
        sending = asyncio.ensure_future(self._send_pieces(speech))
        try:
            await self._try_send({"type": "audio.start", "answer": self.number})
            while not self.left and (text := await self._next_text()) is not None:
                await self._try_send({"type": "audio.sentence", "answer": self.number, "text": text})
                await speech.say(text)
            speech.pieces.put_nowait(None)
            await sending
        finally:
            session.spoken += len(speech.parts)
            sending.cancel()
        if not self.left:
            done = {"finish_reason": speech.finish_reason, "usage": speech.usage}
            await self._try_send({"type": "audio.done", "answer": self.number, **done})

    async def _next_text(self) -> str | None:
        """None at the end; an answer whose client writes nothing for long ends with what there is."""
        seconds = self.service.limits.text_wait
        try:
            return await asyncio.wait_for(self._texts.get(), seconds)
        except asyncio.TimeoutError:
            message = f"no text and no input.done came for {seconds:g} s: the answer ends here"
            await self._refuse(ApiError(408, message, "text", "text_timeout"))
            self.flush(done=True)
            return self._texts.get_nowait()

    async def _send_pieces(self, speech: Speech) -> None:
        async for piece in pieces(speech, self.file):
            data = await self.file.push(piece)
            if self.left:  # what is not sent is not heard
                return
            await self._try_audio(data)
            self._sent_ms += 1000 * len(piece) / speech.generator.sample_rate
        await self._try_audio(await self.file.finish())

    async def _try_audio(self, data: bytes) -> None:
        if data and not self.left:
            await self._try(self.send_audio(data))

    async def _try_send(self, event: Mapping[str, Any]) -> None:
        await self._try(self.send(event))

    async def _try(self, sending: Awaitable[None]) -> None:
        """A listener who is gone, or reads nothing, ends the answer."""
        try:
            await sending
        except Exception:
            self.leave()

    # ------------------------------------------------------------------------------------------- barging in

    async def cut(self, played_ms: float | None) -> dict[str, Any]:
        """Leaves in the conversation what was heard of an answer that has ended; says what that was."""
        played = self._sent_ms if played_ms is None else min(played_ms, self._sent_ms)
        heard: list[dict[str, Any]] = []
        speech = self.speech
        if speech is not None:
            with ExitStack() as held:
                heard = await self.service.prepare(self._cut, await self._dialogue(held), speech, played)
        return {"answer": self.number, "played_ms": round(played), "heard": heard}

    @staticmethod
    def _cut(dialogue: Dialogue, speech: Speech, played: float) -> list[dict[str, Any]]:
        frame_ms = 1000 / speech.generator.codec.frame_rate
        left = math.ceil(played / frame_ms - 1e-6)
        heard: list[dict[str, Any]] = []
        first: tuple[Part, int] | None = None
        for part in speech.parts:
            frames = min(left, part.frames)
            left -= frames
            whole = frames == part.frames and part.finished != "cancelled"
            if frames:
                about = {"text": part.text, "played_ms": round(frames * frame_ms)}
                heard.append({**about, "spoken_ms": round(part.frames * frame_ms), "complete": whole})
            if part.turn is not None and frames < part.frames and first is None:
                first = part, frames
        if first is not None:
            part, frames = first
            assert part.turn is not None
            part.turn = dialogue.find(part.turn)  # the conversation may have left the memory since
            if part.turn is not None:
                dialogue.cut(part.turn, frames)
        return heard
