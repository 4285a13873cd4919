"""Shared adapters: the mean of other tasks' adapters, and a basis of k directions with k numbers per task.

Source: Chen et al., 2023, arXiv 2407.11033, section 6 (patterns shared over tasks suggest shared adapters).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hadamard_adapter.analysis.offsets import layer_of
from hadamard_adapter.errors import SettingsError

__all__ = ["as_tensors", "basis", "coefficients", "kept_share", "mean_of_others", "vector_of"]


def vector_of(tensors: Mapping[str, Tensor]) -> Float[np.ndarray, " n"]:
    """All offsets of an adapter's file in one vector, tensors in the order of their names; the head left out.

    Example:
        >>> import torch
        >>> name = "bert.encoder.layer.{}.output.dense.hadamard_scale"
        >>> vector_of({name.format(1): torch.ones(2), name.format(0): torch.zeros(1)}).tolist()
        [0.0, 1.0, 1.0]
    """
    return np.concatenate([tensors[name].float().numpy().ravel() for name in _offsets(tensors)])


def as_tensors(vector: Float[np.ndarray, " n"], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's tensors with a vector's offsets; names, shapes and the head are those of another.

    Raises:
        SettingsError: the vector has another length than the offsets.
    """
    import torch

    names = _offsets(like)
    sizes = [like[name].numel() for name in names]
    if sum(sizes) != len(vector):
        raise SettingsError(f"expected {sum(sizes)} offsets, received {len(vector)}; another kind of adapter")
    parts = np.split(np.asarray(vector, dtype=np.float32), np.cumsum(sizes)[:-1])
    made = {
        name: torch.from_numpy(part.copy()).reshape(like[name].shape)
        for name, part in zip(names, parts, strict=True)
    }
    return {**like, **made}


def mean_of_others(vectors: Float[np.ndarray, "a n"], index: int) -> Float[np.ndarray, " n"]:
    """The mean of all adapters but one: a start, or a stand-in, for that one.

    Raises:
        SettingsError: there is no other.

    Example:
        >>> mean_of_others(np.array([[9.0, 9.0], [1.0, 2.0], [3.0, 2.0]]), 0).tolist()
        [2.0, 2.0]
    """
    if len(vectors) < 2:
        raise SettingsError(f"expected two adapters or more, received {len(vectors)}")
    return np.delete(vectors, index, axis=0).mean(axis=0)


def basis(vectors: Float[np.ndarray, "a n"], k: int) -> Float[np.ndarray, "k n"]:
    """The k orthonormal directions that hold most of the adapters' squared length (SVD, not centred).

    The zero vector, which is the base model, stays in their span, so that a task may choose it.

    Raises:
        SettingsError: k is not within 1 and the number of independent adapters.

    Example:
        >>> np.abs(basis(np.array([[0.0, 2.0], [0.0, 5.0]]), 1)).round(6).tolist()
        [[0.0, 1.0]]
    """
    _, s, directions = np.linalg.svd(np.asarray(vectors, dtype=np.float64), full_matrices=False)
    rank = int((s > 1e-9 * max(s[0], 1e-30)).sum())
    if not 1 <= k <= rank:
        raise SettingsError(
            f"k: expected 1 to {rank}, the number of independent adapters, received {k!r}; give more adapters"
        )
    return directions[:k]


def coefficients(
    vectors: Float[np.ndarray, "a n"], directions: Float[np.ndarray, "k n"]
) -> Float[np.ndarray, "a k"]:
    """The k numbers of each adapter whose combination lies nearest to it, V B' for orthonormal rows B."""
    return vectors @ directions.T


def kept_share(
    vectors: Float[np.ndarray, "a n"], directions: Float[np.ndarray, "k n"]
) -> Float[np.ndarray, " a"]:
    """Share of each adapter's squared length that k directions hold, |V B'|² / |V|²; in 0..1.

    Example:
        >>> kept_share(np.array([[3.0, 4.0]]), np.array([[1.0, 0.0]])).round(4).tolist()
        [0.36]
    """
    lengths = np.square(vectors, dtype=np.float64).sum(axis=1)
    kept = np.square(coefficients(vectors, directions), dtype=np.float64).sum(axis=1)
    return np.divide(kept, lengths, out=np.zeros(len(vectors)), where=lengths > 0)


def _offsets(tensors: Mapping[str, Any]) -> Sequence[str]:
    return sorted(name for name in tensors if layer_of(name) is not None)
