"""A bank that follows a store: what is published, replaced or removed there is so here, two seconds later."""

import logging
import threading

from hadamard_adapter.errors import AdapterError
from hadamard_adapter.serving.bank import AdapterBank
from hadamard_adapter.serving.store import AdapterStore

__all__ = ["Follower"]

STOP_S = 5.0
"""That `stop` waits for the adapter that a look is at."""
_LOG = logging.getLogger(__name__)


class Follower:
    """Keeps a bank equal to a store, from a thread of its own.

    A version that is damaged, or does not fit the model, is logged and the one before it goes on being
    served. A store that cannot be read changes nothing. Adapters that came into the bank by another way (from
    its pack) stay, and give way to those of the same id in the store.

    Args:
        bank: that is filled.
        store: that is followed.
        every_s: seconds between two looks at the store's generation.

    Example:
        >>> Follower(bank, AdapterStore("store")).look()  # doctest: +SKIP
    """

    def __init__(self, bank: AdapterBank, store: AdapterStore, every_s: float = 0.5) -> None:
        """Make a follower that has not looked yet."""
        self.bank, self.store, self.every_s = bank, store, every_s
        self._seen: str | None = None
        self._own: set[str] = set()
        """Ids that came from the store."""
        self._problems: dict[str, str] = {}
        self._unfit: set[str] = set()
        """Of these ids, those that are the same at every look, until something is published."""
        self._looking = threading.Lock()
        """Of looks."""
        self._lock = threading.Lock()
        """Of what changes the bank, one adapter at a time."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)

    @property
    def problems(self) -> dict[str, str]:
        """Id (empty: the store itself) -> why it is not as the store wants it; one line each."""
        return dict(self._problems)

    @property
    def has_looked(self) -> bool:
        """Whether the store has been read once."""
        return self._seen is not None

    def start(self) -> None:
        """Look now and then from here on."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; a look that has begun ends after the adapter that it is at."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)  # it may wait for a store that hangs

    def look(self) -> None:
        """Make the bank equal to the store, if anything was published since the last look."""
        with self._looking:
            try:
                generation = self.store.generation()
                if not generation and self._seen:
                    raise AdapterError(f"store {self.store.url!r} is gone; what was read before is served")
                if generation != self._seen:
                    self._unfit.clear()
                    self._take_all(self.store.ids())
                    if self._stopped.is_set():
                        return
                    self._seen = generation
                else:
                    self._take_each([id for id in self._problems if id and id not in self._unfit])
                self._solved("")
            except Exception as error:
                self._noted("", _line(error))

    def take(self, id: str) -> None:
        """Make one adapter what the store serves, now.

        Raises:
            AdapterError: it cannot be read, or does not fit the model; the version before stays.
        """
        with self._lock:
            self._take(id)

    def _follow(self) -> None:
        while not self._stopped.wait(self.every_s):
            self.look()

    def _take_all(self, ids: list[str]) -> None:
        gone = sorted(self._own - set(ids))
        found = self.store.versions(ids)  # of many ids at once, and nobody waits for it
        with self._lock:
            current = {id for id in ids if self._has(id, found[id])}
        for id in current:
            self._solved(id)
        self._take_each([*(id for id in ids if id not in current), *gone])

    def _take_each(self, ids: list[str]) -> None:
        for id in ids:
            if self._stopped.is_set():
                return
            try:
                self.take(id)
                self._solved(id)
            except Exception as error:
                self._noted(id, _line(error))
                if isinstance(error, AdapterError) and not isinstance(error.__cause__, OSError):
                    self._unfit.add(id)

    def _has(self, id: str, version: str | None) -> bool:
        return id in self._own and self.bank.entry(id).version == version

    def _take(self, id: str) -> None:
        version = self.store.version(id)
        if version is None:
            if id in self._own:
                self.bank.remove(id)
                self._own.remove(id)
        elif not self._has(id, version):
            self.bank.add(id, self.store.read(id, version)[1], version)
            self._own.add(id)

    def _noted(self, id: str, problem: str) -> None:
        if self._problems.get(id) != problem:
            _LOG.warning("not followed", extra={"adapter": id, "problem": problem})
        self._problems[id] = problem

    def _solved(self, id: str) -> None:
        self._problems.pop(id, None)


def _line(error: Exception) -> str:
    """An error of ours as it is; of any other its kind too, since its text may say little alone."""
    return str(error) if isinstance(error, AdapterError) else f"{type(error).__name__}: {error}"
