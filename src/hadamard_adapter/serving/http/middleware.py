"""Around every request: an id, a line in the log, counters, and the limits of body and time to send it."""

import asyncio
import ipaddress
import logging
import re
import secrets
import time

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hadamard_adapter.serving.batcher import QueueFullError
from hadamard_adapter.serving.http.errors import ApiError, bug_reply, error_reply, queue_full
from hadamard_adapter.serving.http.state import Serving

__all__ = ["Around", "is_own"]

_LOG = logging.getLogger(__name__)
_NO_ROUTE = "none"
_CLOSE = {"Connection": "close"}
"""Of replies to a request whose body is not read to its end: what else comes is no request."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


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
        request_id, started, status, has_begun = _id_of(scope), time.perf_counter(), 500, False

        async def send_on(message: Message) -> None:
            nonlocal status, has_begun
            if message["type"] == "http.response.start":
                status, has_begun = message["status"], True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            limit = self._limit(scope)
            refusal = self._stranger(scope) or _too_long(scope, limit) or self._full(scope)
            if refusal is not None:
                await refusal(scope, receive, send_on)
            else:
                await self.app(scope, self._bounded(receive, limit), send_on)
        except Exception:
            _LOG.exception("bug", extra={"request_id": request_id, "path": scope["path"][:200]})
            if has_begun:
                raise
            await bug_reply()(scope, receive, send_on)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", _NO_ROUTE)
            self.serving.metrics.requests.labels(route, status).inc()
            self.serving.metrics.seconds.labels(route).observe(seconds)
            about = {"request_id": request_id, "method": scope["method"], "path": scope["path"][:200]}
            _LOG.info("request", extra={**about, "status": status, "ms": round(1000 * seconds, 2)})

    def _stranger(self, scope: Scope) -> Response | None:
        """The refusal of a request that was meant for another host's name; None: it was meant for this one.

        Without keys, whoever reaches the server may do everything, and a page that a browser of this machine
        shows reaches it by a name of its own that leads here (DNS rebinding). No page owns an address.
        """
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if self.serving.keys or is_own(host):
            return None
        message = f"expected Host localhost or an address, received {host[:128]!r}; for others use --keys"
        return error_reply(421, "host", message, _CLOSE)

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
                    _CLOSE,
                ) from error
            if message["type"] == "http.disconnect":
                self.serving.metrics.refused.labels("client_gone").inc()
                raise ApiError(499, "client_gone", "the client has gone in the middle of its body")
            size += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if size > limit:
                raise _too_large(limit)
            return message

        return receive_on


def is_own(host: str) -> bool:
    """Whether a Host header is localhost or an address, with or without a port.

    Example:
        >>> [is_own(host) for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "books.example:8000", "")]
        [True, True, True, False, False]
    """
    name = host.rpartition(":")[0] if re.search(r":\d*$", host) and not host.endswith("]") else host
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return name.lower() == "localhost"
    return True


def _id_of(scope: Scope) -> str:
    """The id that a proxy or client gave a request in X-Request-Id, or a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if _ID.fullmatch(given) else secrets.token_hex(8)


def _too_long(scope: Scope, limit: int) -> Response | None:
    """The refusal of a body that says itself that it is too large; None: it does not."""
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if not declared.isdigit() or int(declared[:20]) <= limit:
        return None
    error = _too_large(limit)
    return error_reply(error.status_code, error.type, error.detail, error.headers)


def _too_large(limit: int) -> ApiError:
    message = f"expected a body of at most {limit} bytes, received a larger one"
    return ApiError(413, "body_too_large", message, _CLOSE)
