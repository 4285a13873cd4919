"""Half precision for `hadamard predict`: bfloat16 for as long as rows that are compared stay close."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hadamard_adapter.errors import SettingsError

if TYPE_CHECKING:
    from hadamard_adapter.tasks import Examples
    from hadamard_adapter.tuning import Classifier

__all__ = ["N_COMPARED", "ROWS_PER_BATCH", "Precision"]

ROWS_PER_BATCH = 512
N_COMPARED, N_AGAIN = 256, 4
"""Rows, of all lengths, that tell what half precision changes: of the first ones, and of each later batch."""
TOLERANCE = 1e-2
"""Largest change of a probability (regression: of a value, over their range) for half precision."""
SHARE_SEEN = 0.5
"""Of the tolerance, the most that the first rows may need: the worst of all rows is seldom among them."""


@dataclass
class Precision:
    """Which of a classifier's two precisions labels the next rows.

    Of every batch some rows are computed in both. Where the first `N_COMPARED` of these change by more than
    half of the tolerance, or later ones by more than all of it, float32 computes that batch and all that
    follow.
    """

    whole: "Classifier"
    """In float32."""
    dtype: str
    """What is wanted: float32, bfloat16, or auto, which is bfloat16 from the first full batch on."""
    batch_size: int
    say: Callable[[str], None]
    half: "Classifier | None" = None
    is_over: bool = False
    """Whether float32 computes all that follows."""
    n_compared: int = 0
    lowest: float = float("inf")
    highest: float = float("-inf")
    """Of a regression's values so far: a batch may have one row, or equal ones."""
    used: list[str] = field(default_factory=list)
    """The types that rows were computed in, in their order."""

    def __post_init__(self) -> None:
        from hadamard_adapter.tuning.precision import pick_dtype

        self.is_over = pick_dtype(self.dtype, self.whole.model.device) == "float32"

    def logits_and_cuts(self, rows: "Examples") -> tuple[Any, int]:
        """Logits (b, l) of a batch of rows, and how many of these were cut.

        Raises:
            SettingsError: bfloat16 is wanted by name, and the model's code or the memory does not allow it.
        """
        try:
            found = None if self.is_over else self._in_half(rows)
        except (SettingsError, RuntimeError) as error:  # not for this model, no memory, or not finite
            if self.dtype == "bfloat16":
                raise
            found = self._end(f"{error}: float32 from there on" if self.used else "")
        dtype = "float32" if found is None else "bfloat16"
        if dtype not in self.used[-1:]:
            self.used.append(dtype)
        return found or self.whole.logits_and_cuts(rows.texts, rows.pairs, self.batch_size)

    def _in_half(self, rows: "Examples") -> tuple[Any, int] | None:
        """In bfloat16; None where float32 is to compute them."""
        from hadamard_adapter.tuning.classifier import largest_change

        if not len(rows):
            return None
        if self.half is None:
            if self.dtype == "auto" and len(rows) < ROWS_PER_BATCH:  # to compare would take longer
                return None
            some = rows.take(_spread_over_lengths(rows, N_COMPARED))
            half, difference = self.whole.halved(some.texts, some.pairs, self.batch_size)
            self.half, self.n_compared = half, len(some)
            if not difference <= TOLERANCE * SHARE_SEEN:
                return self._end(_told(len(some), "the first rows", difference, TOLERANCE * SHARE_SEEN))
            return self._with_range(half.logits_and_cuts(rows.texts, rows.pairs, self.batch_size))
        logits, n_cut = self._with_range(self.half.logits_and_cuts(rows.texts, rows.pairs, self.batch_size))
        places = _spread_over_lengths(rows, max(N_AGAIN, N_COMPARED - self.n_compared))
        some = rows.take(places)
        whole = self.whole.logits(some.texts, some.pairs, self.batch_size)
        difference = largest_change(self.whole.task, whole, logits[places], self.highest - self.lowest)
        limit = TOLERANCE * (SHARE_SEEN if self.n_compared < N_COMPARED else 1)
        self.n_compared += len(some)
        if not difference <= limit:
            return self._end(_told(len(some), "later rows", difference, limit) + " from there on")
        return logits, n_cut

    def _with_range(self, found: tuple[Any, int]) -> tuple[Any, int]:
        """The same, when the range of all values so far has taken in the new ones."""
        self.lowest = min(self.lowest, float(found[0].min()))
        self.highest = max(self.highest, float(found[0].max()))
        return found

    def _end(self, reason: str) -> None:
        """Let float32 compute all that follows, and say why, if there is a reason to."""
        self.half, self.is_over = None, True
        if reason:
            self.say(reason)


def _told(n: int, which: str, difference: float, limit: float) -> str:
    what = f"on {n} of {which} bfloat16 changes predictions by up to {difference:.1g}"
    return f"{what}, more than {limit:g}: float32 instead"


def _spread_over_lengths(rows: "Examples", n: int) -> list[int]:
    """Places of at most n rows, from the shortest to the longest."""
    import numpy as np

    by_length = sorted(range(len(rows)), key=lambda row: len(rows.texts[row]))
    places = np.unique(np.linspace(0, len(by_length) - 1, min(n, len(by_length))).astype(int))
    return [by_length[place] for place in places]
