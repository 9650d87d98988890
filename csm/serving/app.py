"""The ASGI application of a service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from csm import __version__
from csm.serving.access import Access
from csm.serving.conversation_routes import conversation_routes
from csm.serving.errors import add_handlers
from csm.serving.service import Service
from csm.serving.speech_routes import speech_routes
from csm.serving.status_routes import status_routes
from csm.serving.voice_routes import voice_routes
from csm.serving.websocket import speech_socket


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
            CORSMiddleware,
            allow_origins=service.settings.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=[
                *("X-Segment-Id", "X-Sample-Rate", "X-Watermark", "X-Finish-Reason", "X-Audio-Seconds", "Retry-After")
            ],
        )
    return app
