"""Rows of a mixed batch: which adapter each row belongs to, and running a module group by group."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

__all__ = ["WRONG_LENGTH", "by_group", "rows_of"]

WRONG_LENGTH = (
    "Length of `adapter_names` should be the same as the number of inputs, but got {} and {} respectively"
)
"""PEFT's words, for the number of names and the number of rows."""


def by_group(
    x: Shaped[Tensor, "b ..."], names: list[str], call: Callable[[Tensor, str], Tensor]
) -> Float[Tensor, "b ..."]:
    """Returns call(rows, name) for the rows of each name, back in the order of the rows.

    Outputs of different width (heads with different numbers of labels) are padded with -inf on the right.
    """
    groups = {name: [i for i, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
    parts = [call(x[rows], name) for name, rows in groups.items()]
    width = max(part.shape[-1] for part in parts)
    parts = [nn.functional.pad(p, (0, width - p.shape[-1]), value=float("-inf")) for p in parts]
    order = torch.tensor([row for rows in groups.values() for row in rows], device=x.device)
    joined = torch.cat(parts)
    return torch.empty_like(joined).index_copy_(0, order, joined)


def rows_of(x: Shaped[Tensor, "b ..."], adapter_names: list[str]) -> list[str]:
    """Returns one adapter name for each row of x: beams and flattened tokens repeat their text's name.

    Raises:
        ValueError: The number of rows is no multiple of the number of names.
    """
    times, rest = divmod(x.shape[0], len(adapter_names))
    if rest or not times:
        raise ValueError(f"{WRONG_LENGTH.format(len(adapter_names), x.shape[0])}.")
    return [name for name in adapter_names for _ in range(times)] if times > 1 else list(adapter_names)
