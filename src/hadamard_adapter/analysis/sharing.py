"""Shared adapters: the mean of other tasks' adapters, and a basis of k directions with k numbers per task.

Source: Chen et al., 2023, arXiv 2407.11033, section 6 (patterns shared over tasks suggest shared adapters).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hadamard_adapter.analysis.offsets import flat, layer_of, read_offsets
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.tuning.folder import read_task

__all__ = [
    "as_tensors",
    "basis",
    "coefficients",
    "kept_share",
    "mean_of_others",
    "share_of_unseen",
    "sharing_of_folders",
    "sharing_picture",
    "vector_of",
]

SIZES = (1, 2, 4, 16)
"""Numbers of directions that are tried, as far as there are adapters."""


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
    _, _, directions = np.linalg.svd(np.asarray(vectors, dtype=np.float64), full_matrices=False)
    rank = _rank(vectors)
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


def share_of_unseen(
    vectors: Float[np.ndarray, "a n"], tasks: Sequence[str], k: int
) -> Float[np.ndarray, " a"]:
    """Share of each adapter's squared length that a basis of the other tasks' adapters holds.

    The adapter's own task had no part in the basis, under any seed. NaN where the other tasks have fewer
    than k independent adapters.

    Example:
        >>> share_of_unseen(np.array([[1.0, 1.0], [0.0, 2.0]]), ["a", "b"], 1).round(4).tolist()
        [0.5, 0.5]
    """
    found = np.full(len(vectors), np.nan)
    for index, task in enumerate(tasks):
        others = vectors[[other != task for other in tasks]]
        if k <= _rank(others):
            found[index] = kept_share(vectors[index : index + 1], basis(others, k))[0]
    return found


def sharing_of_folders(folders: Sequence[str]) -> dict[str, Any]:
    """How much of each adapter a shared basis holds: with the adapter in it, and without its task.

    Args:
        folders: two or more, of one base model and one set of sites.

    Raises:
        AdapterError: as `read_offsets`.
        SettingsError: fewer than two adapters, or of one task only.
    """
    tasks = [read_task(folder).name for folder in folders]
    if len(set(tasks)) < 2:
        raise SettingsError(f"expected adapters of two tasks or more, received {tasks!r}")
    vectors = flat(read_offsets(folders))
    sizes = [k for k in SIZES if k <= _rank(vectors)]
    unseen = {k: share_of_unseen(vectors, tasks, k) for k in sizes}
    return {
        "adapters": [Path(folder).name for folder in folders],
        "tasks": tasks,
        "offsets": vectors.shape[1],
        "in_basis": {str(k): kept_share(vectors, basis(vectors, k)).round(4).tolist() for k in sizes},
        "task_left_out": {
            str(k): shares.round(4).tolist() for k, shares in unseen.items() if not np.isnan(shares).any()
        },
    }


def sharing_picture(found: Mapping[str, Any]) -> Any:
    """A figure: share of the adapters' squared length against the number of directions.

    Args:
        found: of `sharing_of_folders`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    titles = {"in_basis": "adapters of the basis", "task_left_out": "tasks that had no part in it"}
    for index, (name, title) in enumerate(titles.items()):
        sizes = [int(k) for k in found[name]]
        shares = np.array(list(found[name].values()))
        axes.plot(sizes, shares, ".", color=f"C{index}", alpha=0.4)
        axes.plot(sizes, shares.mean(axis=1), "-", color=f"C{index}", label=title)
    axes.set_xticks([int(k) for k in found["in_basis"]])
    axes.set(xlabel="directions, k", ylabel="share of the squared length", ylim=(0, 1.02))
    axes.legend()
    return figure


def _rank(vectors: Float[np.ndarray, "a n"]) -> int:
    """Number of independent adapters."""
    if not len(vectors):
        return 0
    s = np.linalg.svd(np.asarray(vectors, dtype=np.float64), compute_uv=False)
    return int((s > 1e-9 * s[0]).sum())


def _offsets(tensors: Mapping[str, Any]) -> Sequence[str]:
    return sorted(name for name in tensors if layer_of(name) is not None)
