"""The rows of a task: a fixed part of train, what is held out of it, and dev."""

import dataclasses
import functools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from hadamard_adapter.bench.spec import OF_FILES, TaskSpec
from hadamard_adapter.errors import DataError
from hadamard_adapter.tasks import Columns, Examples, Task, stratified_split
from hadamard_adapter.tasks.reading import plural
from hadamard_adapter.tuning import TuneSettings
from hadamard_adapter.tuning.data import TuneData, read_data

__all__ = ["TaskRows", "cut", "files_of", "read_rows"]

SHARE_HELD_OUT, MAX_HELD_OUT = 0.1, 1000
N_LEAST = 20
"""Rows that must be left to train on."""
SEED = 0
"""Of every draw of rows: it is the same for all models, methods and seeds."""


@dataclass(frozen=True)
class TaskRows:
    """What there is of a task."""

    task: Task
    """Kind, labels, metrics."""
    columns: Columns
    """Names of the columns."""
    train: Examples
    """Rows to train on, without those held out."""
    held_out: Examples
    """A part of train, a tenth or what the spec says; it chooses learning rates, and epochs where asked."""
    dev: Examples
    """Rows that give scores."""
    notes: tuple[str, ...]
    """A line for each thing about the rows that may mislead."""

    def to_search(self, n_rows: int) -> TuneData:
        """The rows of a run of a search: dev is not among them."""
        return self._data(cut(self.train, n_rows), self.held_out, "rows held out of train")

    def to_score(self, select: str) -> TuneData:
        """The rows of a run whose score counts, and those that choose its epoch.

        Args:
            select: "held-out", or "dev" for the looser protocol, which trains on all of train.
        """
        if select == "held-out":
            return self._data(self.train, self.held_out, "rows held out of train")
        return self._data(_joined(self.train, self.held_out), self.dev, "dev")

    def _data(self, train: Examples, chooser: Examples, name: str) -> TuneData:
        how = f"{len(train)} training rows; {len(chooser)} {name} choose the epoch"
        return TuneData(self.task, self.columns, train, chooser, name, how)


def read_rows(spec: TaskSpec, data: str) -> TaskRows:
    """The rows of a task, drawn and split as every run of it has them.

    Args:
        spec: the task.
        data: folder of GLUE.

    Raises:
        DataError: a file or a row is not as it must be, or there are fewer rows than the task asks for.
    """
    drawn = {name: getattr(spec, name) for name in ("rows", "held_out", "train", "dev", *OF_FILES)}
    return _read(TaskSpec(spec.name, **drawn), data)


@functools.lru_cache(maxsize=8)
def _read(spec: TaskSpec, data: str) -> TaskRows:
    try:
        found = read_data(TuneSettings(model="none", output="none", **files_of(spec, data)))
    except DataError as error:  # a spec has keys where the command line of `tune` has options
        told = re.sub(rf"--({'|'.join(OF_FILES)})\b", r"`\1`", str(error))
        raise DataError(f"task {spec.name!r}: {told}") from error
    n_beside = spec.held_out or 0
    if n_beside and len(found.train) < n_beside + (spec.rows or N_LEAST):
        raise DataError(
            f"task {spec.name!r}: held_out: {n_beside} beside {spec.rows or N_LEAST} rows to train on, "
            f"received {plural(len(found.train), 'row')} in all; ask for fewer"
        )
    if spec.rows is not None and len(found.train) < spec.rows:
        raise DataError(
            f"task {spec.name!r}: rows: expected at most {len(found.train)}, what its train has, received "
            f"{spec.rows}; ask for fewer, or leave rows out to take all"
        )
    train = found.train if spec.rows is None else cut(found.train, spec.rows + n_beside)
    size = n_beside or min(SHARE_HELD_OUT, MAX_HELD_OUT / len(train))
    try:
        train, held_out = stratified_split(train, found.task, size, SEED)
    except DataError as error:
        raise DataError(
            f"task {spec.name!r}: {plural(len(train), 'row')} of train are too few to hold some out, on "
            "which rates and epochs are chosen; give more"
        ) from error
    if n_beside and len(held_out) != n_beside:
        raise DataError(
            f"task {spec.name!r}: held_out: expected {len(held_out)} or more, so that every class has a row "
            f"there, received {n_beside}; ask for more"
        )
    task = dataclasses.replace(found.task, name=spec.name)
    return TaskRows(task, found.columns, train, held_out, found.dev, found.notes)


def files_of(spec: TaskSpec, data: str) -> dict[str, Any]:
    """The settings of `tune` that name a task's files, and what they hold.

    Example:
        >>> files_of(TaskSpec("cola"), "glue")
        {'task': 'cola', 'data': 'glue'}
    """
    if spec.train is None:
        return {"task": spec.name, "data": data}
    return {name: getattr(spec, name) for name in ("train", "dev", *OF_FILES)}


def cut(examples: Examples, n_rows: int) -> Examples:
    """At most this many rows, drawn with seed 0, in their order.

    Example:
        >>> cut(Examples(list("abcdef")), 2).texts
        ['c', 'd']
    """
    if len(examples) <= n_rows:
        return examples
    return examples.take(sorted(np.random.default_rng(SEED).permutation(len(examples))[:n_rows].tolist()))


def _joined(one: Examples, other: Examples) -> Examples:
    pairs = None if one.pairs is None or other.pairs is None else [*one.pairs, *other.pairs]
    return Examples([*one.texts, *other.texts], pairs, [*(one.labels or []), *(other.labels or [])])
