"""All tasks of an experiment in one table: means by task, and their average against the baseline's."""

from collections.abc import Sequence
from dataclasses import dataclass

from hadamard_adapter.analysis.statistics import wilcoxon_p
from hadamard_adapter.analysis.table import Group, Row, row_of

__all__ = ["Overview", "OverviewRow", "overviews"]


@dataclass(frozen=True)
class OverviewRow:
    """A method on all tasks."""

    rows: tuple[Row | None, ...]
    """The method on each task; None where a task's table has no such row."""
    average: float | None
    """Of the means; None where a task of the experiment, or a seed of it, was not run or failed."""
    ratio_percent: float | None
    """Of the baseline's average; None where either is missing, or of other dev rows, metrics or models."""
    p: float | None
    """Wilcoxon's signed-rank test of the tasks' differences to the baseline."""

    @property
    def first(self) -> Row:
        """A row that was run, if there is one; it tells the method and what it trains."""
        there = [row for row in self.rows if row is not None]
        return next((row for row in there if row.n_trained is not None), there[0])

    @property
    def n_failed(self) -> int:
        """Seeds that failed, over the tasks."""
        return sum(len(row.failed) for row in self.rows if row is not None)

    @property
    def n_collapsed(self) -> int:
        """Seeds that predict one class or value, over the tasks."""
        return sum(len(row.collapsed) for row in self.rows if row is not None)


@dataclass(frozen=True)
class Overview:
    """A model under one protocol."""

    model: str
    """Its folder's name."""
    title: str
    """Of the specs that ask for these tasks; "all tasks" of some settings where no spec is kept."""
    select: str
    """What chose the epochs."""
    tasks: tuple[str, ...]
    """Task and metric."""
    rows: tuple[OverviewRow, ...]
    """Methods, in the order of the number of trained parameters."""
    baseline: str | None
    """Method that the others are compared with; None where the tasks' tables have none, or not the same."""


def overviews(groups: Sequence[Group]) -> list[Overview]:
    """One overview for each model and experiment with several tasks; specs of the same tasks share one.

    Args:
        groups: of `read_groups`.
    """
    by_title: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        alike = ", ".join(filter(None, ("all tasks", group.settings)))
        for title in group.specs or (alike,):
            by_title.setdefault((group.model, group.select, title), []).append(group)
    by_tasks: dict[tuple[str, str, tuple[str, ...]], tuple[list[str], list[Group]]] = {}
    for (model, select, title), members in by_title.items():
        key = model, select, tuple(group.task for group in members)
        by_tasks.setdefault(key, ([], members))[0].append(title)
    return [_overview(titles, members) for titles, members in by_tasks.values() if len(members) > 1]


def _overview(titles: Sequence[str], groups: Sequence[Group]) -> Overview:
    found: dict[str, list[Row | None]] = {}
    known = {group.baseline for group in groups if group.baseline is not None}
    baseline = known.pop() if len(known) == 1 else None
    for index, group in enumerate(groups):
        asked = {baseline, *(method for title in titles for method in group.specs.get(title, ()))}
        for method in dict.fromkeys(row.method for row in group.rows):
            row = row_of(group, method)  # one average is of one recipe
            if row is not None and (not group.specs or method in asked):
                found.setdefault(method, [None] * len(groups))[index] = row
    base = found.get(baseline or "", [None] * len(groups))
    # Neither an average of errors with scores nor a share of a baseline means anything.
    if any(group.is_error for group in groups):
        rows = [OverviewRow(tuple(rows), None, None, None) for rows in found.values()]
    else:
        rows = [_row(tuple(rows), base, is_base=method == baseline) for method, rows in found.items()]
    rows.sort(key=lambda row: (row.first.n_trained is None, row.first.n_trained))
    tasks = tuple(f"{group.task}: {group.score}" for group in groups)
    return Overview(groups[0].model, "; ".join(titles), groups[0].select, tasks, tuple(rows), baseline)


def _row(rows: tuple[Row | None, ...], base: Sequence[Row | None], is_base: bool) -> OverviewRow:
    is_beside = all(a is None or b is None or a.is_beside(b) for a, b in zip(rows, base, strict=True))
    average, of_base = _average(rows), _average(base) if is_beside else None
    both = zip(_means(rows), _means(base), strict=True)
    pairs = [(a, b) for a, b in both if a is not None and b is not None]
    has_both = average is not None and bool(of_base)
    return OverviewRow(
        rows=rows,
        average=average,
        ratio_percent=100 * average / of_base if average is not None and of_base else None,
        p=wilcoxon_p([a - b for a, b in pairs]) if has_both and not is_base else None,
    )


def _means(rows: Sequence[Row | None]) -> tuple[float | None, ...]:
    """Mean over seeds, a task each; None where nothing was run."""
    summaries = [None if row is None else row.summary for row in rows]
    return tuple(None if summary is None else summary.mean for summary in summaries)


def _average(rows: Sequence[Row | None]) -> float | None:
    """Over the tasks' means; None where a task lacks one, or a seed that a spec asks for, or one failed."""
    means = [mean for mean in _means(rows) if mean is not None]
    is_whole = all(row is not None and len(row.scores) >= row.n_asked and not row.failed for row in rows)
    return sum(means) / len(rows) if is_whole and len(means) == len(rows) else None
