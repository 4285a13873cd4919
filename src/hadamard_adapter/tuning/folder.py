"""What an adapter's folder says of itself, checked: its config, its task, its columns."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hadamard_adapter.adapter import HadamardConfig
from hadamard_adapter.errors import AdapterError
from hadamard_adapter.files import expanded
from hadamard_adapter.tasks import METRICS, PROBLEM_TYPES, Columns, Task, choose_metrics
from hadamard_adapter.tuning.weights import WEIGHTS, check_readable

__all__ = ["MEAN", "Run", "damaged", "read_config", "read_run", "read_task", "task_of"]

MEAN = "shared.json"
"""Stands in a folder of `hadamard share mean` alone."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

T = TypeVar("T", Task, Columns)


@dataclass(frozen=True)
class Run:
    """What run.json says; None or empty where it does not."""

    task: Task | None = None
    """Kind, labels, threshold."""
    columns: Columns | None = None
    """Names of the columns in training."""
    max_length: int | None = None
    """Tokens after which a text was cut."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Those of `hadamard tune`, by name."""
    rows: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """How many, by the part of the data."""


def read_config(folder: Path) -> HadamardConfig:
    """The adapter's config, after a look at which files there are.

    Raises:
        AdapterError: the folder holds no Hadamard adapter, or one in a pickle file, or cannot be read.
    """
    path = folder / "adapter_config.json"
    found = _read_object(path)
    if found is None:
        raise AdapterError(
            f"no adapter in {str(folder)!r}: expected a folder that hadamard tune made, with "
            f"adapter_config.json and {WEIGHTS}"
        )
    if found.get("peft_type") != "HADAMARD":
        raise AdapterError(
            f"{str(folder)!r}: expected an adapter of type 'HADAMARD', received {found.get('peft_type')!r}; "
            "load it with PEFT"
        )
    if not (folder / WEIGHTS).is_file():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        why = (
            f"only {pickles[0]!r}, a pickle file, which can run code and is refused"
            if pickles
            else "no tensors"
        )
        raise AdapterError(f"{str(folder)!r} holds {why}; expected {WEIGHTS}")
    try:
        config: Any = HadamardConfig.from_pretrained(str(folder))
        return config
    except (TypeError, ValueError, AttributeError) as error:
        raise damaged(path, error) from error


def read_run(folder: Path) -> Run:
    """What run.json says; nothing where there is no such file. Keys that are not known are left alone.

    Raises:
        AdapterError: the file is damaged.
    """
    path = folder / "run.json"
    found = _read_object(path) or {}
    try:
        task = _made_of(Task, found["task"]) if "task" in found else None
        columns = _made_of(Columns, found["columns"]) if "columns" in found else None
        max_length = found.get("max_length")
        if task is not None:
            _check_task(task)
        if max_length is not None and (type(max_length) is not int or max_length < 2):
            raise ValueError(f"max_length is {max_length!r}")
        settings, rows = (_object(name, found.get(name, {})) for name in ("settings", "rows"))
    except (TypeError, ValueError) as error:
        raise damaged(path, error) from error
    return Run(task, columns, max_length, settings, rows)


def task_of(folder: Path, config: HadamardConfig, run: Run) -> Task:
    """The task from run.json; for an adapter made by other means, from its config.

    Raises:
        AdapterError: neither names the labels, two have one name, or the adapter labels no texts: it is of
            another type of task, or a regression of several numbers.
    """
    if run.task is not None:
        return run.task
    of_type = getattr(config.task_type, "value", config.task_type)
    if of_type not in (None, "SEQ_CLS"):
        raise AdapterError(
            f"{str(folder)!r}: expected an adapter that labels texts (task_type SEQ_CLS), received "
            f"{of_type}; load it with PEFT"
        )
    if not config.id2label:
        raise AdapterError(
            f"{str(folder)!r} has no label names (no run.json, no id2label); expected id2label in "
            "adapter_config.json: set it there"
        )
    names = tuple(name for _, name in sorted(config.id2label.items()))
    kind = config.problem_type or ("single_label_classification" if len(names) > 1 else "regression")
    if kind == "regression":
        if len(names) > 1:
            raise AdapterError(
                f"{str(folder)!r}: expected one number a text, received a regression of {len(names)}; "
                "load it with PEFT"
            )
        names = ()
    elif len(set(names)) < len(names):
        raise AdapterError(
            f"{str(folder)!r}: expected labels with names that differ, received {list(names)}; name them "
            "apart in its adapter_config.json, under id2label"
        )
    return Task(folder.name, kind, names, choose_metrics(kind, len(names)))


def read_task(folder: str | Path) -> Task:
    """The task of the adapter in a folder; no model is loaded.

    Raises:
        AdapterError: as `read_config`, `read_run` and `task_of`.

    Example:
        >>> read_task("out").label_names  # doctest: +SKIP
        ('negative', 'positive')
    """
    place = expanded(folder)
    return task_of(place, read_config(place), read_run(place))


def damaged(path: Path, error: Exception) -> AdapterError:
    """The error for a file that does not hold what it must."""
    return AdapterError(f"{str(path)!r} is damaged: {error}; copy it again, or tune again")


def _read_object(path: Path) -> dict[str, Any] | None:
    """Content of a JSON file that holds an object; None where there is no file."""
    if not check_readable(path):
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(path, error) from error
    if not isinstance(found, dict):
        raise damaged(path, ValueError(f"expected an object, received {found!r:.40}"))
    return found


def _made_of(kind: type[T], found: Any) -> T:
    """A dataclass from those keys of a JSON object that it knows; lists become tuples."""
    names = {field.name for field in dataclasses.fields(kind)}
    known: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in _object(kind.__name__, found).items()
        if key in names
    }
    return kind(**known)


def _object(name: str, found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise TypeError(f"expected an object for {name}, received {found!r:.40}")
    return found


def _check_task(task: Task) -> None:
    is_whole = (
        task.problem_type in PROBLEM_TYPES
        and _are_words(task.label_names)
        and len(set(task.label_names)) == len(task.label_names)
        and _are_words(task.metrics)
        and bool(task.metrics)
        and set(task.metrics) <= METRICS.keys()
        and isinstance(task.threshold, float)
        and _are_words((task.separator,))
    )
    if not is_whole:
        raise ValueError(f"expected a task, received {task!r:.200}")


def _are_words(found: Any) -> bool:
    """Whether it is a tuple of strings; UnicodeEncodeError where one holds half a character."""
    if not isinstance(found, tuple) or not all(isinstance(word, str) for word in found):
        return False
    "".join(found).encode()
    return True
