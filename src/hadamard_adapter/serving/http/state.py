"""What the routes share: the bank, its store, the batcher, keys, limits and counters; and who asks."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from hadamard_adapter.serving.bank import AdapterBank, UnreadableError, near_id
from hadamard_adapter.serving.batcher import Batcher
from hadamard_adapter.serving.follow import Follower
from hadamard_adapter.serving.http.errors import ApiError
from hadamard_adapter.serving.http.metrics import Metrics
from hadamard_adapter.serving.http.store_threads import StoreThreads
from hadamard_adapter.serving.keys import EVERYTHING, Key, find_key
from hadamard_adapter.serving.limits import Limits
from hadamard_adapter.serving.store import AdapterStore

__all__ = ["Administrator", "Caller", "Owner", "Serving", "ServingNow", "metrics_page"]

_LOG = logging.getLogger(__name__)
PACK = "(the pack)"
"""Under which it is told that the pack itself cannot be read; no id has brackets."""
N_LOOKED_AT = 2000
"""Ids of which those that a key may use are offered in place of an unknown one."""


@dataclass
class Serving:
    """One running server."""

    model: str
    """Name of the base model."""
    bank: AdapterBank
    """That answers."""
    store: AdapterStore
    """That adapters come from and are published to."""
    follower: Follower
    """That keeps the bank equal to the store."""
    batcher: Batcher
    """That requests wait in."""
    metrics: Metrics
    """What is counted."""
    limits: Limits = field(default_factory=Limits)
    """What is refused."""
    keys: tuple[Key, ...] = ()
    """Who may ask; none: everybody who reaches the server."""
    is_open: bool = False
    """Whether new requests are answered: not before the start, and not from SIGTERM on."""
    gather: Callable[[], bytes] | None = None
    """What gives the counters of this server and its siblings; None: it has none."""
    unread: dict[str, str] = field(default_factory=dict)
    """Id -> why the pack's adapter could not be read when it was last asked for."""
    reads: StoreThreads = field(default_factory=lambda: StoreThreads(32))
    """Of requests that read the store."""
    changes: StoreThreads = field(default_factory=lambda: StoreThreads(8))
    """Of requests that change it; whoever only reads takes none of their places."""

    @property
    def is_ready(self) -> bool:
        """Whether new requests are wanted: the store has been read once, and the server is not ending."""
        return self.is_open and self.follower.has_looked

    @property
    def problems(self) -> dict[str, str]:
        """Id -> why it is not served as it should be; the empty id is the store itself."""
        return {**self.unread, **self.follower.problems}

    def refuse_closing(self) -> None:
        """Refuse new work while the server ends.

        Raises:
            ApiError: 503.
        """
        if not self.is_open:
            raise ApiError(
                503, "closing", "this server is about to end; ask another one", {"Retry-After": "1"}
            )

    def unreadable(self, error: UnreadableError) -> ApiError:
        """The reply where an adapter of the pack, or the pack, cannot be read; why is kept, and logged."""
        if self.unread.get(error.id) != str(error):
            _LOG.warning("not read", extra={"adapter": error.id, "problem": str(error)})
        self.unread[error.id] = str(error)
        what = "the pack" if error.id == PACK else f"adapter {error.id!r}"
        message = f"{what} cannot be read now; who runs this server finds why under /v1/problems"
        return ApiError(503, "unreadable_adapter", message, {"Retry-After": "5"})

    def is_in_pack(self, id: str) -> bool:
        """Whether the pack has an adapter; that it cannot be read is noted until it can.

        Raises:
            ApiError: 503, it cannot be read.
        """
        try:
            is_there = self.bank.is_in_pack(id)
        except UnreadableError as error:  # under no id, of which who asks can make up any number
            raise self.unreadable(UnreadableError(PACK, str(error))) from error
        self.unread.pop(PACK, None)
        return is_there

    def check_ids(self, key: Key, ids: Sequence[str]) -> None:
        """Refuse ids that the key may not use, whether they are there or not, then those that are not there.

        Raises:
            ApiError: 403, 404, or 503 where the pack cannot be read.
        """
        for id in ids:
            if not key.may_use(id):
                raise ApiError(
                    403,
                    "id_not_allowed",
                    f"key {key.name!r} may not use {id!r}; its ids: {', '.join(key.ids)}",
                )
            if not (self.bank.is_resident(id) or self.is_in_pack(id)):
                allowed = (other for other in self.bank.ids[:N_LOOKED_AT] if key.may_use(other))
                listed = "; GET /v1/models lists those that are"
                hint = near_id(id, allowed, otherwise=listed)
                raise ApiError(404, "no_such_adapter", f"no adapter {id!r} is served{hint}")


def metrics_page(serving: Serving) -> bytes:
    """Counters of one server, as Prometheus reads them."""
    serving.metrics.under_way.set(serving.batcher.n_rows)
    serving.metrics.adapters.set(len(serving.bank))
    serving.metrics.problems.set(len(serving.problems))
    return serving.metrics.page()


async def _serving(request: Request) -> Serving:
    return request.app.state.serving


ServingNow = Annotated[Serving, Depends(_serving)]
"""A route's parameter: the server."""


async def _caller(request: Request, serving: ServingNow) -> Key:
    if not serving.keys:
        return EVERYTHING
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    key = find_key(serving.keys, secret.strip())
    if scheme.lower() != "bearer" or key is None:
        raise ApiError(
            401,
            "no_key",
            "expected a key of this server in the header 'Authorization: Bearer KEY', received "
            + ("another one" if secret else "none"),
            {"WWW-Authenticate": "Bearer"},
        )
    return key


Caller = Annotated[Key, Depends(_caller)]
"""A route's parameter: the key of who asks."""


async def _administrator(key: Caller) -> Key:
    if not key.may_administrate:
        raise ApiError(403, "no_administrator", f"key {key.name!r} may not change adapters; use one that may")
    return key


Administrator = Annotated[Key, Depends(_administrator)]
"""A route's parameter: the key of who asks and may change adapters."""


async def _owner(key: Administrator) -> Key:
    if not key.may_use_all:
        raise ApiError(
            403, "no_owner", f"key {key.name!r} may use {', '.join(key.ids)}; this names all adapters"
        )
    return key


Owner = Annotated[Key, Depends(_owner)]
"""A route's parameter: the key of who asks and may change every adapter."""
