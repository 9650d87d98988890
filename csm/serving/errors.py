"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import logging
import traceback
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from csm.serving.metrics import Metrics

logger = logging.getLogger(__name__)

METHODS = ("GET", "POST", "DELETE")
"""Of all routes."""

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A refusal of a request, with all that its envelope says.

    param:       the field that it is about; code: a word for programs
    retry_after: seconds after which the client may try again
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code, self.retry_after = code or f"http_{status}", retry_after

    @property
    def envelope(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> Response:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        # In ASCII: messages may quote text that is not valid Unicode.
        return Response(json.dumps(self.envelope), self.status, headers, "application/json")


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, param, code)


def busy(what: str) -> ApiError:
    return ApiError(429, f"{what}; try again later", code="server_busy", retry_after=1)


def server_error(error: Exception, doing: str) -> ApiError:
    """The refusal that an error of the server's own becomes. Logged without its message, which may quote what a client
    sent."""
    place = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s while %s\n%s", type(error).__name__, doing, place)
    return ApiError(500, f"the server met an error of its own ({type(error).__name__})", code="server_error")


def validation_error(errors: Any) -> ApiError:
    """The first of pydantic's errors, without the value it is about."""
    first = errors[0]
    place = first["loc"][1:] if first["loc"][:1] in (("body",), ("query",), ("path",)) else first["loc"]
    param = ".".join(map(str, place)) if place and first["type"] != "json_invalid" else None
    message = "the body is not valid JSON" if first["type"] == "json_invalid" else first["msg"]
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else first["type"]
    return invalid(f"{param}: {message}" if param else message, param, code)


def add_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Every refusal of the app, its framework's included, gets the envelope and is counted."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        metrics.refusals.labels(error.code).inc()
        return error.response

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        return await refused(request, validation_error(error.errors()))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, ApiError):  # met while the framework read the body
            return await refused(request, error.__cause__)
        messages = {404: "there is no such route", 405: "this route does not take this method"}
        answer = await refused(request, ApiError(error.status_code, messages.get(error.status_code, str(error.detail))))
        if error.status_code == 405:
            answer.headers["Allow"] = ", ".join(method for method in METHODS if _takes(request, method))
        return answer


def _takes(request: Request, method: str) -> bool:
    """Whether a route takes `method` at the request's path; the framework tells of the first route only."""
    scope = {**request.scope, "method": method}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
