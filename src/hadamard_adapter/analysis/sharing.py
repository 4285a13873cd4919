"""Shared adapters: the mean of other tasks' adapters, and a basis of k directions with k numbers per task.

Source: Chen et al., 2023, arXiv 2407.11033, section 6 (patterns shared over tasks suggest shared adapters).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from hadamard_adapter.analysis.offsets import flat, read_offsets, tasks_of
from hadamard_adapter.errors import AdapterError, SettingsError
from hadamard_adapter.files import expanded, filled, write_json
from hadamard_adapter.offset_name import split
from hadamard_adapter.tuning.folder import MEAN, read_config
from hadamard_adapter.tuning.places import refuse_no_place, refuse_taken
from hadamard_adapter.tuning.shared import Basis, write_basis
from hadamard_adapter.tuning.weights import WEIGHTS, read_weights

__all__ = [
    "as_tensors",
    "basis",
    "coefficients",
    "kept_share",
    "save_basis",
    "save_mean",
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
    return np.concatenate([tensors[name].float().numpy().ravel() for name in sorted(split(tensors)[0])])


def as_tensors(vector: Float[np.ndarray, " n"], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's tensors with a vector's offsets; names, shapes and the head are those of another.

    Raises:
        SettingsError: the vector has another length than the offsets.
    """
    names = sorted(split(like)[0])
    sizes = [like[name].numel() for name in names]
    if sum(sizes) != len(vector):
        raise SettingsError(f"expected {sum(sizes)} offsets, received {len(vector)}; another kind of adapter")
    parts = np.split(np.asarray(vector, dtype=np.float32), np.cumsum(sizes)[:-1])
    made = {
        name: torch.from_numpy(part.copy()).reshape(like[name].shape)
        for name, part in zip(names, parts, strict=True)
    }
    return {**like, **made}


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
            f"--directions: expected 1 to {rank}, the number of independent adapters, received {k!r}; ask "
            "for so many, or give more adapters"
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


def save_mean(folders: Sequence[str], output: Path) -> None:
    """Write the mean of adapters' offsets as an adapter without a head, for `start` of `tune`.

    Args:
        folders: of adapters of one base model, with the same sites, layers and norms.
        output: new folder.

    Raises:
        AdapterError: as `read_offsets`, or the adapters differ in what they adapt.
        SettingsError: the output is there already, or cannot be made.
    """
    refuse_taken(output)
    adapters = _alike(folders)
    mean = as_tensors(np.mean([vector_of(tensors) for tensors in adapters], axis=0), adapters[0])
    with filled(output) as folder:
        read_config(expanded(folders[0])).save_pretrained(str(folder))
        save_file(mean, folder / WEIGHTS, metadata={"format": "pt"})
        write_json(folder / MEAN, {"mean_of": [Path(source).name for source in folders]})


def save_basis(folders: Sequence[str], k: int, output: Path) -> Float[np.ndarray, " a"]:
    """Write the k directions that hold most of the adapters, for `basis` of `tune`.

    Each direction is as long as the adapters are on average (root mean square), so that a coefficient of 1
    goes as far as they go. Returns the share of each adapter's squared length that they hold.

    Args:
        folders: of adapters of one base model, with the same sites, layers and norms.
        k: number of directions.
        output: file to be written, *.safetensors.

    Raises:
        AdapterError: as `read_offsets`, or the adapters differ in what they adapt.
        SettingsError: k is not within 1 and the number of independent adapters, or the file cannot be made.
    """
    refuse_no_place("output", output.absolute())
    if output.suffix != ".safetensors" or output.exists():
        why = "is there already" if output.exists() else "does not end in .safetensors"
        raise SettingsError(f"output {str(output)!r} {why}; choose another name")
    adapters = _alike(folders)
    vectors = np.stack([vector_of(tensors) for tensors in adapters])
    directions = basis(vectors, k)
    length = np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1).mean())
    parts = [as_tensors(length * direction, adapters[0]) for direction in directions]
    stacked = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    config, names = read_config(expanded(folders[0])), tuple(Path(folder).name for folder in folders)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_basis(output, Basis(stacked, config.base_fingerprint or "", names, config.position))
    return kept_share(vectors, directions)


def sharing_of_folders(folders: Sequence[str]) -> dict[str, Any]:
    """How much of each adapter a shared basis holds: with the adapter in it, and without its task.

    Args:
        folders: two or more, of one base model and one set of sites.

    Raises:
        AdapterError: as `read_offsets`.
        SettingsError: fewer than two adapters, or of one task only.
    """
    tasks = tasks_of(folders)
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
        if not sizes:  # all of the adapters are zero, or all but one
            continue
        shares = np.array(list(found[name].values()))
        axes.plot(sizes, shares, ".", color=f"C{index}", alpha=0.4)
        axes.plot(sizes, shares.mean(axis=1), "-", color=f"C{index}", label=title)
    axes.set_xticks([int(k) for k in found["in_basis"]])
    axes.set(xlabel="directions, k", ylabel="share of the squared length", ylim=(0, 1.02))
    if axes.lines:
        axes.legend()
    return figure


def _alike(folders: Sequence[str]) -> list[dict[str, Tensor]]:
    """The offsets of adapters that adapt the same things of one base model."""
    read_offsets(folders)  # refuses other base models
    adapters = [split(read_weights(expanded(folder) / WEIGHTS))[0] for folder in folders]
    positions = [read_config(expanded(folder)).position for folder in folders]
    for folder, tensors, position in zip(folders, adapters, positions, strict=True):
        if position != positions[0]:
            raise AdapterError(
                f"expected adapters with the same position, received {folders[0]!r} ({positions[0]}) and "
                f"{folder!r} ({position}); leave one out"
            )
        differing = sorted(tensors.keys() ^ adapters[0].keys())
        if differing:
            raise AdapterError(
                f"expected adapters with the same sites, layers and norms, received {folders[0]!r} and "
                f"{folder!r}: only one of them has {differing[0]}; leave one out"
            )
    return adapters


def _rank(vectors: Float[np.ndarray, "a n"]) -> int:
    """Number of independent adapters."""
    if not len(vectors):
        return 0
    s = np.linalg.svd(np.asarray(vectors, dtype=np.float64), compute_uv=False)
    return int((s > 1e-9 * s[0]).sum())
