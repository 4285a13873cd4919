"""Pages and probes: the page for people at /, /docs without a CDN, /health, /ready, /info, /metrics."""

from dataclasses import fields
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

from hadamard_adapter import __version__
from hadamard_adapter.serving.http.errors import ApiError, failures
from hadamard_adapter.serving.http.state import Administrator, Owner, ServingNow, metrics_page
from hadamard_adapter.serving.limits import Limits

__all__ = ["ROUTES"]

ROUTES = APIRouter(tags=["server"])
_POLICY = {
    "Content-Security-Policy": "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
}


@ROUTES.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page() -> HTMLResponse:
    """The page for people."""
    return _html("page.html")


@ROUTES.get("/docs", response_class=HTMLResponse, include_in_schema=False)
async def docs() -> HTMLResponse:
    """The OpenAPI description as a page."""
    return _html("docs.html")


@ROUTES.get("/health")
async def health() -> dict[str, str]:
    """Whether the process lives."""
    return {"status": "ok"}


@ROUTES.get("/ready", responses=failures(503))
async def ready(serving: ServingNow) -> dict[str, str]:
    """Whether new requests are wanted; 503 while the server starts or ends."""
    if not serving.is_ready:
        raise ApiError(503, "not_ready", "this server starts or ends; ask again later", {"Retry-After": "1"})
    return {"status": "ready"}


@ROUTES.get("/info")
async def info(serving: ServingNow) -> dict[str, Any]:
    """The base model, the limits, and whether a key is needed."""
    return {
        "version": __version__,
        "model": serving.model,
        "base_fingerprint": serving.bank.backbone.base_fingerprint,
        "needs_key": bool(serving.keys),
        "limits": {limit.name: getattr(serving.limits, limit.name) for limit in fields(Limits)},
    }


@ROUTES.get("/metrics", response_class=PlainTextResponse, responses=failures(401, 403))
def metrics(serving: ServingNow, key: Owner) -> Response:
    """Counters for Prometheus; they name adapters, so with keys only an administrator of all reads them."""
    page = metrics_page(serving) if serving.gather is None else serving.gather()
    return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")


@ROUTES.get("/v1/problems", responses=failures(401, 403))
async def problems(serving: ServingNow, key: Administrator) -> JSONResponse:
    """What cannot be served, and why; the empty id, for an administrator of all, is the store itself."""
    own = {id: why for id, why in serving.problems.items() if (key.may_use(id) if id else key.may_use_all)}
    return JSONResponse({"problems": own})


def _html(name: str) -> HTMLResponse:
    text = files("hadamard_adapter.serving.http").joinpath(name).read_text(encoding="utf-8")
    return HTMLResponse(text, headers=_POLICY)
