"""One response: texts spoken one after another in a dialogue, their audio in the order of a queue.

    say(text) --prepare thread--> request --engine thread--> pieces of audio --> queue --> the route
                                                      ended --> dialogue, disk

A response is a task of its own, which nothing cancels: whoever listens may `leave`, and what was begun is then ended,
kept and released in order.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from csm.inference.engine import Request
from csm.inference.generator import Generator
from csm.inference.guards import text_seconds
from csm.inference.long_text import split_text
from csm.inference.segments import Segment
from csm.serving.dialogues import Dialogue, DialogueTurn
from csm.serving.engine_thread import EngineFailed, Store, Turn
from csm.serving.errors import ApiError, invalid, server_error
from csm.serving.service import Service

LONGEST_TURN_MS = 30_000.0


@dataclass(frozen=True)
class Options:
    """Of a response. seed: of its first turn, the following ones have the following numbers; most_ms: of its audio."""

    speaker: int
    temperature: float
    top_k: int
    guidance: float
    seed: int | None
    most_ms: float


@dataclass
class Part:
    """A text that was spoken, or is being."""

    text: str
    frames: int = 0
    finished: str | None = None
    turn: DialogueTurn | None = None


@dataclass(frozen=True)
class _Begun:
    """A turn that is ready to be spoken. tokens: of its text."""

    request: Request
    ended: Callable[[Request], None]
    tokens: int


class Speech:
    """Speaks in `dialogue`, whose lock its maker holds.

    pieces: audio, float32 `[num_samples]` on the CPU; then None, or the error that ended it
    """

    def __init__(self, service: Service, dialogue: Dialogue, options: Options) -> None:
        self.service, self.dialogue, self.options = service, dialogue, options
        self.generator: Generator = service.loaded.generator
        self.engine = service.loaded.engine
        self.pieces: asyncio.Queue[Tensor | ApiError | None] = asyncio.Queue()
        self.parts: list[Part] = []
        self.input_tokens = 0
        self.left = False
        self._speaking: Turn | None = None
        self._store = Store()
        self._begun: tuple[str, _Begun] | None = None

    @property
    def frames(self) -> int:
        return sum(part.frames for part in self.parts)

    @property
    def finish_reason(self) -> str:
        """Of the last turn."""
        return next((part.finished for part in reversed(self.parts) if part.finished), "stop")

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of text and frames of audio, as OpenAI counts a response."""
        spoken = self.frames
        return {"input_tokens": self.input_tokens, "output_tokens": spoken, "total_tokens": self.input_tokens + spoken}

    @property
    def segments(self) -> list[Segment]:
        turns = [part.turn for part in self.parts if part.turn is not None]
        return [Segment(turn.speaker, turn.text, codes=turn.codes) for turn in turns]

    async def begin(self, text: str) -> None:
        """Prepares the turn of `text` without speaking it. Raises ApiError if it cannot be spoken."""
        try:
            self._begun = (text, await self.service.prepare(self._prepare, text))
        except ValueError as error:
            raise invalid(str(error)) from error

    async def say(self, text: str) -> None:
        """Speaks a text to its end, or until the listener leaves."""
        if self.left or self._frames_left() < 1:
            return
        if self._begun is None:
            await self.begin(text)
        assert self._begun is not None and self._begun[0] == text
        begun, self._begun = self._begun[1], None
        part = Part(text)
        self.parts.append(part)
        self.input_tokens += begun.tokens
        before = list(self.dialogue.conversation.turns)
        turn = self.engine.speak(begun.request, self.pieces.put_nowait, begun.ended, self._store)
        self._speaking = turn
        if self.left:
            self.engine.leave(turn)
        try:
            await turn.done
        except EngineFailed as error:
            raise ApiError(503, str(error), code="server_failed") from error
        finally:
            self._speaking = None
        part.frames, part.finished = len(begun.request.frames), begun.request.finished
        new = [one for one in self.dialogue.conversation.turns if one not in before]
        if new:
            speaker, reason = self.options.speaker, part.finished or "stop"
            part.turn = await self.service.prepare(self.dialogue.spoken, speaker, text, new[0], reason)

    async def run(self, texts: list[str], finished: Callable[[], None]) -> None:
        """Says all texts, calls `finished` and ends the queue: the body of a response's task."""
        end: ApiError | None = None
        try:
            for text in texts:
                await self.say(text)
        except ApiError as error:
            end = error
        except Exception as error:
            end = server_error(error, "speaking")
        finished()
        self.pieces.put_nowait(end)

    def leave(self) -> None:
        """Nobody listens any more."""
        self.left = True
        if self._speaking is not None:
            self.engine.leave(self._speaking)

    def _frames_left(self) -> int:
        return math.floor(self.options.most_ms * self.generator.codec.frame_rate / 1000 + 1e-6) - self.frames

    def _prepare(self, text: str) -> _Begun:
        options, frame_ms = self.options, 1000 / self.generator.codec.frame_rate
        most = min(LONGEST_TURN_MS, self._frames_left() * frame_ms, math.ceil(1000 * text_seconds(text)) + frame_ms)
        seed = None if options.seed is None else options.seed + len(self.parts)
        sampling = {
            "temperature": options.temperature,
            "topk": options.top_k,
            "guidance": options.guidance,
            "seed": seed,
        }
        _, request, ended = self.dialogue.conversation.begin(
            text, options.speaker, {"max_audio_length_ms": most, **sampling}
        )
        self.generator.engine.check(request)
        return _Begun(request, ended, len(self.generator.prompts.text_turn(text, options.speaker).text))


def texts_of(text: str) -> list[str]:
    """The turns of a text: whole sentences, up to about 15 s each. Raises ApiError for an empty one."""
    parts = split_text(text)
    if not parts:
        raise invalid("input: is empty; give something to be said", "input")
    return parts
