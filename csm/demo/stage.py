"""One generator for many visitors, each in a thread of its own: their turns are spoken together, round by round."""

from __future__ import annotations

import threading
from collections import deque

from torch import Tensor

from csm.inference.generator import Generator
from csm.inference.streams import SpeechStream


class Stage:
    """A generator and the lock under which it is used; at most as many turns are spoken at once as it has slots."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.lock = threading.Lock()
        self._left: deque[SpeechStream] = deque()

    def next(self, stream: SpeechStream) -> Tensor | None:
        """The next chunk of a turn, float32 `[num_samples]`; None at its end."""
        with self.lock:
            self._close_left()
            return next(stream, None)

    def leave(self, stream: SpeechStream) -> None:
        """Ends a turn whose listener is gone.

        May be called while an object is dropped, in a thread that holds the lock: then it is done with the next chunk.
        """
        self._left.append(stream)
        if self.lock.acquire(blocking=False):
            try:
                self._close_left()
            finally:
                self.lock.release()

    def _close_left(self) -> None:
        while self._left:
            self._left.popleft().close()
