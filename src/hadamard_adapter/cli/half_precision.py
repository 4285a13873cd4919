"""Half precision for `hadamard predict`: bfloat16 for as long as rows that are compared stay close."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hadamard_adapter.errors import SettingsError

if TYPE_CHECKING:
    from hadamard_adapter.tasks import Examples
    from hadamard_adapter.tuning import Classifier

__all__ = ["N_COMPARED", "ROWS_PER_BATCH", "Precision"]

ROWS_PER_BATCH = 512
N_COMPARED, N_AGAIN = 256, 4
"""Rows, of all lengths, that tell what half precision changes: of the first ones, and of each later batch."""
TOLERANCE = 1e-2
"""Largest change of a probability (regression: of a value, over the largest) for half precision."""
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
    used: list[str] = field(default_factory=list)
    """The types that rows were computed in, in their order."""

    def __post_init__(self) -> None:
        from hadamard_adapter.tuning.precision import pick_dtype

        self.is_over = pick_dtype(self.dtype, self.whole.model.device) == "float32"

    def pick(self, rows: "Examples") -> "Classifier":
        """The classifier for a batch of rows.

        Raises:
            SettingsError: bfloat16 is wanted by name, and the model's code or the memory does not allow it.
        """
        chosen = self._pick(rows)
        if chosen.dtype not in self.used[-1:]:
            self.used.append(chosen.dtype)
        return chosen

    def _pick(self, rows: "Examples") -> "Classifier":
        # To compare takes longer than to label few rows.
        is_short = self.half is None and self.dtype == "auto" and len(rows) < ROWS_PER_BATCH
        if self.is_over or is_short or not len(rows):
            return self.whole
        limit = TOLERANCE * (SHARE_SEEN if self.n_compared < N_COMPARED else 1)
        some = _spread_over_lengths(rows, max(N_AGAIN, N_COMPARED - self.n_compared))
        try:
            if self.half is None:
                half, difference = self.whole.halved(some.texts, some.pairs, self.batch_size)
            else:
                half = self.half
                difference = self.whole.changed_in(half, some.texts, some.pairs, self.batch_size)
        except SettingsError:
            if self.dtype == "bfloat16":
                raise
            self.is_over = True
            return self.whole
        self.half, self.n_compared = half, self.n_compared + len(some)
        if difference <= limit:
            return half
        self.half, self.is_over = None, True
        where = "the first rows" if not self.used else "later rows"
        what = f"on {len(some)} of {where} bfloat16 changes probabilities by up to {difference:.1g}"
        self.say(f"{what}, more than {limit:g}: float32 instead{'' if not self.used else ' from there on'}")
        return self.whole


def _spread_over_lengths(rows: "Examples", n: int) -> "Examples":
    """At most n rows, from the shortest to the longest."""
    by_length = sorted(range(len(rows)), key=lambda row: len(rows.texts[row]))
    places = np.unique(np.linspace(0, len(by_length) - 1, min(n, len(by_length))).astype(int))
    return rows.take([by_length[place] for place in places])
