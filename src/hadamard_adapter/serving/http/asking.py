"""How a route asks the batcher: limits first, and no work for a client that has gone."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Path, Request

from hadamard_adapter.errors import AdapterError, DivergedError
from hadamard_adapter.files import is_utf8
from hadamard_adapter.serving.bank import UnreadableError
from hadamard_adapter.serving.batcher import Answer
from hadamard_adapter.serving.http.errors import ApiError
from hadamard_adapter.serving.http.state import Serving
from hadamard_adapter.serving.keys import Key
from hadamard_adapter.serving.rows import Text

__all__ = [
    "AdapterId",
    "are_texts",
    "ask",
    "check_n_items",
    "lost_adapter",
    "refuse_too_many",
]

N_ITEMS = 16_384
"""Items that a list in a body may have: twice the tokens of the longest text that a family reads."""


AdapterId = Annotated[str, Path(description="Id of the adapter.")]
"""In a route's path."""


def are_texts(value: Any) -> bool:
    """Whether a field of a body is a list of texts.

    Example:
        >>> are_texts(["a text"]), are_texts("a text")
        (True, False)
    """
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def check_n_items(value: Any) -> None:
    """Refuse a long list before its items are looked at, so that no list costs more than one this long.

    Args:
        value: a field of a body, of whatever type.

    Raises:
        ValueError: it is a list of more than `N_ITEMS`; pydantic makes it the field's error.

    Example:
        >>> check_n_items(["a text"])
    """
    if isinstance(value, list) and len(value) > N_ITEMS:
        raise ValueError(f"expected at most {N_ITEMS} items, received {len(value)}; send several requests")


def refuse_too_many(serving: Serving, n: int) -> None:
    """Refuse a request for more predictions than one may have, or for none.

    Args:
        serving: that is asked.
        n: predictions, texts times adapters.

    Raises:
        ApiError: so it is.
    """
    most = min(serving.limits.request_texts, serving.limits.queue_texts)  # more would never find a place
    if not 0 < n <= most:
        raise ApiError(
            422, "too_many_texts",
            f"expected 1 to {most} predictions a request (texts times adapters), "
            f"received {n}; send several requests",
        )  # fmt: skip


async def ask(
    request: Request,
    serving: Serving,
    key: Key,
    texts: Sequence[Text],
    ids: Sequence[str],
    pairs: Sequence[str | None],
) -> Answer:
    """Predictions of rows, one adapter each.

    Args:
        request: whose client may go away; its rows are then not computed.
        serving: that is asked.
        key: of the client.
        texts: one a row, or its token ids.
        ids: adapter of each row.
        pairs: second text of each row, or None.

    Raises:
        ApiError: too many rows, an id that is unknown or not allowed, or the client has gone.
        QueueFullError: too much is under way.
        DeadlineError: not answered in time.
    """
    refuse_too_many(serving, len(texts))
    if not all(is_utf8(text) for text in {*texts, *pairs} if isinstance(text, str)):
        raise ApiError(
            422, "no_unicode", "expected texts of whole characters, received half of a surrogate pair"
        )
    serving.check_ids(key, list(dict.fromkeys(ids)))
    serving.refuse_closing()
    work = asyncio.ensure_future(serving.batcher.predict(texts, ids, pairs, serving.limits.timeout_s))
    gone = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            serving.metrics.refused.labels("client_gone").inc()
            raise ApiError(499, "client_gone", "the client has closed the connection")
        answer = work.result()
    except AdapterError as error:
        raise lost_adapter(serving, error) from error
    except DivergedError as error:
        message = f"{', '.join(dict.fromkeys(ids))}: {error}; publish an adapter that was tuned again"
        raise ApiError(503, "diverged", message) from error
    finally:
        for task in (work, gone):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
    for id in ids:
        serving.unread.pop(id, None)
        serving.metrics.texts.labels(serving.metrics.label_of(id)).inc()
    return answer


def lost_adapter(serving: Serving, error: AdapterError) -> ApiError:
    """The reply where an adapter was there when it was asked for, and could not be had then.

    Args:
        serving: that is asked; it notes what of its pack cannot be read.
        error: of the bank.
    """
    if isinstance(error, UnreadableError):
        return serving.unreadable(error)
    # The bank's own words name ids that a key may not see.
    listed = "GET /v1/models lists those that are served"
    return ApiError(404, "no_such_adapter", f"the adapter was removed in the meantime; {listed}")


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
