"""The one thread that advances the engine; the event loop submits turns to it and receives their audio.

    event loop --speak, leave--> commands --> engine thread: streams.advance() --sound, ended--> event loop

Between two frames commands are taken and turns balanced: while a turn waits for its first sound, or a listener is about
to run dry, turns far ahead of their listeners are held.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from csm.inference.engine import Request
from csm.inference.generator import Generator
from csm.inference.streams import Listener
from csm.serving.metrics import Metrics

logger = logging.getLogger(__name__)

FAR_AHEAD = 1.0
"""Seconds of audio that a listener has in store when a turn may be held for others."""
RUNNING_DRY = 0.24
"""Seconds in store below which a listener needs the next frame soon: three frames."""


class EngineFailed(RuntimeError):
    """The engine met an error of its own; all turns have ended with it."""


@dataclass
class Store:
    """Audio that the listener of a response has and has not yet played, from one turn to the next.

    first: when it began to play; None: it has not, or has run dry between two turns; seconds: handed out since then
    """

    first: float | None = None
    seconds: float = 0.0

    def left(self, now: float) -> float:
        """Seconds of audio; negative where the listener ran dry so long ago."""
        return 0.0 if self.first is None else self.seconds - (now - self.first)


class Turn:
    """A turn in the engine's care. `done` is resolved in the event loop when it has ended and `ended` was called.

    sound: called in the event loop with each piece of audio, float32 `[num_samples]`
    ended: called in the engine's thread with the finished request
    store: of its listener, who may still be playing the turn before
    """

    def __init__(
        self,
        request: Request,
        sound: Callable[[Tensor], None],
        ended: Callable[[Request], None],
        store: Store,
    ) -> None:
        self.request, self.sound, self.ended = request, sound, ended
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.listener: Listener | None = None
        self.submitted = time.perf_counter()
        self.held = False
        self.store = store
        if store.left(self.submitted) <= 0:
            store.first, store.seconds = None, 0.0


class EngineThread:
    """Owns a generator's engine and streams from `start` on."""

    def __init__(self, generator: Generator, metrics: Metrics) -> None:
        self.generator, self.metrics = generator, metrics
        self.streams, self.engine = generator.streams, generator.engine
        self.failure: BaseException | None = None
        self._turns: list[Turn] = []
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="csm-engine", daemon=True)
        metrics.slots.set(len(self.engine.slots))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends all turns, then the thread."""
        self._commands.put(None)
        self._thread.join()

    def speak(
        self,
        request: Request,
        sound: Callable[[Tensor], None],
        ended: Callable[[Request], None],
        store: Store,
    ) -> Turn:
        """Submits a request that `Engine.check` has passed, from the event loop; see `Turn`."""
        turn = Turn(request, sound, ended, store)
        self._commands.put(lambda: self._begin(turn))
        return turn

    def leave(self, turn: Turn) -> None:
        """Ends a turn whose listener is gone, before the next frame."""
        self._commands.put(lambda: self._leave(turn))

    # ------------------------------------------------------------------------------- in the engine's thread

    def _run(self) -> None:
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))  # a core is left for marks and the event loop
        while True:
            try:
                if not self._take_commands():
                    return
                started = time.perf_counter()
                self._balance(started)
                self.streams.advance()
                self.metrics.frame.observe(time.perf_counter() - started)
                self._hand_out()
            except BaseException as error:
                # What the state of the engine is now, nobody knows: the server is no longer ready.
                logger.exception("the engine failed")
                self.failure = error
                for turn in list(self._turns):
                    self._end(turn)
            self._count()

    def _take_commands(self) -> bool:
        """False when the thread is to end. Waits while there is nothing to speak."""
        while True:
            try:
                command = self._commands.get(block=not self._turns)
            except queue.Empty:
                return True
            if command is None:
                self._commands.put(None)  # for the next time, if ending a turn fails
                for turn in list(self._turns):
                    self._leave(turn)
                return False
            command()
            self._count()

    def _begin(self, turn: Turn) -> None:
        if self.failure is not None:
            self._post(turn, self._resolve, turn)
            return
        self._turns.append(turn)  # before all that may fail: what ends turns finds them here
        turn.listener = self.streams.listen(turn.request)

    def _leave(self, turn: Turn) -> None:
        if turn in self._turns:
            assert turn.listener is not None
            self.streams.leave(turn.listener)
            self._end(turn)

    def _balance(self, now: float) -> None:
        blocked = self.engine.blocked  # those who wait for a slot get it the sooner the less is held
        urgent = any(
            turn.store.left(now) < RUNNING_DRY and not (blocked and turn.request in self.engine.waiting)
            for turn in self._turns
        )
        for turn in self._turns:
            hold = urgent and turn.store.left(now) > FAR_AHEAD
            if hold:
                self.engine.hold(turn.request)  # from when it speaks on
            elif turn.held:
                self.engine.resume(turn.request)
            turn.held = hold

    def _hand_out(self) -> None:
        now = time.perf_counter()
        for turn in list(self._turns):
            assert turn.listener is not None
            if turn.listener.audio and len(chunk := turn.listener.take()):
                self._sound(turn, chunk, now)
            if turn.listener.complete:
                self._end(turn)

    def _sound(self, turn: Turn, chunk: Tensor, now: float) -> None:
        if turn.store.first is None:
            turn.store.first = now
            self.metrics.ttfa.observe(now - turn.submitted)
        elif turn.store.left(now) < 0:
            self.metrics.late.inc()
        self.metrics.chunks.inc()
        turn.store.seconds += len(chunk) / self.generator.sample_rate
        self.metrics.audio.inc(len(chunk) / self.generator.sample_rate)
        self._post(turn, turn.sound, chunk)

    def _end(self, turn: Turn) -> None:
        self._turns.remove(turn)
        try:
            if self.failure is None:
                turn.ended(turn.request)
                self.metrics.turns.labels(turn.request.finished).inc()
        except BaseException as error:
            self.failure = error
            raise
        finally:
            self._post(turn, self._resolve, turn)

    def _resolve(self, turn: Turn) -> None:
        if self.failure is not None:
            turn.done.set_exception(EngineFailed("the engine failed; the server has to be restarted"))
        else:
            turn.done.set_result(None)

    @staticmethod
    def _post(turn: Turn, function: Callable[..., None], argument: object) -> None:
        if not turn.loop.is_closed():
            turn.loop.call_soon_threadsafe(function, argument)

    def _count(self) -> None:
        self.metrics.queue.set(len(self.engine.waiting))
        self.metrics.busy.set(sum(slot is not None for slot in self.engine.slots))
        self.metrics.held.set(sum(turn.held for turn in self._turns))
