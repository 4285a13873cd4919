"""Tuning patterns: what scale and shift become by layer, and how alike they are over tasks and seeds.

Source: Chen et al., 2023, arXiv 2407.11033, section 5 (tuning patterns over layers and tasks).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from hadamard_adapter.analysis.offsets import flat, mean_of_pairs, read_offsets, tasks_of
from hadamard_adapter.analysis.pictures import without_mathtext
from hadamard_adapter.errors import SettingsError

__all__ = ["patterns_of_folders", "patterns_picture", "principal_components"]


def _rms_by_layer(offsets: Float[np.ndarray, "a l d"]) -> Float[np.ndarray, "a l"]:
    """Size of the offsets of each layer, sqrt(mean over d of offset²).

    Example:
        >>> _rms_by_layer(np.array([[[3.0, 4.0], [0.0, 0.0]]])).round(4).tolist()
        [[3.5355, 0.0]]
    """
    return np.sqrt(np.square(offsets, dtype=np.float64).mean(axis=-1))


def principal_components(
    vectors: Float[np.ndarray, "a n"],
) -> tuple[Float[np.ndarray, "a k"], Float[np.ndarray, " k"]]:
    """Coordinates of the a vectors on their principal axes, and each axis's share of the variance.

    X - mean = U S V'; coordinates U S, shares S² / sum(S²), k = a - 1 axes. The sign of an axis is such
    that its largest coordinate is positive. All shares are 0 where the vectors are equal.

    Example:
        >>> coordinates, shares = principal_components(np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]))
        >>> np.abs(coordinates[:, 0]).round(6).tolist(), shares.round(6).tolist()
        ([5.0, 0.0, 5.0], [1.0, 0.0])
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    n_axes = min(len(vectors) - 1, len(s))
    coordinates = (u * s)[:, :n_axes]
    largest = np.abs(coordinates).argmax(axis=0)
    signs = np.where(coordinates[largest, np.arange(n_axes)] < 0, -1.0, 1.0)
    total = np.square(s).sum()
    shares = np.square(s[:n_axes]) / total if total > 0 else np.zeros(n_axes)
    return coordinates * signs, shares


def patterns_of_folders(folders: Sequence[str]) -> dict[str, Any]:
    """The patterns of adapters in folders, as lists of numbers that a JSON file can hold.

    Offsets are compared, since that is what tuning did; the scales themselves (1 + offset) beside them,
    since that is what the paper shows. Cosines are split into pairs of one task (other seeds or data) and
    pairs of different tasks, which `tasks_of` tells apart.

    Args:
        folders: two or more, of one base model.

    Raises:
        AdapterError: as `read_offsets`.
        SettingsError: fewer than two adapters.

    Example:
        >>> patterns_of_folders(["cola-0", "cola-1", "rte-0"])["within_task"]  # doctest: +SKIP
        {'scale attention.output.dense': 0.41, ...}
    """
    if len(folders) < 2:
        raise SettingsError(f"expected two adapters or more to compare, received {list(folders)!r}")
    from sklearn.metrics.pairwise import cosine_similarity

    table = read_offsets(folders)
    tasks = tasks_of(folders)
    vectors = {kind: array.reshape(len(array), -1) for kind, array in table.items()}
    scales = {f"1 + {kind}": 1 + array for kind, array in vectors.items() if kind.startswith("scale ")}
    compared = vectors | scales | {"all offsets": flat(table)}
    similar = {kind: cosine_similarity(array.astype(np.float64)) for kind, array in compared.items()}
    pairs = {kind: mean_of_pairs(matrix, tasks) for kind, matrix in similar.items()}
    coordinates, shares = principal_components(flat(table))
    by_layer = {
        kind: {
            "mean": _rounded(array.mean(axis=-1)),
            "sd": _rounded(array.std(axis=-1)),
            "rms": _rounded(_rms_by_layer(array)),
        }
        for kind, array in table.items()
    }
    return {
        "adapters": [Path(folder).name for folder in folders],
        "tasks": tasks,
        "by_layer": by_layer,
        "cosine": {kind: _rounded(matrix) for kind, matrix in similar.items()},
        "within_task": {kind: means["within_task"] for kind, means in pairs.items()},
        "between_tasks": {kind: means["between_tasks"] for kind, means in pairs.items()},
        "components": {"coordinates": _rounded(coordinates), "variance_share": _rounded(shares)},
    }


def patterns_picture(found: Mapping[str, Any]) -> Any:
    """A figure: each kind's size by layer (a line an adapter), its cosines, and the first two components.

    Args:
        found: of `patterns_of_folders`.
    """
    from matplotlib.figure import Figure

    names, tasks = found["adapters"], found["tasks"]
    colors = {task: f"C{index % 10}" for index, task in enumerate(dict.fromkeys(tasks))}
    kinds = list(found["by_layer"])
    figure = Figure(figsize=(3.1 * (len(kinds) + 1), 5.6), layout="constrained")
    axes = figure.subplots(2, len(kinds) + 1)
    for column, kind in enumerate(kinds):
        upper, lower = axes[:, column]
        for name, task, values in zip(names, tasks, found["by_layer"][kind]["rms"], strict=True):
            upper.plot(values, marker=".", color=colors[task], label=without_mathtext(name))
        word, _, path = kind.partition(" ")
        of_several = sum(other.startswith(f"{word} ") for other in kinds) > 1
        title = word.replace("_", " ") + (f"\n{path}" if of_several else "")
        upper.set_title(without_mathtext(title), fontsize="medium" if of_several else None)
        upper.set(xlabel="layer", ylim=(0, None))
        if not column:
            upper.set_ylabel("rms of offsets")
        _cosine_map(lower, found["cosine"][kind], names if not column else [""] * len(names))
    points, shares = np.array(found["components"]["coordinates"]), found["components"]["variance_share"]
    second = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
    for task, color in colors.items():
        own = [index for index, other in enumerate(tasks) if other == task]
        label = without_mathtext(task)
        axes[0, -1].plot(points[own, 0], second[own], "o", color=color, label=label, alpha=0.7)
    axes[0, -1].legend(fontsize=7)
    share = [f"{100 * value:.0f} %" for value in [*shares, 0.0][:2]]
    axes[0, -1].set(title="principal components", xlabel=share[0], ylabel=share[1])
    axes[0, -1].margins(0.2)
    image = _cosine_map(axes[1, -1], found["cosine"]["all offsets"], [""] * len(names))
    axes[1, -1].set_title("all offsets", fontsize=9)
    figure.colorbar(image, ax=axes[1, -1], label="cosine")
    return figure


def _cosine_map(axes: Any, matrix: Any, names: Sequence[str]) -> Any:
    image = axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
    axes.set_yticks(range(len(names)), [without_mathtext(name) for name in names], fontsize=7)
    axes.set_xticks([])
    return image


def _rounded(values: Float[np.ndarray, "..."]) -> Any:
    return np.round(values.astype(np.float64), 4).tolist()
