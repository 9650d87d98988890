"""The ASGI application of a service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.datastructures import Headers
from starlette.responses import Response

from csm import __version__
from csm.serving.access import Access
from csm.serving.conversation_routes import conversation_routes
from csm.serving.errors import METHODS, ApiError, add_handlers
from csm.serving.service import Service
from csm.serving.speech_routes import speech_routes
from csm.serving.status_routes import status_routes
from csm.serving.voice_routes import voice_routes
from csm.serving.websocket import speech_socket

STICKY = ("X-Conversation", "X-Session-Id")
"""Headers by which balancers in front of several servers find a conversation's (docs/serving.md)."""


class Origins(CORSMiddleware):
    """Lets pages of other origins call; what they may not ask for is refused with the envelope."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        message = f"pages may not call so ({bytes(answer.body).decode()}); origins are given with --allow-origin"
        refusal = ApiError(answer.status_code, message, code="cors_refused").response
        refusal.headers.update({name: value for name, value in answer.headers.items() if name.startswith("access-")})
        return refusal


def create_app(service: Service) -> FastAPI:
    """Loading of the model begins with the application's lifespan."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    app = FastAPI(title="CSM", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    add_handlers(app, service.metrics)
    app.include_router(status_routes(service))
    app.include_router(speech_routes(service))
    app.include_router(voice_routes(service))
    app.include_router(conversation_routes(service))
    app.include_router(speech_socket(service))
    app.add_middleware(Access, service=service)
    if service.settings.allowed_origins:
        app.add_middleware(
            Origins,
            allow_origins=service.settings.allowed_origins,
            allow_methods=METHODS,
            allow_headers=["Authorization", "Content-Type", *STICKY],
            expose_headers=[
                *("X-Segment-Id", "X-Sample-Rate", "X-Watermark", "X-Finish-Reason", "X-Audio-Seconds", "Retry-After")
            ],
        )
    return app
