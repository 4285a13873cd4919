"""A trial of a short cut: does the model compute the same with it, outputs and gradients?"""

from typing import Any

import torch
from torch import Tensor

from hadamard_adapter.tuning.stage import Row, Stage

__all__ = ["PROBES", "Outcome", "is_same", "outcome", "probe_rows", "to_device"]

MAX_TOKENS = 512
"""Of a row on trial, where there are such rows."""

TOLERANCE = 1e-4
"""Largest difference, relative to the largest value, that counts as rounding."""

PROBES = (
    "a fine film",
    "The plot is thin, the actors are not.",
    "42",
    "It rained for the whole of the second day, so we stayed inside and read the old newspapers aloud.",
    "Würde, naïveté & 東京!",
)
"""Texts of several lengths, to try a model on."""

Outcome = tuple[Tensor, list[Tensor | None]]
"""Logits of a batch, and a gradient for each tensor that was asked for."""


def probe_rows(stage: Stage) -> list[Row]:
    """A few rows of train and dev, from the shortest on, and the longest.

    Rows that are so long that a trial of five would take more memory than a step are left out, unless there
    are hardly any others: then the shortest ones are tried.
    """
    by_length = sorted([*stage.train, *stage.dev], key=_n_tokens)
    longest = min(MAX_TOKENS, (stage.micro_batch_tokens or 5 * MAX_TOKENS) // 5)
    n_short = max(4, sum(_n_tokens(row) <= longest for row in by_length))
    by_length = by_length[:n_short]
    return [*by_length[:: max(1, len(by_length) // 4)][:4], by_length[-1]]


def _n_tokens(row: Row) -> int:
    return len(row["input_ids"])


def outcome(model: Any, batch: dict[str, Tensor], inputs: list[Tensor]) -> Outcome:
    """Logits y of a batch, and the gradients of Σ (y + 1)² (None where there is none).

    Of Σ y² a head of zeros would have no gradient, and any short cut would pass.

    Args:
        model: in evaluation mode, so that nothing is drawn at random.
        batch: model inputs; "labels" are left out.
        inputs: tensors whose gradients are wanted.
    """
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    gradients = torch.autograd.grad((logits + 1).square().sum(), inputs, allow_unused=True) if inputs else ()
    return logits.detach(), list(gradients)


def is_same(found: Outcome, expected: Outcome) -> bool:
    """Whether two outcomes are equal up to rounding.

    Example:
        >>> is_same((torch.ones(2), [None]), (torch.ones(2) + 1e-6, [None]))
        True
    """
    pairs = zip([found[0], *found[1]], [expected[0], *expected[1]], strict=True)
    return all(_is_close(one, other) for one, other in pairs)


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch's tensors on a device."""
    return {name: value.to(device) for name, value in batch.items()}


def _is_close(found: Tensor | None, expected: Tensor | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return float((found - expected).abs().max()) <= TOLERANCE * max(float(expected.abs().max()), 1e-6)
