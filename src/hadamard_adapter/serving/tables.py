"""Tables of rows that grow: a row for each adapter, taken from the table by one index for a whole batch."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["RowTable", "Slots"]


class RowTable:
    """Tensors of one shape, one a row; row 0 is there from the start and is the base model's.

    A table that is full is copied into one of twice the size. Readers that took rows before keep theirs.

    Example:
        >>> table = RowTable(torch.zeros(2))
        >>> table.put(torch.ones(2))
        1
        >>> table.values[torch.tensor([1, 0, 1])].tolist()
        [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
    """

    def __init__(self, first: Float[Tensor, "..."]) -> None:
        """Make a table of one row."""
        self.values: Float[Tensor, "n ..."] = first.detach().unsqueeze(0).clone()
        self.free: list[int] = []
        self.n_rows = 1
        self._n_puts = 0

    def put(self, row: Float[Tensor, "..."], at: int | None = None) -> int:
        """Index of a row that now holds `row`: a freed one is taken first, then a new one.

        Args:
            row: its values.
            at: index of the row that is to hold them, or of the next new one, where the caller keeps count.
        """
        is_free = at is None and bool(self.free)
        if at is None:
            at = self.free[-1] if is_free else self.n_rows
        value = row.to(self.values)
        if at == len(self.values):
            self.values = self._grown()
        self.values[at] = value
        if is_free:  # only now: memory that is not there changes nothing
            self.free.pop()
        self.n_rows = max(self.n_rows, at + 1)
        self._n_puts += 1
        return at

    def make_room(self, lock: AbstractContextManager[Any]) -> None:
        """Have the next `put` find a place: a table of gigabytes is copied while readers go on.

        Args:
            lock: that whoever calls `put` or reads holds; free now.
        """
        for _ in range(3):  # rows that change while it is copied make a copy old; in the end `put` makes one
            with lock:
                if self.free or self.n_rows < len(self.values):
                    return
                full, n_puts = self.values, self._n_puts
            grown = self._grown()
            with lock:
                if self.values is full and self._n_puts == n_puts:
                    self.values = grown
                    return

    def _grown(self) -> Float[Tensor, "..."]:
        """A copy of twice the size."""
        full = self.values
        grown = full.new_zeros(2 * len(full), *full.shape[1:])
        grown[: len(full)] = full
        return grown

    def drop(self, index: int) -> None:
        """Free a row for the next `put`."""
        self.free.append(index)

    @property
    def n_taken(self) -> int:
        """How many rows were put and not freed."""
        return self.n_rows - 1 - len(self.free)


class Slots:
    """An index for each slot, as a tensor that a batch's slots are looked up in; 0 where none was set.

    Example:
        >>> slots = Slots(torch.device("cpu"))
        >>> slots.set(3, 7)
        >>> slots.index.tolist()[:5]
        [0, 0, 0, 7, 0]
    """

    def __init__(self, device: torch.device) -> None:
        """Make an index of zeros."""
        self.index: Int64[Tensor, " n"] = torch.zeros(8, dtype=torch.int64, device=device)

    def set(self, slot: int, value: int) -> None:
        """Set one slot's index; every slot below the largest that was ever set can be looked up."""
        if slot >= len(self.index):
            grown = self.index.new_zeros(2 * slot)
            grown[: len(self.index)] = self.index
            self.index = grown
        self.index[slot] = value
