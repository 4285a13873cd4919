"""The app: routes, errors, limits, and what starts and ends with the server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool

from hadamard_adapter import __version__
from hadamard_adapter.serving.follow import STOP_S
from hadamard_adapter.serving.http import adapters, classify, pages, predict
from hadamard_adapter.serving.http.errors import explain_errors
from hadamard_adapter.serving.http.middleware import Around
from hadamard_adapter.serving.http.state import Serving

__all__ = ["make_app"]


def make_app(serving: Serving) -> FastAPI:
    """The ASGI app of a server.

    Args:
        serving: whose batcher and follower start and end with the app.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await serving.batcher.start()
        serving.follower.start()
        serving.is_open = True
        yield
        serving.is_open = False
        await asyncio.gather(run_in_threadpool(serving.follower.stop), serving.changes.end(STOP_S))
        await serving.batcher.stop()

    app = FastAPI(
        title="hadamard serve", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.state.serving = serving
    for module in (classify, predict, adapters, pages):
        app.include_router(module.ROUTES)
    explain_errors(app)
    app.add_middleware(Around, serving=serving)
    return app
