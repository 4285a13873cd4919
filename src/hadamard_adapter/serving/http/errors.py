"""Errors of the server: one shape for all of them, {"error": {"message", "type", "code"}}."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from hadamard_adapter.errors import AdapterError, SettingsError
from hadamard_adapter.serving.batcher import DeadlineError, QueueFullError
from hadamard_adapter.serving.http.metrics import Metrics

__all__ = [
    "ApiError",
    "ErrorReply",
    "bug_reply",
    "error_reply",
    "explain_errors",
    "failures",
    "queue_full",
    "store_away",
]


class ApiError(HTTPException):
    """A reply that is no success.

    It is an HTTPException so that what is raised while a body is read passes FastAPI unchanged.
    """

    def __init__(
        self, status: int, type: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Say what was expected, what was received and what to do."""
        super().__init__(status, message, headers)
        self.type = type


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    code: int


class ErrorReply(BaseModel):
    """The body of every reply that is no success."""

    error: ErrorDetail


def failures(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can fail with these codes, for the OpenAPI description.

    Example:
        >>> failures(404)
        {404: {'model': <class 'hadamard_adapter.serving.http.errors.ErrorReply'>}}
    """
    return {code: {"model": ErrorReply} for code in codes}


def error_reply(
    status: int, type: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """A reply in the shape of all errors."""
    written = message.encode("utf-8", "backslashreplace").decode()  # what was sent may hold half a character
    detail = {"message": written, "type": type, "code": status}
    return JSONResponse({"error": detail}, status, dict(headers or {}))


def store_away(message: str) -> ApiError:
    """The reply where the store cannot be used for now."""
    return ApiError(503, "store", message, {"Retry-After": "5"})


def queue_full(metrics: Metrics, error: QueueFullError) -> JSONResponse:
    """The reply to a request that found no place, counted."""
    metrics.refused.labels("queue").inc()
    return error_reply(429, "queue_full", str(error), {"Retry-After": str(error.retry_after_s)})


def explain_errors(app: FastAPI) -> None:
    """Make an app answer every error in one shape."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(QueueFullError, _queue_full)
    app.add_exception_handler(DeadlineError, _late)
    app.add_exception_handler(SettingsError, _unfit)
    app.add_exception_handler(AdapterError, _unfit)


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = error.type if isinstance(error, ApiError) else "http_error"
    return error_reply(error.status_code, kind, str(error.detail), error.headers)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return error_reply(422, "invalid_request", f"{place}: {first['msg']}; /docs describes what is expected")


def _queue_full(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, QueueFullError)
    return queue_full(request.app.state.serving.metrics, error)


def _late(request: Request, error: Exception) -> JSONResponse:
    request.app.state.serving.metrics.refused.labels("deadline").inc()
    return error_reply(504, "deadline", str(error))


def _unfit(request: Request, error: Exception) -> JSONResponse:
    return error_reply(422, "unfit", str(error))


def bug_reply() -> JSONResponse:
    """The reply to what nobody expected; the log has the request's id and the traceback."""
    return error_reply(500, "bug", "this is a bug of the server; its log holds the traceback")
