"""The batcher: texts of many requests in shared forward passes, fair to adapters and true to deadlines.

A request's rows are tokenised in a thread, wait in one queue, and are taken from it in turns: one row of each
adapter after the other until the token budget is full (`choose`). A turn is computed shortest rows first, in
passes of rows of like length, in a second thread. An adapter that has to be read from a pack is read in a
third. The event loop computes nothing.
"""

import asyncio
import contextlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from hadamard_adapter.errors import HadamardError
from hadamard_adapter.serving.bank import BATCH_TOKENS, AdapterBank, BankEntry
from hadamard_adapter.serving.rows import Text, read_rows
from hadamard_adapter.tuning.classifier import Prediction
from hadamard_adapter.tuning.models import token_batches

__all__ = ["Answer", "Batcher", "DeadlineError", "QueueFullError", "choose"]


ADMITTED = 0.4
"""Share of a deadline that the work ahead may take; a request that finds more is refused."""
OLD = 0.25
"""Share of its deadline after which a row is not overtaken any more."""


class QueueFullError(HadamardError):
    """More waits than the queue takes, or than can be computed before the deadline."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        """Say when it is worth asking again, in whole seconds."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(HadamardError):
    """A request was not answered in its time."""


@dataclass(frozen=True)
class Answer:
    """What a request gets."""

    predictions: list[Prediction]
    """One a row."""
    versions: list[str]
    """Version of the adapter that computed each row."""
    n_tokens: list[int]
    """Tokens of each row, special ones included."""


@dataclass(frozen=True, eq=False)
class _Row:
    """One text that waits for its adapter."""

    id: str
    tokens: dict[str, Any]
    entry: BankEntry
    """Held; released by whoever takes the row out of the batcher."""
    done: "asyncio.Future[Float32[np.ndarray, ' l']]"
    """Its logits; cancelled when nobody waits for them any more."""
    old_at: float
    """The loop's time from which on no other row overtakes it."""

    @property
    def n_tokens(self) -> int:
        return len(self.tokens["input_ids"])


def choose(ids: Sequence[str], n_tokens: Sequence[int], budget: int, n_old: int = 0) -> list[int]:
    """Positions in the queue of the next turn: one row of each adapter after the other, oldest first.

    The turn ends before (number of rows) x (longest row) exceeds the budget, but holds at least one row; the
    oldest row of all is always in it, so that no row waits for ever. Rows that have waited long come first,
    in the order of arrival: nobody overtakes them any more.

    Args:
        ids: adapter of each row, in the order of arrival.
        n_tokens: tokens of each row.
        budget: tokens of a turn, padding included.
        n_old: rows at the head of the queue that have waited long.

    Example:
        >>> choose(["a", "a", "a", "b"], [10, 10, 10, 10], budget=30)
        [0, 3, 1]
    """
    rounds: dict[str, int] = {}
    order: list[tuple[int, int]] = []
    for position, id in enumerate(ids):
        rounds[id] = rounds.get(id, 0) + 1
        order.append((0 if position < n_old else rounds[id], position))
    chosen: list[int] = []
    longest = 0
    for _, position in sorted(order):
        longest = max(longest, n_tokens[position])
        if chosen and (len(chosen) + 1) * longest > budget:
            break
        chosen.append(position)
    return chosen


def _late(timeout_s: float) -> DeadlineError:
    return DeadlineError(
        f"expected an answer within {timeout_s:g} s, there was none; ask later, or send less text"
    )


class Batcher:
    """Answers requests from a bank, many in one forward pass.

    Args:
        bank: with a tokenizer.
        n_queue: rows that may be under way at once.
        batch_tokens: tokens of a turn, padding included.
        wait_s: how long a turn that is not full waits for more rows.
        told: called after each forward pass with (rows, tokens with padding).
    """

    def __init__(
        self,
        bank: AdapterBank,
        n_queue: int = 512,
        batch_tokens: int = 16_384,
        wait_s: float = 0.002,
        told: Callable[[int, int], None] = lambda n_rows, n_tokens: None,
    ) -> None:
        """Make a batcher that stands still until `start`."""
        self.bank, self.n_queue, self.batch_tokens, self.wait_s = bank, n_queue, batch_tokens, wait_s
        self.n_rows = 0
        """Rows under way: accepted and not answered."""
        self._told = told
        self._queue: list[_Row] = []
        self._turn: list[_Row] = []
        self._filled = asyncio.Event()
        self._s_per_token = 0.0
        self._reading = ThreadPoolExecutor(4, "read")
        self._tokenizing = ThreadPoolExecutor(1, "tokenize")
        self._computing = ThreadPoolExecutor(1, "forward", _give_way)
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Measure the pace, then begin to compute."""
        loop = asyncio.get_running_loop()
        self._s_per_token = await loop.run_in_executor(self._computing, self.bank.measure_pace)
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Stop computing and end the threads; rows that wait are not answered."""
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        self._reading.shutdown(cancel_futures=True)
        self._tokenizing.shutdown()
        self._computing.shutdown()

    async def predict(
        self, texts: Sequence[Text], ids: Sequence[str], pairs: Sequence[str | None], timeout_s: float
    ) -> Answer:
        """One prediction a row, all rows of an adapter by the version that it has now.

        Args:
            texts: one a row, or its token ids.
            ids: adapter of each row.
            pairs: second text of each row, None where its adapter takes one text.
            timeout_s: seconds until the answer is worth nothing.

        Raises:
            QueueFullError: too much is under way; said at once, before anything is computed.
            DeadlineError: not answered within `timeout_s`; rows that still waited are not computed.
            AdapterError: an id that the bank does not have.
            SettingsError: a second text missing or too many.
        """
        self.refuse_full(len(texts), timeout_s)
        self.n_rows += len(texts)
        try:
            return await asyncio.wait_for(self._answer(texts, ids, pairs, timeout_s), timeout_s)
        except asyncio.TimeoutError as error:
            raise _late(timeout_s) from error
        finally:
            self.n_rows -= len(texts)

    async def token_ids(self, text: str, id: str, timeout_s: float) -> tuple[list[int], int]:
        """The token ids of a text, as an adapter reads it, and how many it reads at most.

        Raises:
            QueueFullError: too much is under way.
            DeadlineError: not answered within `timeout_s`.
            AdapterError: an id that the bank does not have.
            SettingsError: the adapter reads pairs of texts.
        """
        self.refuse_full(1, timeout_s)
        self.n_rows += 1
        try:
            return await asyncio.wait_for(self._token_ids(text, id), timeout_s)
        except asyncio.TimeoutError as error:
            raise _late(timeout_s) from error
        finally:
            self.n_rows -= 1

    async def _token_ids(self, text: str, id: str) -> tuple[list[int], int]:
        loop, entries = asyncio.get_running_loop(), await self._hold([id])
        try:
            work = loop.run_in_executor(self._tokenizing, self.bank.tokenize, [text], entries, [None])
            (row,) = await work
            return row["input_ids"], self.bank.longest_text(entries[0])
        finally:
            self.bank.release(entries)

    async def _hold(self, ids: Sequence[str]) -> list[BankEntry]:
        """`AdapterBank.hold`, in a thread where it reads; given back at once if nobody waits any more."""
        if self.bank.holds(ids):
            return self.bank.hold(ids)
        reading = self._reading.submit(self.bank.hold, ids)
        try:
            return await asyncio.shield(asyncio.wrap_future(reading))
        except asyncio.CancelledError:
            if not reading.cancel():  # it has begun
                reading.add_done_callback(self._give_back)
            raise

    def _give_back(self, reading: "Future[list[BankEntry]]") -> None:
        if not reading.cancelled() and reading.exception() is None:
            self.bank.release(reading.result())

    async def _answer(
        self,
        texts: Sequence[Text],
        ids: Sequence[str],
        pairs: Sequence[str | None],
        timeout_s: float,
    ) -> Answer:
        loop, entries = asyncio.get_running_loop(), await self._hold(ids)
        try:
            tokens = await loop.run_in_executor(self._tokenizing, self.bank.tokenize, texts, entries, pairs)
            self.refuse_full(0, timeout_s)
        except BaseException:
            self.bank.release(entries)
            raise
        rows = [
            _Row(id, one, entry, loop.create_future(), loop.time() + OLD * timeout_s)
            for id, one, entry in zip(ids, tokens, entries, strict=True)
        ]
        self._queue += rows
        self._filled.set()
        logits = await asyncio.gather(*(row.done for row in rows))
        return Answer(
            read_rows([entry.adapter for entry in entries], logits),
            [entry.version for entry in entries],
            [row.n_tokens for row in rows],
        )

    def refuse_full(self, n_new: int, timeout_s: float) -> None:
        """Refuse what finds no place, or would hardly be computed in time at the pace of late.

        Rows are taken in turns, so a request may end as late as the work that is there when it comes takes,
        after it has been overtaken for `OLD` of its deadline, and a turn after that.

        Args:
            n_new: rows that come.
            timeout_s: their deadline, in seconds.

        Raises:
            QueueFullError: too much is under way.
        """
        expected_s = self._s_per_token * sum(row.n_tokens for row in (*self._queue, *self._turn))
        if self.n_rows + n_new > self.n_queue or expected_s > ADMITTED * timeout_s:
            raise QueueFullError(
                f"{self.n_rows} texts are under way (limit {self.n_queue}), about {expected_s:.1f} s of "
                "work; ask again after the seconds in Retry-After",
                max(1, math.ceil(expected_s / 2)),
            )

    async def _work(self) -> None:
        while True:
            await self._filled.wait()
            if sum(row.n_tokens for row in self._queue) < self.batch_tokens:
                await asyncio.sleep(self.wait_s)
            self._drop_gone()
            now = asyncio.get_running_loop().time()
            waiting = enumerate(self._queue)
            n_old = next((at for at, row in waiting if row.old_at > now), len(self._queue))
            n_tokens = [row.n_tokens for row in self._queue]
            chosen = choose([row.id for row in self._queue], n_tokens, self.batch_tokens, n_old)
            self._turn = [self._queue[position] for position in chosen]
            taken = set(chosen)
            self._queue = [row for position, row in enumerate(self._queue) if position not in taken]
            if not self._queue:
                self._filled.clear()
            await self._compute_turn()

    async def _compute_turn(self) -> None:
        turn = self._turn
        for chosen in list(token_batches([row.n_tokens for row in turn], BATCH_TOKENS)):
            rows = [turn[position] for position in chosen]
            wanted = [row for row in rows if not row.done.done()]
            try:
                if wanted:
                    await self._compute(wanted)
            finally:
                self.bank.release([row.entry for row in rows])
                self._turn = [row for row in self._turn if row not in rows]

    async def _compute(self, rows: list[_Row]) -> None:
        loop = asyncio.get_running_loop()
        n_tokens = len(rows) * max(row.n_tokens for row in rows)
        started = loop.time()
        tokens, entries = [row.tokens for row in rows], [row.entry for row in rows]
        try:
            logits = await loop.run_in_executor(self._computing, self.bank.logits, tokens, entries)
        except Exception as error:  # whoever waits for these rows is told; the others go on
            await self._compute_apart(rows, error)
            return
        for row, values in zip(rows, logits, strict=True):
            if not row.done.done():
                row.done.set_result(values)
        pace = (loop.time() - started) / n_tokens
        self._s_per_token = 0.8 * self._s_per_token + 0.2 * pace if self._s_per_token else pace
        self._told(len(rows), n_tokens)

    async def _compute_apart(self, rows: list[_Row], error: Exception) -> None:
        """After a pass that failed: a pass for each adapter of it, then each row; to one row the error."""
        rows_of: dict[int, list[_Row]] = {}
        for row in rows:
            rows_of.setdefault(id(row.entry), []).append(row)
        parts = list(rows_of.values()) if len(rows_of) > 1 else [[row] for row in rows]
        for own in parts:
            waiting = [row for row in own if not row.done.done()]
            if waiting and len(rows) > 1:
                await self._compute(waiting)
                continue
            for row in waiting:
                row.done.set_exception(error)

    def _drop_gone(self) -> None:
        """Take out rows that nobody waits for: their client has gone, or their deadline is over."""
        gone = [row for row in self._queue if row.done.done()]
        if gone:
            self.bank.release([row.entry for row in gone])
            self._queue = [row for row in self._queue if not row.done.done()]


def _give_way() -> None:
    """Let the event loop go before the thread that computes, so that it answers at once; Linux can."""
    if sys.platform == "linux":
        os.nice(5)
