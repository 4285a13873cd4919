"""Records of runs as a table: a row for each model, task and method, with its seeds and its statistics."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hadamard_adapter.analysis.statistics import Interval, Summary, bootstrap, holm, permutation_p, summarise
from hadamard_adapter.bench.plan import Cell, cells_of
from hadamard_adapter.bench.results import Results
from hadamard_adapter.bench.run import described
from hadamard_adapter.bench.spec import read_spec
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.tasks import METRICS

__all__ = ["Comparison", "Group", "Row", "read_groups"]

BASELINE = "full"
"""The method that the others are compared with."""


@dataclass(frozen=True)
class Comparison:
    """A method against full fine-tuning on the same rows."""

    by_seed: tuple[float, ...]
    """Differences of seeds that both have."""
    permutation_p: float
    """Of these differences, exact."""
    corrected_p: float
    """The same, corrected over the tasks of the model by Holm's method."""
    by_examples: Interval | None
    """Bootstrap over dev rows; None where predictions were not kept."""


@dataclass(frozen=True)
class Row:
    """A method on a task."""

    method: str
    """Name in the table of methods."""
    title: str
    """For readers."""
    n_trained: int | None
    """Parameters trained beside the head; None where no run is done."""
    n_head: int | None
    """Parameters of the head."""
    share_percent: float | None
    """Of the base model, without the head."""
    lr: tuple[float, ...]
    """Learning rates of the runs."""
    epochs: tuple[int, ...]
    """Epochs of the runs' last or only stage; a number that was found, where epochs were searched."""
    scores: dict[int, float]
    """Seed -> score on dev."""
    summary: Summary | None
    """Of the scores; None where no run is done."""
    n_failed: int
    """Seeds that failed; they are in no mean, and said beside it."""
    n_collapsed: int
    """Seeds that predict one class, or one value; they are in the mean."""
    seconds: float | None
    """Median time of a run."""
    memory_mb: float | None
    """Largest peak of memory of a run's process."""
    layers: dict[str, list[float]]
    """Kind and module -> offsets by layer, mean over seeds."""
    published: float | None = None
    """Score in percent that a publication reports, as the spec says; None where it says nothing."""
    comparison: Comparison | None = None
    """With full fine-tuning; None for itself, or where either has no run."""


@dataclass(frozen=True)
class Group:
    """A model and a task, under one protocol."""

    model: str
    """Its folder's name."""
    task: str
    """Its name, with the number of rows where it is a part."""
    select: str
    """What chose the epoch: "held-out" or "dev"."""
    metric: str
    """Of the scores."""
    rows: tuple[Row, ...]
    """Methods, in the order of the number of trained parameters."""
    specs: Mapping[str, tuple[str, ...]]
    """Title of each spec that asks for this table -> the methods that it asks for."""


def read_groups(results: Results) -> list[Group]:
    """All models and tasks of a folder of results, search runs left out.

    Args:
        results: the folder.
    """
    found: dict[tuple[str, ...], dict[str, list[Mapping[str, Any]]]] = {}
    for record in results.records().values():
        run = record["run"]
        if run["purpose"] == "score" and record["status"] != "cancelled":
            found.setdefault(_key(run), {}).setdefault(run["method"], []).append(record)
    asked: dict[tuple[str, ...], list[Cell]] = {}
    for cell in _cells(results):
        asked.setdefault(_key(described(cell.run("score", cell.task.epochs, lr=0.0, seed=0))), []).append(
            cell
        )
    groups = [_group(key, methods, results, asked.get(key, [])) for key, methods in sorted(found.items())]
    return _corrected(groups)


def _cells(results: Results) -> list[Cell]:
    """Cells of the specs that were run into a folder."""
    found: list[Cell] = []
    for path in sorted((results.folder / "specs").glob("*.toml")):
        try:
            found += cells_of(read_spec(path))
        except SettingsError as error:
            results.problems[path.name] = f"not a spec of this version ({error}); what it expects is left out"
    return found


def _key(run: Mapping[str, Any]) -> tuple[str, ...]:
    """What runs of one table share; runs of other settings stand in a table of their own."""
    task = run["task"]
    name = task["name"] + (f" ({task['rows']:,} rows)" if task["rows"] else "")
    searched, fixed = task.get("search_epochs"), task["epochs"]
    epochs = " or ".join(map(str, searched)) if searched else "" if fixed is None else str(fixed)
    more = [f"{epochs} epochs"] if epochs else []
    more += [word for word in ("bf16", "dropout") if run[word]]
    return Path(run["model"]).name, name, run["select"], ", ".join(more)


def _group(
    key: tuple[str, ...],
    methods: dict[str, list[Mapping[str, Any]]],
    results: Results,
    asked: Sequence[Cell],
) -> Group:
    published = {method: score for cell in asked for method, score in cell.task.expected.items()}
    rows = [_row(name, records, published.get(name)) for name, records in methods.items()]
    baseline = methods.get(BASELINE, [])
    rows = [
        row if row.method == BASELINE else _with_comparison(row, methods[row.method], baseline, results)
        for row in rows
    ]
    done = [r for records in methods.values() for r in records if r["status"] == "done"]
    metric = done[0]["metric"] if done else "score"
    model, task, select, more = key
    name = f"{task}, {more}" if more else task
    specs = {cell.spec.title: cell.spec.methods for cell in asked}
    return Group(model, name, select, metric, tuple(sorted(rows, key=lambda row: row.n_trained or 0)), specs)


def _row(method: str, records: Sequence[Mapping[str, Any]], published: float | None) -> Row:
    done = sorted((r for r in records if r["status"] == "done"), key=lambda r: r["run"]["seed"])
    scores = {record["run"]["seed"]: float(record["score"]) for record in done}
    first = done[0] if done else {}
    return Row(
        method=method,
        title=records[0]["title"],
        n_trained=first.get("trained_parameters"),
        n_head=first.get("head_parameters"),
        share_percent=first.get("share_percent"),
        lr=tuple(sorted({float(record["run"]["lr"]) for record in records})),
        epochs=tuple(sorted({record["run"]["task"]["epochs"] or 0 for record in records} - {0})),
        scores=scores,
        summary=summarise(list(scores.values())) if scores else None,
        n_failed=len(records) - len(done),
        n_collapsed=sum(bool(record["is_collapsed"]) for record in done),
        seconds=float(np.median([record["seconds"] for record in done])) if done else None,
        memory_mb=max((float(record["peak_memory_mb"] or 0) for record in done), default=None),
        layers=_mean_layers([record["layers"] for record in done if record.get("layers")]),
        published=published,
    )


def _mean_layers(found: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    if not found:
        return {}
    return {kind: np.mean([layers[kind] for layers in found], axis=0).tolist() for kind in found[0]}


def _with_comparison(
    row: Row, records: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]], results: Results
) -> Row:
    base = {r["run"]["seed"]: r for r in baseline if r["status"] == "done"}
    own = {r["run"]["seed"]: r for r in records if r["status"] == "done"}
    seeds = sorted(base.keys() & own.keys())
    if not seeds:
        return row
    differences = tuple(float(own[seed]["score"] - base[seed]["score"]) for seed in seeds)
    p = permutation_p(differences)
    interval = _by_examples([own[seed] for seed in seeds], [base[seed] for seed in seeds], results)
    return dataclasses.replace(row, comparison=Comparison(differences, p, p, interval))


def _by_examples(
    own: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], results: Results
) -> Interval | None:
    fingerprints = {record["dev_fingerprint"] for record in (*own, *base)}
    labels = results.labels(own[0]["dev_fingerprint"])
    if labels is None or len(fingerprints) > 1:
        return None
    one, other = (np.array([_numbers(record) for record in records]) for records in (own, base))
    if one.shape[1] != len(labels):  # several labels a row: its predictions are no plain list
        return None
    metric = METRICS[own[0]["metric"]].compute
    return bootstrap(metric, np.array(labels), one, other, n_draws=300)


def _numbers(record: Mapping[str, Any]) -> list[float]:
    return [float(word) for word in record["predictions"].split()]


def _corrected(groups: list[Group]) -> list[Group]:
    """Each method's p-values over the tasks of a model and protocol, corrected together."""
    families: dict[tuple[str, str, str], dict[str, float]] = {}
    for group in groups:
        for row in group.rows:
            if row.comparison is not None:
                family = families.setdefault((group.model, group.select, row.method), {})
                family[group.task] = row.comparison.permutation_p
    corrected = {
        (*key, task): p
        for key, found in families.items()
        for task, p in zip(found, holm(list(found.values())).tolist(), strict=True)
    }

    def with_corrected(group: Group, row: Row) -> Row:
        if row.comparison is None:
            return row
        p = corrected[group.model, group.select, row.method, group.task]
        return dataclasses.replace(row, comparison=dataclasses.replace(row.comparison, corrected_p=p))

    return [
        dataclasses.replace(group, rows=tuple(with_corrected(group, row) for row in group.rows))
        for group in groups
    ]
