"""Adapters as arrays: the offsets of one or several folders, by kind and layer; a layer left out is zeros."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hadamard_adapter.errors import AdapterError
from hadamard_adapter.files import expanded
from hadamard_adapter.offset_name import KINDS, offset_name
from hadamard_adapter.tuning.folder import damaged, read_config, read_run
from hadamard_adapter.tuning.weights import WEIGHTS, read_weights

__all__ = [
    "flat",
    "layer_of",
    "made_with",
    "mean_of_pairs",
    "read_offsets",
    "refuse_two_bases",
    "stacked",
    "tasks_of",
]


def layer_of(name: str) -> int | None:
    """The layer of a tensor of an adapter's file, from 0; None for the head, or outside a list of layers.

    Example:
        >>> layer_of("base_model.model.bert.encoder.layer.3.attention.output.dense.hadamard_scale")
        3
    """
    found = offset_name(name)
    return None if found is None else found.layer


def read_offsets(folders: Sequence[str | Path]) -> dict[str, Float[np.ndarray, "a l d"]]:
    """Kind and module -> offsets from the identity (a, l, d), float32, of adapters of one base model.

    Layers count from 0 to the highest that any of them adapts.

    Args:
        folders: a of them, made by `hadamard tune`.

    Raises:
        AdapterError: a folder holds no Hadamard adapter, is damaged, or belongs to another base model.

    Example:
        >>> read_offsets(["cola", "rte"])["scale attention.output.dense"].shape  # doctest: +SKIP
        (2, 12, 768)
    """
    places = [expanded(folder) for folder in folders]
    refuse_two_bases(places)
    return stacked([read_weights(place / WEIGHTS) for place in places])


def refuse_two_bases(places: Sequence[Path]) -> None:
    """Refuse adapters that were not all tuned on one base model.

    Raises:
        AdapterError: a folder holds no Hadamard adapter, or belongs to another base model.
    """
    prints = [read_config(place).base_fingerprint for place in places]
    for place, found in zip(places, prints, strict=True):
        if found != prints[0]:
            raise AdapterError(
                f"expected adapters of one base model, received {str(places[0])!r} of {prints[0]!r} and "
                f"{str(place)!r} of {found!r}; leave one of them out"
            )


def stacked(adapters: Sequence[Mapping[str, Tensor]]) -> dict[str, Float[np.ndarray, "a l d"]]:
    """The same from the tensors of a adapters; kinds stand in the order scale, shift, norm.

    Raises:
        AdapterError: a vector has one length in one adapter, another in another.

    Example:
        >>> import torch
        >>> name = "base_model.model.bert.encoder.layer.1.output.dense.hadamard_shift"
        >>> stacked([{name: torch.ones(2)}, {}])["shift output.dense"].tolist()
        [[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]
    """
    found: dict[tuple[str, str, str], dict[tuple[int, int], np.ndarray]] = {}
    for index, tensors in enumerate(adapters):
        for name, tensor in tensors.items():
            parts = offset_name(name)
            if parts is not None and parts.layer is not None:
                key = parts.kind, parts.path, parts.stack
                found.setdefault(key, {})[index, parts.layer] = tensor.float().numpy()
    stacks = {stack for _, _, stack in found}
    n_layers = 1 + max((layer for values in found.values() for _, layer in values), default=-1)
    table: dict[str, np.ndarray] = {}
    for kind, path, stack in sorted(found, key=lambda key: (KINDS.index(key[0]), *key[1:])):
        values = found[kind, path, stack]
        lengths = {len(value) for value in values.values()}
        if len(lengths) > 1:
            raise AdapterError(
                f"{kind} of {path}: expected one length, received {sorted(lengths)}; the adapters belong to "
                "different base models"
            )
        array = np.zeros((len(adapters), n_layers, lengths.pop()), dtype=np.float32)
        for (index, layer), value in values.items():
            array[index, layer] = value
        table[f"{kind} {path}" if len(stacks) == 1 else f"{kind} {stack}.*.{path}"] = array
    return table


def flat(table: Mapping[str, Float[np.ndarray, "a l d"]]) -> Float[np.ndarray, "a n"]:
    """All offsets of each adapter in one row, kind after kind, layer after layer.

    Example:
        >>> flat({"scale x": np.zeros((2, 3, 4)), "shift x": np.ones((2, 3, 4))}).shape
        (2, 24)
    """
    return np.concatenate([array.reshape(len(array), -1) for array in table.values()], axis=1)


def tasks_of(folders: Sequence[str | Path]) -> list[str]:
    """The task of each adapter: GLUE's name, or of own files the training file's and its folder's.

    Files that differ have names that differ, with as many folders as that takes (cola/data/train and
    rte/data/train). A path that is the end of another, as mood/train.csv is of /far/mood/train.csv, is the
    same file.

    Args:
        folders: made by `hadamard tune`; of one made by other means its own name counts.

    Raises:
        AdapterError: a run.json is damaged.
    """
    runs = [_run_of(expanded(folder)) for folder in folders]
    files = [file for _, file in runs]
    return [
        _told_apart(file, files) or made.get("task") or Path(folder).name
        for folder, (made, file) in zip(folders, runs, strict=True)
    ]


def mean_of_pairs(matrix: Float[np.ndarray, "a a"], tasks: Sequence[str]) -> dict[str, float | None]:
    """Mean of a symmetric matrix over pairs of adapters of one task, and over pairs of two tasks.

    None where there is no such pair. Adapters of one task differ in their seed, or in their rows.

    Example:
        >>> mean_of_pairs(np.array([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]]), ["a", "a", "b"])
        {'within_task': 0.8, 'between_tasks': 0.2}
    """
    first, second = np.triu_indices(len(tasks), k=1)
    same = np.array(
        [tasks[i] == tasks[j] for i, j in zip(first.tolist(), second.tolist(), strict=True)], bool
    )
    values = matrix[first, second]
    return {
        name: round(float(values[chosen].mean()), 4) if chosen.any() else None
        for name, chosen in (("within_task", same), ("between_tasks", ~same))
    }


def made_with(folder: str | Path) -> dict[str, Any]:
    """What an adapter was tuned with, from its run.json: task, rows, epochs, seed; empty where there is none.

    Example:
        >>> made_with("no/such/folder")
        {}
    """
    return _run_of(expanded(folder))[0]


def _run_of(folder: Path) -> tuple[dict[str, Any], Sequence[str]]:
    """What `made_with` tells, and the parts of an own training file's path; empty where there is none."""
    run = read_run(folder)
    if run.task is None:
        return {}, ()
    try:
        settings = {name: run.settings[name] for name in ("preset", "seed", "head_epochs", "epochs", "lr")}
        # `tune` calls all tasks of own files "task": their training file tells them apart.
        train = run.settings.get("train") if run.settings.get("task") is None else None
        file = () if train is None else Path(train).with_suffix("").as_posix().split("/")
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(folder / "run.json", ValueError(f"settings: {error!r}")) from error
    return {"task": "/".join(file[-2:]) or run.task.name, "rows": run.rows, **settings}, file


def _told_apart(file: Sequence[str], others: Sequence[Sequence[str]]) -> str:
    """The end of a path, of two parts at least, by which it differs from those that are another file's."""
    alike = (n for other in others if (n := _n_alike(file, other)) < min(len(file), len(other)))
    return "/".join(file[-max(2, 1 + max(alike, default=0)) :])


def _n_alike(file: Sequence[str], other: Sequence[str]) -> int:
    """How many parts of two paths are the same, counted from the end."""
    pairs = zip(reversed(file), reversed(other), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
