"""uvicorn around the application: starts at once, says 503 while the model loads, and drains when told to stop."""

from __future__ import annotations

import time
from types import FrameType

import uvicorn

from csm.serving.app import create_app
from csm.serving.service import Service

WEBSOCKET_MESSAGE = 1 << 20
"""Most bytes of one; larger recordings are given as voices or turns of conversations."""


class Server(uvicorn.Server):
    """The first SIGTERM or SIGINT lets responses that were begun finish and refuses new ones; the second ends them.

    A failure of the model or its engine ends the server, so that a supervisor starts another one.
    """

    def __init__(self, service: Service, host: str, port: int) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(service),
                host,
                port,
                log_level="info",
                access_log=False,  # metrics count requests, and what is asked for is nobody's business
                ws_max_size=WEBSOCKET_MESSAGE,
                timeout_graceful_shutdown=5,
            )
        )
        self.service = service
        self._drain_until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain_until is not None:
            super().handle_exit(sig, frame)
            return
        self.service.draining = True
        self._drain_until = time.monotonic() + self.service.limits.drain

    async def on_tick(self, counter: int) -> bool:
        until = self._drain_until
        if until is not None and (self.service.idle or time.monotonic() > until):
            self.should_exit = True
        if self.service.failure is not None:
            self.should_exit = True
        return await super().on_tick(counter)


def run_server(service: Service, host: str, port: int) -> None:
    """Runs until a signal ends it. Raises the error that the model met, as it was loaded or later."""
    Server(service, host, port).run()
    if service.failure is not None:
        raise service.failure
