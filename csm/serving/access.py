"""Checks of callers and sizes before a request reaches its route, for HTTP and WebSockets alike."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterator
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from csm.serving.errors import ApiError, server_error
from csm.serving.service import Service

OPEN = ("/health", "/ready")
"""Paths that need no key: a balancer asks for them."""

PART = 64 << 10
"""Bytes of a body that are sent at a time. A server that is told to stop waits until the last part is taken."""

_LOCAL = ("localhost", "127.0.0.1", "::1")


class BodyTooLarge(ApiError):
    def __init__(self, most: int) -> None:
        super().__init__(413, f"the body is larger than {most / (1 << 20):g} MiB", code="body_too_large")


class Access:
    """ASGI middleware: key, origin, host, connections, size of the body; counts answers, and those being read."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service, self.settings = app, service, service.settings
        self.connections = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        metrics, limits = self.service.metrics, self.settings.limits

        begun = False

        async def counted(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                metrics.requests.labels(str(message["status"])).inc()
            if message["type"] != "http.response.body":
                await send(message)
                return
            for part in _parts(message):
                await asyncio.wait_for(send(part), limits.send)

        listeners = int(scope["type"] == "http")
        self.connections += 1
        self.service.listening += listeners
        try:
            self._check(scope)
            await self.app(scope, _bounded(receive, limits.body), counted)
        except ApiError as error:
            if begun:
                raise ConnectionAbortedError("a response was broken off") from None
            metrics.refusals.labels(error.code).inc()
            await refuse(error, scope, receive, counted)
        except Exception as error:
            failed = server_error(error, f"answering {scope['path']}")
            if begun:
                raise ConnectionAbortedError("a response was broken off") from None
            await refuse(failed, scope, receive, counted)
        finally:
            self.connections -= 1
            self.service.listening -= listeners

    def _check(self, scope: Scope) -> None:
        headers, limits = Headers(scope=scope), self.settings.limits
        if self.settings.local_only and _host(headers.get("host", "")) not in _LOCAL:
            raise ApiError(403, "this server answers to localhost only", code="foreign_host")
        origin = headers.get("origin")
        own = origin is None or origin.partition("://")[2] == headers.get("host")
        if not own and origin not in self.settings.allowed_origins:
            raise ApiError(403, "pages of this origin may not call; see --allow-origin", code="foreign_origin")
        if scope["path"] in OPEN:
            return
        if self.settings.api_key is not None:
            given = headers.get("authorization", "")
            expected = f"Bearer {self.settings.api_key}"
            if not hmac.compare_digest(given.encode(), expected.encode()):
                raise ApiError(
                    401, "the API key is missing or wrong: Authorization: Bearer KEY", code="invalid_api_key"
                )
        if self.connections > limits.connections:
            message = f"{limits.connections} connections are open, the most; try again later"
            raise ApiError(429, message, code="too_many_connections", retry_after=1)
        if headers.get("content-encoding", "identity") != "identity":
            raise ApiError(415, "compressed bodies are not taken", code="unsupported_encoding")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > limits.body:
            raise BodyTooLarge(limits.body)


def _bounded(receive: Receive, most: int) -> Receive:
    """`receive` for bodies of at most `most` bytes, however they come."""
    size = 0

    async def bounded() -> Message:
        nonlocal size
        message = await receive()
        if message["type"] == "http.request":
            size += len(message.get("body", b""))
            if size > most:
                raise BodyTooLarge(most)
        return message

    return bounded


def _parts(message: Message) -> Iterator[Message]:
    """A message with a body as several: the connection then says when its client has fallen behind."""
    body = message.get("body", b"")
    for start in range(0, max(1, len(body)), PART):
        more = start + PART < len(body) or message.get("more_body", False)
        yield {**message, "body": body[start : start + PART], "more_body": more}


def _host(value: str) -> str | None:
    try:
        return urlsplit(f"//{value}").hostname
    except ValueError:
        return None


async def refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the envelope; a WebSocket is refused before it opens."""
    response = error.response
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008, "reason": error.message})
            return
        start = {"type": "websocket.http.response.start", "status": error.status, "headers": response.raw_headers}
        await send(start)
        await send({"type": "websocket.http.response.body", "body": response.body})
        return
    await response(scope, receive, send)
