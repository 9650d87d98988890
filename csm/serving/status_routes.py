"""GET /health, /ready, /metrics and /v1/models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from csm.serving.errors import ApiError
from csm.serving.service import Service


def status_routes(service: Service) -> APIRouter:
    router = APIRouter()

    def model(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": service.started, "owned_by": "local"}

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process lives; a balancer that restarts it asks here."""
        if service.state == "failed":
            raise ApiError(503, "the server is failed", code="server_failed")
        return {"status": service.state}

    @router.get("/ready")
    async def ready() -> dict[str, Any]:
        """Whether it takes requests; a balancer that distributes them asks here."""
        engine = service.model.generator.engine
        return {"status": "ready", "slots": len(engine.slots), "live": service.live}

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model(name) for name in service.settings.names]}

    @router.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        if name not in service.settings.names:
            raise ApiError(404, "there is no such model; GET /v1/models lists them", "model", "model_not_found")
        return model(name)

    return router
