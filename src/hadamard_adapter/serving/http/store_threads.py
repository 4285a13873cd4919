"""Calls that wait for the store: one that hangs holds up neither event loop nor end of the process."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from fastapi.concurrency import run_in_threadpool

from hadamard_adapter.serving.http.errors import store_away

__all__ = ["StoreThreads"]

_LOG = logging.getLogger(__name__)


class StoreThreads:
    """Runs calls in threads of their own, which end with the process; so many at a time, the others wait.

    Args:
        n: of threads.

    Example:
        >>> asyncio.run(StoreThreads(2).run(5.0, str.upper, "a"))
        'A'
    """

    def __init__(self, n: int) -> None:
        """Have no thread yet."""
        self.n = n
        self._places = asyncio.Semaphore(n)
        self._under_way: set[Future[Any]] = set()

    async def run(self, timeout_s: float, act: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns. One that has begun goes on when nobody waits for it any more.

        Raises:
            ApiError: 503, there is no place, no thread or no answer in time.
        """
        answer = Future[Any]()
        try:
            return await asyncio.wait_for(self._answer(answer, act, arguments), timeout_s)
        except asyncio.TimeoutError as error:
            if answer.done():  # it is the function's own
                raise
            message = f"{self.n} requests wait for the store, and no place was free; nothing was changed"
            if answer.running():
                answer.add_done_callback(_log_error)
                message = f"the store has not answered within {timeout_s:g} s; a change may still be made"
            raise store_away(message) from error
        except asyncio.CancelledError:
            answer.add_done_callback(_log_error)
            raise

    async def end(self, timeout_s: float) -> None:
        """Wait for what is under way, so that a change is not broken off by the end of the process."""
        await run_in_threadpool(wait, tuple(self._under_way), timeout_s)

    async def _answer(self, answer: Future[Any], act: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        await self._places.acquire()
        loop = asyncio.get_running_loop()

        def run() -> None:
            try:
                answer.set_result(act(*arguments))
            except BaseException as error:
                answer.set_exception(error)
            finally:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(self._places.release)

        answer.set_running_or_notify_cancel()
        try:
            threading.Thread(target=run, name="store", daemon=True).start()
        except RuntimeError as error:
            self._places.release()
            raise store_away(f"{error}; nothing was changed") from error
        self._under_way.add(answer)
        answer.add_done_callback(self._under_way.discard)
        return await asyncio.wrap_future(answer)


def _log_error(answer: Future[Any]) -> None:
    """Log why a call failed that nobody waits for."""
    if not answer.cancelled() and (error := answer.exception()) is not None:
        _LOG.warning("a call of the store failed late", extra={"problem": f"{type(error).__name__}: {error}"})
