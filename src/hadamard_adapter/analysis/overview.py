"""All tasks of an experiment in one table: means by task, and their average against full fine-tuning's."""

from collections.abc import Sequence
from dataclasses import dataclass

from hadamard_adapter.analysis.statistics import wilcoxon_p
from hadamard_adapter.analysis.table import BASELINE, Group, Row

__all__ = ["Overview", "OverviewRow", "overviews"]


@dataclass(frozen=True)
class OverviewRow:
    """A method on all tasks."""

    method: str
    """Name in the table of methods."""
    title: str
    """For readers."""
    n_trained: int | None
    """Parameters trained beside the head; None where nothing was run."""
    n_failed: int
    """Seeds that failed, over the tasks."""
    n_collapsed: int
    """Seeds that predict one class or value, over the tasks."""
    means: tuple[float | None, ...]
    """Mean over seeds, a task each; None where nothing was run."""
    average: float | None
    """Of the means; None where a task of the experiment is missing."""
    ratio_percent: float | None
    """Of full fine-tuning's average; None where either is missing."""
    p: float | None
    """Wilcoxon's signed-rank test of the tasks' differences to full fine-tuning."""


@dataclass(frozen=True)
class Overview:
    """A model under one protocol."""

    model: str
    """Its folder's name."""
    title: str
    """Of the specs that ask for these tasks; "all tasks" where no spec is kept."""
    select: str
    """What chose the epochs."""
    tasks: tuple[str, ...]
    """Task and metric."""
    rows: tuple[OverviewRow, ...]
    """Methods, in the order of the number of trained parameters."""


def overviews(groups: Sequence[Group]) -> list[Overview]:
    """One overview for each model and experiment with several tasks; specs of the same tasks share one.

    Args:
        groups: of `read_groups`.
    """
    by_title: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        for title in group.specs or ("all tasks",):
            by_title.setdefault((group.model, group.select, title), []).append(group)
    by_tasks: dict[tuple[str, str, tuple[str, ...]], tuple[list[str], list[Group]]] = {}
    for (model, select, title), members in by_title.items():
        key = model, select, tuple(group.task for group in members)
        by_tasks.setdefault(key, ([], members))[0].append(title)
    return [_overview(titles, members) for titles, members in by_tasks.values() if len(members) > 1]


def _overview(titles: Sequence[str], groups: Sequence[Group]) -> Overview:
    found: dict[str, dict[int, Row]] = {}
    for index, group in enumerate(groups):
        asked = {BASELINE, *(method for title in titles for method in group.specs.get(title, ()))}
        for row in sorted(group.rows, key=lambda row: 0 if row.summary is None else row.summary.n):
            if not group.specs or row.method in asked:  # of several settings that of most seeds
                found.setdefault(row.method, {})[index] = row
    full = _means(found.get(BASELINE, {}), len(groups))
    rows = [_row(rows, full, is_full=method == BASELINE) for method, rows in found.items()]
    tasks = tuple(f"{group.task}: {group.metric}" for group in groups)
    rows = tuple(sorted(rows, key=lambda row: (row.n_trained is None, row.n_trained)))
    return Overview(groups[0].model, "; ".join(titles), groups[0].select, tasks, rows)


def _row(rows: dict[int, Row], full: tuple[float | None, ...], is_full: bool) -> OverviewRow:
    means = _means(rows, len(full))
    first = next((row for row in rows.values() if row.n_trained is not None), next(iter(rows.values())))
    average, of_full = _average(means), _average(full)
    pairs = [(a, b) for a, b in zip(means, full, strict=True) if a is not None and b is not None]
    has_both = average is not None and bool(of_full)
    return OverviewRow(
        method=first.method,
        title=first.title,
        n_trained=first.n_trained,
        n_failed=sum(len(row.failed) for row in rows.values()),
        n_collapsed=sum(len(row.collapsed) for row in rows.values()),
        means=means,
        average=average,
        ratio_percent=100 * average / of_full if average is not None and of_full else None,
        p=wilcoxon_p([a - b for a, b in pairs]) if has_both and not is_full else None,
    )


def _means(rows: dict[int, Row], n_tasks: int) -> tuple[float | None, ...]:
    summaries = [rows[index].summary if index in rows else None for index in range(n_tasks)]
    return tuple(None if summary is None else summary.mean for summary in summaries)


def _average(means: Sequence[float | None]) -> float | None:
    there = [mean for mean in means if mean is not None]
    return sum(there) / len(means) if len(there) == len(means) else None
