"""Around every request: an id, a line in the log, counters, and the limits of body and time to send it."""

import asyncio
import logging
import secrets
import time

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hadamard_adapter.serving.batcher import QueueFullError
from hadamard_adapter.serving.http.errors import ApiError, error_reply, queue_full
from hadamard_adapter.serving.http.state import Serving

__all__ = ["Around"]

_LOG = logging.getLogger(__name__)
_NO_ROUTE = "none"


class Around:
    """ASGI middleware; the texts of requests are neither read nor logged by it."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        """Wrap an app."""
        self.app, self.serving = app, serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id, started, status = secrets.token_hex(8), time.perf_counter(), 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            limit = self._limit(scope)
            declared = dict(scope["headers"]).get(b"content-length", b"0")
            if declared.isdigit() and int(declared[:20]) > limit:
                error = _too_large(limit)
                reply = error_reply(error.status_code, error.type, error.detail, {"Connection": "close"})
                await reply(scope, receive, send_on)
            elif (full := self._full(scope)) is not None:
                await full(scope, receive, send_on)
            else:
                await self.app(scope, self._bounded(receive, limit), send_on)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", _NO_ROUTE)
            self.serving.metrics.requests.labels(route, status).inc()
            self.serving.metrics.seconds.labels(route).observe(seconds)
            about = {"request_id": request_id, "method": scope["method"], "path": scope["path"][:200]}
            _LOG.info("request", extra={**about, "status": status, "ms": round(1000 * seconds, 2)})

    def _full(self, scope: Scope) -> Response | None:
        """The refusal of texts that would find no place, before their body is read; None: there is one."""
        if scope["method"] != "POST":
            return None
        try:
            self.serving.batcher.refuse_full(1, self.serving.limits.timeout_s)
        except QueueFullError as error:
            return queue_full(self.serving.metrics, error)
        return None

    def _limit(self, scope: Scope) -> int:
        limits = self.serving.limits
        is_upload = scope["method"] == "PUT" and scope["path"].startswith("/v1/adapters/")
        return limits.upload_bytes if is_upload else limits.body_bytes

    def _bounded(self, receive: Receive, limit: int) -> Receive:
        """`receive` for a body of at most `limit` bytes that comes before the deadline."""
        size, is_whole = 0, False
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.serving.limits.timeout_s

        async def receive_on() -> Message:
            nonlocal size, is_whole
            if is_whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.001, deadline - loop.time()))
            except asyncio.TimeoutError as error:
                raise ApiError(
                    408,
                    "slow_body",
                    f"expected the body within {self.serving.limits.timeout_s:g} s; send faster",
                ) from error
            size += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if size > limit:
                raise _too_large(limit)
            return message

        return receive_on


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "body_too_large", f"expected a body of at most {limit} bytes, received a larger one")
