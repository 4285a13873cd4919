"""A report's cells as text, and the report in Markdown and CSV."""

import collections
import csv
import io
from collections.abc import Iterable, Sequence

from hadamard_adapter.analysis.comparison import N_DRAWS, Comparison
from hadamard_adapter.analysis.overview import Overview, OverviewRow, overviews
from hadamard_adapter.analysis.table import Group, Row
from hadamard_adapter.bench.run import RECIPE
from hadamard_adapter.methods import METHODS

__all__ = [
    "COLUMNS",
    "PROTOCOL",
    "cells",
    "csv_text",
    "heads",
    "markdown",
    "notes",
    "overview_cells",
    "overview_columns",
    "processors",
    "remarks",
    "table_head",
    "table_line",
]

COLUMNS = (
    *("method", "score", "published %", "trained", "share %", "head", "median", "seeds", "lr", "epochs"),
    *("against", "p by seed (Holm)", "seconds", "MB"),
)
"""Of a table; there is an "against" for each of its references."""

PROTOCOL = {
    "held-out": "Epochs, and rates where they were searched, were chosen on rows held out of train; dev was "
    "read once a run, for its score.",
    "dev": "The looser protocol: each run's epoch was chosen on dev, so that scores are somewhat high.",
}
"""What `select` means, for readers."""


def heads(group: Group) -> tuple[str, ...]:
    """The heads of a table's columns."""
    against = [f"against {_short(name)}" for name in group.columns_against]
    return tuple(head for name in COLUMNS for head in (against if name == "against" else [name]))


def _short(reference: str | None) -> str:
    """A reference's name within a head."""
    return "full" if reference in (None, "full") else METHODS[reference].title


def cells(group: Group, row: Row) -> tuple[str, ...]:
    """A row of the table as text; what was not run stays empty."""
    s, c = row.summary, row.against.get(group.baseline or "")
    count = "" if s is None else f" ({s.n})" if s.n >= row.n_asked else f" ({s.n} of {row.n_asked})"
    spread = "" if s is None or s.sd is None else f" ± {s.sd:.4f}"
    score = row.why_empty if s is None else f"{s.mean:.4f}{spread}{count}"
    return (
        row.title + remarks(len(row.failed), len(row.collapsed)),
        score,
        "" if row.published is None else f"{row.published:g}",
        "" if row.n_trained is None else f"{row.n_trained:,}",
        "" if row.share_percent is None else f"{row.share_percent:.4f}",
        "" if row.n_head is None else f"{row.n_head:,}",
        "" if s is None else f"{s.median:.4f}",
        ", ".join(f"{value:.3f}" for value in row.scores.values()),
        ", ".join(f"{rate:g}" for rate in row.lr) + (f" ({row.edge})" if row.edge else ""),
        ", ".join(str(epochs) for epochs in row.epochs),
        *(_interval(row.against.get(name)) for name in group.columns_against),
        ""
        if c is None or not c.by_seed
        else f"{c.permutation_p:.3g} ({c.corrected_p:.3g}), n {len(c.by_seed)}",
        "" if row.seconds is None else f"{row.seconds:.0f}",
        "" if row.memory_mb is None else f"{row.memory_mb:,.0f}",
    )


def _interval(comparison: Comparison | None) -> str:
    """The difference to a reference, over seeds and dev rows drawn again."""
    if comparison is None or comparison.interval is None:
        return ""
    found = comparison.interval
    interval = f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{interval}, p {found.p:.3g} ({comparison.corrected_interval_p:.3g})"


def overview_columns(overview: Overview) -> tuple[str, ...]:
    """The heads of an overview's columns."""
    ratio = f"% of {_short(overview.baseline)}"
    return ("method", "trained", *overview.tasks, "average", ratio, "p over tasks")


def overview_cells(row: OverviewRow) -> tuple[str, ...]:
    """A row of an overview as text; what was not run says so, what was not asked for stays empty."""
    return (
        row.first.title + remarks(row.n_failed, row.n_collapsed),
        "" if row.first.n_trained is None else f"{row.first.n_trained:,}",
        *(_mean(one) for one in row.rows),
        "" if row.average is None else f"{row.average:.4f}",
        "" if row.ratio_percent is None else f"{row.ratio_percent:.1f}",
        "" if row.p is None else f"{row.p:.3g}",
    )


def _mean(row: Row | None) -> str:
    """A mean over seeds; how many there are of those asked for, where some are missing."""
    if row is None:
        return ""
    if row.summary is None:
        return row.why_empty
    n, n_asked = row.summary.n, row.n_asked
    return f"{row.summary.mean:.4f}" + (f" ({n} of {n_asked})" if n < n_asked else "")


def notes(groups: Sequence[Group]) -> list[str]:
    """How to read the tables, in sentences."""
    older = [
        f"{row.title} on {group.task} (recipe {row.older_recipe})"
        for group in groups
        for row in group.rows
        if row.older_recipe is not None
    ]
    mixed = [
        f"{row.title} on {group.task} ({'; '.join(row.libraries)})"
        for group in groups
        for row in group.rows
        if len(row.libraries) > 1
    ]
    return [
        *([f"Made with another version of the recipe: {', '.join(older)}."] if older else []),
        *([f"Seeds of one row ran with several versions of a library: {', '.join(mixed)}."] if mixed else []),
        "score: mean ± standard deviation over seeds (n, of those asked for), then median and the seeds' "
        "values. A failed seed is in no mean and named beside the method; a collapsed one (one class or "
        "value for nearly all rows) is. A method with several learning rates or settings has a row for each; "
        "all tasks together show the last one that has all seeds. % of full: the average over the tasks, "
        "divided by full fine-tuning's of the same dev rows, metrics and model; not the mean of the tasks' "
        "own ratios, in which a task of small scores, such as MCC's, weighs as much as the others.",
        "against full (where no full fine-tuning was run: Hadamard, wide; else Hadamard), and against LoRA "
        "and Hadamard, wide, where they were run (each pair once): "
        f"difference of the mean scores with a 95 % bootstrap interval over seeds and dev rows ({N_DRAWS:,} "
        "draws of both, seeds paired; a fit against all seeds) and its two-sided p, in brackets corrected by "
        "Holm over the tasks of the experiment, not over methods and references; the interval is not "
        "corrected. What other seeds would change is guessed from those that ran: with few of them, where "
        "seeds differ more than other dev rows would make a score differ, it is far too narrow and p too "
        "small (docs/experiments.md has figures): hold it against p by seed; with one seed it holds other "
        "rows alone. None where a row has several labels. Of errors less is better.",
        "p by seed: exact permutation test of the paired differences to the first of these; in brackets "
        "corrected by Holm over the tasks of the experiment. With 3 seeds it cannot be below 0.25, with 5 "
        "not below 0.0625.",
        "Hadamard's forms, but for those in one stage, train the head alone before the epochs of the tables.",
        "published %: what a publication reports for this model, task and method, by the spec, "
        "in the publication's metric and protocol; not our run.",
        "lr: chosen by a search, or published; highest (lowest) tried: the best rate of a search that ended "
        "at its edge, so that a better one may lie beyond.",
        "p over tasks: Wilcoxon's signed-rank test of the tasks' mean differences to the baseline; with "
        "n tasks it cannot be below 2 / 2^n (five: 0.0625, two: 0.5). An average is given only for methods "
        "that ran on every task with all seeds asked for, none of which failed.",
        "seconds: median time of a run on whatever processor it had, named below each table with the number "
        "of runs; rows of other processors do not compare. MB: highest memory of a run's process; of "
        "runs begun before 30 November 2026 with `--executor local` that of the runs before it, too.",
        "trained and share leave the trained head out, which is the same for all methods that have a model "
        "and is given beside them.",
        *dict.fromkeys(PROTOCOL[group.select] for group in groups),
    ]


def markdown(groups: Sequence[Group], problems: Sequence[str], failed: Sequence[str] = ()) -> str:
    """The report in Markdown: how to read it, then a table for each model and task.

    Args:
        groups: of `read_groups`.
        problems: a line for every file that does not count.
        failed: a line for every run that failed.
    """
    lines = ["# Results", "", "## How to read it", "", *(f"- {note}" for note in notes(groups)), ""]
    for found in overviews(groups):
        columns = overview_columns(found)
        lines += [f"## {found.model}: {found.title}", "", PROTOCOL[found.select], ""]
        lines += table_head(columns)
        lines += [*(table_line(overview_cells(row)) for row in found.rows), ""]
    for group in groups:
        lines += [f"## {group.title}: {group.score}", "", PROTOCOL[group.select], ""]
        lines += [
            *table_head(heads(group)),
            *(table_line(cells(group, row)) for row in group.rows),
            "",
            *([where, ""] if (where := processors(group)) else []),
        ]
    for head, told in {"Runs that failed": failed, "Files that do not count": problems}.items():
        if told:
            lines += [f"## {head}", "", *(f"- {line}" for line in told), ""]
    return "\n".join(lines)


def processors(group: Group) -> str:
    """Where a table's runs were done, and how many; empty where none is done."""
    found = sum((collections.Counter(row.processors) for row in group.rows), collections.Counter[str]())
    named = "; ".join(f"{name} ({n})" for name, n in sorted(found.items()))
    return f"Processors: {named}." if named else ""


def csv_text(groups: Sequence[Group]) -> str:
    """One line a run, failed ones and those that a kept spec still asks for too, these without a seed."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = ("model", "task", "select", "metric", "method", "trained_parameters", "head_parameters")
    writer.writerow([*names, "lr", "epochs", "seed", "score", "status", "title", "recipe"])
    for group in groups:
        for row in group.rows:
            where = (group.model, group.task, group.select, group.metric, row.method)
            counts = (*where, row.n_trained, row.n_head)
            which = (row.title, row.older_recipe or RECIPE)  # rows of a method that nothing else tells apart
            for seed in sorted([*row.scores, *row.failed]):
                score = row.scores.get(seed)
                status = "failed" if score is None else "collapsed" if seed in row.collapsed else "done"
                rates = " ".join(f"{rate:g}" for rate in row.lr)
                epochs = " ".join(map(str, row.epochs))
                value = "" if score is None else f"{score:.6f}"
                writer.writerow([*counts, rates, epochs, seed, value, status, *which])
            for _ in range(row.n_asked - len(row.scores) - len(row.failed)):
                writer.writerow([*counts, "", "", "", "", row.why_empty or "not run", *which])
    return buffer.getvalue()


def remarks(n_failed: int, n_collapsed: int) -> str:
    """What stands behind a method's name where seeds failed or collapsed.

    Example:
        >>> remarks(1, 0)
        ' [1 failed]'
    """
    counts = ((n_failed, "failed"), (n_collapsed, "collapsed"))
    words = [f"{n} {what}" for n, what in counts if n]
    return f" [{', '.join(words)}]" if words else ""


def table_head(names: Sequence[str]) -> list[str]:
    """The first two lines of a table in Markdown.

    Example:
        >>> table_head(["method", "score"])
        ['| method | score |', '| --- | --- |']
    """
    return [table_line(names), table_line(["---"] * len(names))]


def table_line(words: Iterable[str]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(words) + " |"
