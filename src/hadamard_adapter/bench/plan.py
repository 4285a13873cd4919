"""What a spec comes to, given what ran: the runs that are due now, how many are left, and for how long."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from hadamard_adapter.bench.results import is_over
from hadamard_adapter.bench.rows import read_rows
from hadamard_adapter.bench.run import Run, name_of, work_of
from hadamard_adapter.bench.search import Quality, best_rate, fewest_epochs, next_rates
from hadamard_adapter.bench.spec import Spec, TaskSpec, model_name
from hadamard_adapter.methods import METHODS, is_fit
from hadamard_adapter.tasks import METRICS

__all__ = [
    "Cell",
    "Records",
    "Traits",
    "cells_of",
    "due",
    "estimated",
    "quality_of",
    "state_of",
    "total_estimate",
    "total_seconds",
]

Records = Mapping[str, Mapping[str, Any]]
"""Name of a run -> its record."""

Traits = tuple[tuple[Any, ...], ...]
"""What a run shares with runs that take as long: with the likest ones first, with ever more of them."""


@dataclass(frozen=True)
class Cell:
    """A model, a task and a method of a spec: a search, then a run for each seed."""

    spec: Spec
    """What it belongs to."""
    model: str
    """Folder or name on the hub."""
    task: TaskSpec
    """What is learned."""
    method: str
    """Name in the table of methods."""

    @property
    def n_seeds(self) -> int:
        """Those of the spec; 1 for a fit, which draws nothing."""
        return 1 if is_fit(self.method) else self.spec.seeds

    def run(self, purpose: str, epochs: int | None, lr: float, seed: int) -> Run:
        """A run of this cell."""
        spec, is_search = self.spec, purpose == "search"
        return Run(
            purpose="search" if is_search else "score",
            model=self.model,
            task=dataclasses.replace(
                self.task,
                epochs=epochs,
                search_epochs=() if is_search else self.task.search_epochs,
                expected={},
            ),
            data=spec.data,
            method=self.method,
            lr=lr,
            seed=seed,
            select=spec.select,
            bf16=spec.bf16,
            optimizer=spec.optimizer,
            order=spec.order,
            dropout=spec.dropout,
            search_rows=spec.search.rows if is_search and spec.search is not None else None,
        )


@dataclass(frozen=True)
class _State:
    """How far a cell is."""

    finished: tuple[str, ...]
    """Names of the runs that are over."""
    due: tuple[Run, ...]
    """Runs that can start now."""
    later: tuple[Run, ...]
    """Runs that wait for the search, at the published rate and the most epochs, for an estimate of time."""
    lr: float | None
    """The learning rate that was found or published; None: the search is not over, or all of it failed."""
    epochs: int | None
    """The task's epochs, or those that were found; None: by the number of rows, or not found."""

    def left(self, purpose: str) -> list[Run]:
        """Runs to come, of one purpose or of all."""
        return [run for run in (*self.due, *self.later) if purpose in ("all", run.purpose)]


def cells_of(spec: Spec) -> list[Cell]:
    """All cells, model by model, task by task, in the order of the methods."""
    return [
        Cell(spec, model, task, method)
        for model in spec.models
        for task in spec.tasks
        for method in spec.methods
    ]


def state_of(cell: Cell, records: Records) -> _State:
    """How far a cell is; a cancelled run counts as not done.

    Args:
        cell: which one.
        records: what ran, of any spec.
    """
    method, seeds, finished = METHODS[cell.method], range(cell.n_seeds), list[str]()
    lr: float | None = method.lr
    epochs = cell.task.epochs
    if cell.spec.search is not None:
        searches = {tried: _searched(cell, tried, records) for tried in cell.task.search_epochs or (epochs,)}
        finished = [name for names, _, _ in searches.values() for name in names]
        due_now = [run for _, runs, _ in searches.values() for run in runs]
        by_epochs = {tried: found for tried, (_, _, found) in searches.items()}
        if due_now:
            most = max(cell.task.search_epochs, default=epochs)
            later = [cell.run("score", most, method.lr, seed) for seed in seeds]
            return _State(tuple(finished), tuple(due_now), tuple(later), None, None)
        if cell.task.search_epochs:
            epochs = fewest_epochs({tried: found for tried, found in by_epochs.items() if tried is not None})
        lr = best_rate(by_epochs[epochs]) if epochs in by_epochs else None
        if lr is None:
            return _State(tuple(finished), (), (), None, None)
    runs = [cell.run("score", epochs, lr, seed) for seed in seeds]
    over, left = _parted(runs, records)
    return _State((*finished, *over), tuple(left), (), lr, epochs)


def _searched(
    cell: Cell, epochs: int | None, records: Records
) -> tuple[list[str], list[Run], dict[float, Quality | None]]:
    """A search at a number of epochs: names of runs that are over, runs due, and what each rate came to."""
    search, finished, found = cell.spec.search, list[str](), dict[float, Quality | None]()
    assert search is not None, "a search has a size"
    sign = _sign(cell.task, cell.spec.data)
    while rates := next_rates(METHODS[cell.method].grid, found, search.extensions):
        runs = [cell.run("search", epochs, rate, seed=0) for rate in rates]
        over, left = _parted(runs, records)
        finished += over
        if left:
            return finished, left, found
        found |= {run.lr: quality_of(records[name_of(run)], sign) for run in runs}
    return finished, [], found


def _parted(runs: Iterable[Run], records: Records) -> tuple[list[str], list[Run]]:
    """Names of the runs that are over, and the runs that are not."""
    names = {name_of(run): run for run in runs}
    over = [name for name in names if is_over(records.get(name))]
    return over, [run for name, run in names.items() if name not in over]


def due(spec: Spec, records: Records) -> list[Run]:
    """All runs that can start now, those of a search first in each cell."""
    return [run for cell in cells_of(spec) for run in state_of(cell, records).due]


def total_seconds(runs: Iterable[Run], records: Records) -> tuple[float, int]:
    """Estimated seconds of those runs that have an estimate, and the number of those that have none.

    A run takes what runs of the same model, method and task took; where there are none, or all are far
    shorter, those of the same model and method; else those of the same model; a fit without a model is none
    of these. Runs of the same precision first, of another only where there are none.

    Args:
        runs: to come.
        records: what ran, of any spec.
    """
    wanted = [(work_of(run), _likest_first(run.model, run.method, run.task.name, run.bf16)) for run in runs]
    ran = [
        (
            (record["work"], record["seconds"]),
            _likest_first(run["model"], run["method"], run["task"]["name"], bool(run.get("bf16"))),
        )
        for record in records.values()
        if record["status"] == "done" and record.get("work") is not None and not record.get("is_resumed")
        for run in [record["run"]]
    ]
    return total_estimate(wanted, ran)


def _likest_first(model: str, method: str, task: str, bf16: bool) -> Traits:
    own = (model_name(model), is_fit(method))
    traits = ((*own, method, task), (*own, method), own)
    return tuple((*trait, f"bf16 {bf16}") for trait in traits) + traits


def total_estimate(
    wanted: Iterable[tuple[float, Traits]], ran: Iterable[tuple[tuple[float, float], Traits]]
) -> tuple[float, int]:
    """The sum of the estimates that there are, and the number of runs that have none.

    Args:
        wanted: work of each run to come, and its traits.
        ran: (work, seconds) of each run that is over, and its traits.
    """
    groups: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for cost, traits in ran:
        for trait in traits:
            groups.setdefault(trait, []).append(cost)
    found = [estimated(work, [groups.get(trait, []) for trait in traits]) for work, traits in wanted]
    return sum(seconds for seconds in found if seconds is not None), found.count(None)


def estimated(work: float, groups: Iterable[list[tuple[float, float]]]) -> float | None:
    """Seconds that some work takes: a fixed part and a part for each row.

    seconds = a + b work, with a, b >= 0 of the least squares of the logarithm over what ran. A start, a
    model's loading and an evaluation cost the same for few rows as for many: the pace of short runs alone,
    times the work of a long one, would count them again and again. Runs of one length alone give that pace.

    Args:
        work: rows that go through the model, summed over epochs.
        groups: (work, seconds) of what ran, the likest group first. The first one counts that has a run of
            at least a quarter of this work; if none has, the first one that is not empty.

    Returns:
        The estimate; None if nothing ran.

    Example:
        >>> round(estimated(1000, [[(100, 30.0), (500, 70.0)]]))
        120
    """
    ran = [group for group in groups if group]
    if not ran:
        return None
    likest = next((group for group in ran if max(own for own, _ in group) >= work / 4), ran[0])
    fixed, per_row = _line(tuple(likest))
    return fixed + per_row * work


@functools.cache  # asked for every run of a plan, at every turn of the board
def _line(costs: tuple[tuple[float, float], ...]) -> tuple[float, float]:
    """The a and b of `estimated`."""
    works, seconds = np.array(costs, dtype=float).clip(min=0.01).T  # a record's seconds are rounded
    pace = float(np.median(seconds / works))
    if works.max() < 2 * works.min():
        return 0.0, pace  # runs of one length do not tell the parts from each other
    start = np.array([seconds.min() / 2, pace])

    def error(parts: np.ndarray) -> np.ndarray:
        return np.log(parts[0] + parts[1] * works) - np.log(seconds)

    fixed, per_row = least_squares(error, start, bounds=(1e-9, np.inf), x_scale=start, loss="soft_l1").x
    return float(fixed), float(per_row)


def quality_of(record: Mapping[str, Any], sign: int) -> Quality | None:
    """What a search ranks a run by; None if it failed.

    Args:
        record: of a finished run.
        sign: 1 where a greater score is better, else -1.
    """
    if record["status"] != "done":
        return None
    return sign * record["score"], -record["best"]["dev_loss"]


@functools.cache
def _sign(task: TaskSpec, data: str) -> int:
    """1 where a greater score of the task is better, else -1; known after one reading of its rows."""
    return METRICS[read_rows(task, data).task.metrics[0]].sign
