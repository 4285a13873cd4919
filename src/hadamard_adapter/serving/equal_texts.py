"""Texts that several adapters of a batch read: the layers below the first adapted one run once a text."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from jaxtyping import Int64
from torch import Tensor

__all__ = ["Shared", "find_shared", "keys_of"]

EMBEDDING_LAYERS = 0.1
"""What the embeddings of a row cost, in layers: sharing runs them twice for a row that it shares."""


@dataclass(frozen=True)
class Shared:
    """How a batch shares its lower layers."""

    depth: int
    """Number of layers that run once a text."""
    firsts: list[int]
    """Rows that run through them, each for all that share with it: these layers see the base model."""
    of_row: list[int]
    """For each row of the batch, the position in `firsts` of the one whose output it takes."""


def keys_of(inputs: dict[str, Int64[Tensor, "b s"]]) -> list[bytes]:
    """A key a row of the model's inputs, equal for rows that are equal in all of them."""
    arrays = [tensor.cpu().numpy() for tensor in inputs.values()]
    return [b"".join(array[row].tobytes() for array in arrays) for row in range(len(arrays[0]))]


def find_shared(keys: Sequence[Hashable], depths: Sequence[int]) -> Shared | None:
    """How the rows of a batch share their lower layers; None where it is not worth it.

    Rows of one text share if each of their adapters leaves the first layers alone. The number of these is the
    same for all that share, the least among them.

    Args:
        keys: of each row, equal for equal texts.
        depths: of each row, the number of layers below the first one that its adapter changes.

    Example:
        >>> find_shared("aab", [2, 3, 0])
        Shared(depth=2, firsts=[0, 2], of_row=[0, 0, 1])
    """
    rows_of: dict[Hashable, list[int]] = {}
    for row, (key, depth) in enumerate(zip(keys, depths, strict=True)):
        rows_of.setdefault(key if depth else (key, row), []).append(row)
    several = [row for rows in rows_of.values() if len(rows) > 1 for row in rows]
    depth = min((depths[row] for row in several), default=0)
    n_saved = len(keys) - len(rows_of)
    if n_saved * depth <= EMBEDDING_LAYERS * len(keys):
        return None
    of_row = {row: position for position, rows in enumerate(rows_of.values()) for row in rows}
    return Shared(
        depth,
        [rows[0] for rows in rows_of.values()],
        [of_row[row] for row in range(len(keys))],
    )
