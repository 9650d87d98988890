"""State shared by the routes: the model, its engine thread, voices, conversations, and the places to speak."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeVar

import torch

from csm.files import exclusive
from csm.inference.generator import Generator
from csm.inference.segments import Segment
from csm.serving.dialogues import Dialogue, Dialogues
from csm.serving.engine_thread import EngineThread
from csm.serving.errors import ApiError, busy
from csm.serving.marks import Marking
from csm.serving.metrics import Metrics
from csm.serving.settings import Settings
from csm.serving.uploads import Uploads
from csm.serving.voices import Voices

logger = logging.getLogger(__name__)

T = TypeVar("T")
KEPT_SEGMENTS = 256
"""Answers whose codes can be named in a context by their X-Segment-Id, the last ones."""


class Model:
    """All that exists once the weights are loaded."""

    def __init__(self, generator: Generator, settings: Settings, metrics: Metrics) -> None:
        # The first turn makes what later ones share, such as the streaming decoder.
        for _ in generator.stream("Hello.", 0, [], max_audio_length_ms=2000 / generator.codec.frame_rate):
            pass
        self.generator = generator
        self.engine = EngineThread(generator, metrics)
        self.voices = Voices(settings, generator)
        self.dialogues = Dialogues(generator, settings)


class Service:
    """load: gives the generator, in a thread, while the server already answers."""

    def __init__(self, load: Callable[[], Generator], settings: Settings, marking: Marking | None = None) -> None:
        self.settings, self.limits, self.marking = settings, settings.limits, marking or Marking()
        self.metrics = Metrics()
        self.metrics.watermark.labels(self.marking.name).set(1)
        self.uploads = Uploads(settings.limits)
        self.started = int(time.time())
        self.draining = False
        self._load_failure: BaseException | None = None
        self.live = 0  # responses that wait or are being spoken
        self.listening = 0  # HTTP requests whose answers are not yet read to their end
        self._load = load
        self._model: Model | None = None
        self._held = ExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        # Each of torch's threads waits for work by spinning: more of them than cores take the time of the engine.
        self._preparer = ThreadPoolExecutor(1, "csm-prepare", torch.set_num_threads, (1,))
        self._markers = ThreadPoolExecutor(os.cpu_count() or 1, "csm-mark", torch.set_num_threads, (1,))
        self._segments: OrderedDict[str, list[Segment]] = OrderedDict()

    # ----------------------------------------------------------------------------------------------- states

    def start(self) -> None:
        threading.Thread(target=self._start, name="csm-load", daemon=True).start()

    def _start(self) -> None:
        try:
            self._hold_data()
            generator = self._load()
            self.marking.try_out(generator.sample_rate)
            model = Model(generator, self.settings, self.metrics)
            model.engine.start()
            self._model = model
        except BaseException as error:
            self._load_failure = error

    def _hold_data(self) -> None:
        """Keeps other servers away, which would take what this one is writing for what a killed one left."""
        folder = self.settings.data
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._held.enter_context(exclusive(folder))
        except BlockingIOError:
            message = f"--data {folder}: another server is using this folder; end it, or give each server its own"
            raise ValueError(message) from None

    def stop(self) -> None:
        if self._model is not None:
            self._model.engine.stop()
        self._preparer.shutdown(cancel_futures=True)
        self._markers.shutdown(cancel_futures=True)
        self._held.close()

    @property
    def failure(self) -> BaseException | None:
        """Error of loading the model, or of its engine: nothing can be spoken any more."""
        return self._load_failure or (self._model.engine.failure if self._model is not None else None)

    @property
    def state(self) -> Literal["loading", "ready", "draining", "failed"]:
        if self.failure is not None:
            return "failed"
        if self.draining:
            return "draining"
        return "loading" if self._model is None else "ready"

    @property
    def model(self) -> Model:
        """For what begins. Raises ApiError 503 if there is nobody to speak, and while the server drains."""
        self.check_open()
        return self.loaded

    @property
    def loaded(self) -> Model:
        """For what began before the server was told to stop. Raises ApiError 503 if there is nobody to speak."""
        state = self.state
        if self._model is None or state == "failed":
            retry = 5 if state == "loading" else None
            raise ApiError(503, f"the server is {state}", code=f"server_{state}", retry_after=retry)
        return self._model

    def check_open(self) -> None:
        """Raises ApiError 503 while the server drains: nothing begins any more, and what has begun is finished."""
        if self.state == "draining":
            raise ApiError(503, "the server is draining", code="server_draining")

    # -------------------------------------------------------------------------------------------- resources

    @property
    def idle(self) -> bool:
        """Whether nothing is spoken, marked, or still being read."""
        return not self._tasks and self.listening == 0

    @property
    def room(self) -> int:
        """Responses that can wait or be spoken at the same time."""
        return len(self.loaded.generator.engine.slots) + self.limits.queue

    @contextmanager
    def reserve(self, responses: int = 1) -> Iterator[None]:
        """Room for responses. Raises ApiError 429 if the slots and the queue are full."""
        if self.live + responses > self.room:
            raise busy(f"{self.live} of {self.room} places for responses are taken")
        self.live += responses
        try:
            yield
        finally:
            self.live -= responses

    async def prepare(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Runs what takes a while (tokenizer, codec, disk), one after another, beside the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._preparer, lambda: function(*arguments, **options))

    async def mark(self, function: Callable[..., T], *arguments: Any) -> T:
        """Runs what marks and encodes audio, of several listeners at a time, beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._markers, function, *arguments)

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs a task that nothing waits for or cancels."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def lock_dialogue(self, name: str) -> Dialogue:
        """The conversation of this name, locked. Raises ApiError 404, and 409 if it stays busy or many wait."""
        dialogues = self.loaded.dialogues
        while True:
            dialogue = await self.prepare(dialogues.get, name)
            if dialogue.waiting >= self.limits.session_queue:
                message = f"{dialogue.waiting} other requests wait for a turn in this conversation"
                raise ApiError(409, message, "session_id", "conversation_busy")
            dialogue.waiting += 1
            try:
                await asyncio.wait_for(dialogue.lock.acquire(), self.limits.session_wait)
            except asyncio.TimeoutError:
                message = "another turn is being spoken in this conversation"
                raise ApiError(409, message, "session_id", "conversation_busy") from None
            finally:
                dialogue.waiting -= 1
            if dialogues.holds(name, dialogue):
                return dialogue
            dialogue.lock.release()

    # --------------------------------------------------------------------------------------------- segments

    def new_segment(self) -> str:
        return f"seg_{secrets.token_hex(12)}"

    def keep_segments(self, name: str, segments: Sequence[Segment]) -> None:
        self._segments[name] = list(segments)
        while len(self._segments) > KEPT_SEGMENTS:
            self._segments.popitem(last=False)

    def segments(self, name: str, param: str) -> list[Segment]:
        if name not in self._segments:
            raise ApiError(404, "there is no such segment, or it is too old", param, "segment_not_found")
        return self._segments[name]
