"""Records of runs as a table: a row for each model, task and method, with its seeds and its statistics."""

import collections
import dataclasses
import json
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
from hadamard_adapter.methods import METHODS
from hadamard_adapter.tasks import METRICS

__all__ = ["Comparison", "Group", "Row", "read_groups"]

BASELINE = "full"
"""The method that the others are compared with."""


Key = tuple[str, ...]
"""Of a table: model, task, what chose the epoch, and settings that all of it shares."""


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
    """A method on a task, of one learning rate and one set of settings."""

    method: str
    """Name in the table of methods."""
    title: str
    """For readers."""
    n_trained: int | None
    """Parameters trained beside the head; None where no run is done."""
    n_head: int | None
    """Parameters of the head."""
    share_percent: float | None
    """Of the base model with its head; the trained head is not counted."""
    lr: tuple[float, ...]
    """Learning rates of the runs."""
    epochs: tuple[int, ...]
    """Epochs of the runs' last or only stage; a number that was found, where epochs were searched."""
    scores: dict[int, float]
    """Seed -> score on dev."""
    summary: Summary | None
    """Of the scores; None where no run is done."""
    n_asked: int
    """Seeds that a kept spec asks for; 0 where none does."""
    failed: tuple[int, ...]
    """Seeds that failed; they are in no mean, and said beside it."""
    collapsed: tuple[int, ...]
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
    """A model and a task, under one protocol; what a kept spec asks for is there though it was not run."""

    model: str
    """Its folder's name."""
    task: str
    """Its name, with the number of rows where it is a part."""
    select: str
    """What chose the epoch: "held-out" or "dev"."""
    metric: str
    """Of the scores; "not run" where there are none."""
    rows: tuple[Row, ...]
    """Methods, in the order of the number of trained parameters."""
    specs: Mapping[str, tuple[str, ...]]
    """Title of each spec that asks for this table -> the methods that it asks for."""


def read_groups(results: Results) -> list[Group]:
    """All models and tasks of a folder of results, search runs left out.

    A spec is asked what is missing once a run of it is there, so that one of searches alone makes no table.

    Args:
        results: the folder.
    """
    found = _found(results)
    asked: dict[Key, list[Cell]] = {}
    for of_spec in _cells(results):
        if of_spec.keys() & found.keys():
            for key, cells in of_spec.items():
                asked.setdefault(key, []).extend(cells)
    keys = sorted(found.keys() | asked.keys())
    return _corrected([_group(key, found.get(key, {}), results, asked.get(key, [])) for key in keys])


def _found(results: Results) -> dict[Key, dict[tuple[str, str], list[Mapping[str, Any]]]]:
    """Table -> method and settings -> records of its seeds; one that is there twice counts once."""
    found: dict[Key, dict[tuple[str, str], list[Mapping[str, Any]]]] = {}
    for name, record in sorted(results.records().items()):
        run = record["run"]
        if run["purpose"] == "score" and record["status"] != "cancelled":
            same = found.setdefault(_key(run), {}).setdefault((run["method"], _settings(record)), [])
            if run["seed"] in [other["run"]["seed"] for other in same]:
                results.problems[f"{name}.json"] = "another record has the same settings and seed"
            else:
                same.append(record)
    return found


def _settings(record: Mapping[str, Any]) -> str:
    """What runs of one row share: all but the seed; of a record that has no settings, its run's fields."""
    settings = {
        name: value for name, value in record.get("settings", record["run"]).items() if name != "seed"
    }
    return json.dumps(settings, sort_keys=True)


def _cells(results: Results) -> list[dict[Key, list[Cell]]]:
    """Of each spec that was run into a folder: table -> its cells."""
    found: list[dict[Key, list[Cell]]] = []
    for path in sorted((results.folder / "specs").glob("*.toml")):
        try:
            cells = cells_of(read_spec(path))
        except SettingsError as error:
            results.problems[path.name] = f"not a spec of this version ({error}); what it expects is left out"
            continue
        tables: dict[Key, list[Cell]] = {}
        for cell in cells:
            key = _key(described(cell.run("score", cell.task.epochs, lr=0.0, seed=0)))
            tables.setdefault(key, []).append(cell)
        found.append(tables)
    return found


def _key(run: Mapping[str, Any]) -> Key:
    """What runs of one table share; runs of other settings stand in a table of their own."""
    task = run["task"]
    sizes = [f"{task['rows']:,} rows"] if task["rows"] else []
    sizes += [f"{task['held_out']:,} held out"] if task.get("held_out") else []
    name = task["name"] + (f" ({', '.join(sizes)})" if sizes else "")
    searched, fixed = task.get("search_epochs"), task["epochs"]
    epochs = " or ".join(map(str, searched)) if searched else "" if fixed is None else str(fixed)
    more = [f"{epochs} epochs"] if epochs else []
    more += [word for word in ("bf16", "dropout") if run[word]]
    more += ["the Trainer's optimizer"] if run.get("optimizer", "tune") == "trainer" else []
    return Path(run["model"]).name, name, run["select"], ", ".join(more)


def _group(
    key: Key,
    found: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
    results: Results,
    asked: Sequence[Cell],
) -> Group:
    published = {method: score for cell in asked for method, score in cell.task.expected.items()}
    seeds = dict[str, int]()
    for cell in asked:
        seeds[cell.method] = max(seeds.get(cell.method, 0), cell.n_seeds)
    baselines = [records for (method, _), records in found.items() if method == BASELINE]
    rows: list[Row] = []
    for (method, _), records in found.items():
        row = _row(method, records, published.get(method), seeds.get(method, 0))
        rows.append(row if method == BASELINE else _with_comparison(row, records, baselines, results))
    there = {row.method for row in rows}
    missing = [method for method in seeds if method not in there]
    rows += [_row(method, [], published.get(method), seeds[method]) for method in missing]
    rows.sort(key=lambda row: (row.n_trained is None, row.n_trained))
    done = [r for records in found.values() for r in records if r["status"] == "done"]
    metric = done[0]["metric"] if done else "not run"
    model, task, select, more = key
    name = f"{task}, {more}" if more else task
    specs = {cell.spec.title: cell.spec.methods for cell in asked}
    return Group(model, name, select, metric, tuple(rows), specs)


def _row(method: str, records: Sequence[Mapping[str, Any]], published: float | None, n_asked: int) -> Row:
    done = sorted((r for r in records if r["status"] == "done"), key=lambda r: r["run"]["seed"])
    scores = {record["run"]["seed"]: float(record["score"]) for record in done}
    first = done[0] if done else {}
    return Row(
        method=method,
        title=records[0]["title"] if records else METHODS[method].title,
        n_trained=first.get("trained_parameters"),
        n_head=first.get("head_parameters"),
        share_percent=first.get("share_percent"),
        lr=tuple(sorted({float(record["run"]["lr"]) for record in records})),
        epochs=tuple(sorted({record["run"]["task"]["epochs"] or 0 for record in records} - {0})),
        scores=scores,
        summary=summarise(list(scores.values())) if scores else None,
        n_asked=n_asked,
        failed=tuple(sorted(r["run"]["seed"] for r in records if r["status"] == "failed")),
        collapsed=tuple(record["run"]["seed"] for record in done if record["is_collapsed"]),
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
    row: Row,
    records: Sequence[Mapping[str, Any]],
    baselines: Sequence[Sequence[Mapping[str, Any]]],
    results: Results,
) -> Row:
    """The row beside the largest baseline on its own dev rows and model; as it is where there is none."""
    own = {r["run"]["seed"]: r for r in records if r["status"] == "done"}
    alike = [
        [r for r in baseline if r["status"] == "done" and any(_alike(one, r) for one in own.values())]
        for baseline in baselines
    ]
    base = {r["run"]["seed"]: r for r in max(alike, key=len, default=[])}
    seeds = [seed for seed in sorted(base.keys() & own.keys()) if _alike(own[seed], base[seed])]
    if not seeds:
        return row
    differences = tuple(float(own[seed]["score"] - base[seed]["score"]) for seed in seeds)
    p = permutation_p(differences)
    interval = _by_examples([own[seed] for seed in seeds], [base[seed] for seed in seeds], results)
    return dataclasses.replace(row, comparison=Comparison(differences, p, p, interval))


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two runs were scored on the same dev rows, and began with the same model."""
    content = [record.get("settings", {}).get("model_content") for record in (one, other)]
    return one["dev_fingerprint"] == other["dev_fingerprint"] and content[0] == content[1]


def _by_examples(
    own: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], results: Results
) -> Interval | None:
    labels = results.labels(own[0]["dev_fingerprint"])
    n_rows = own[0].get("rows", {}).get("dev")
    if labels is None or len(labels) != n_rows:  # several labels a row are no plain list
        return None
    one, other = (np.array([_numbers(record) for record in records]) for records in (own, base))
    metric = METRICS[own[0]["metric"]].compute
    return bootstrap(metric, np.array(labels), one, other, n_draws=300)


def _numbers(record: Mapping[str, Any]) -> list[float]:
    return [float(word) for word in record["predictions"].split()]


def _corrected(groups: list[Group]) -> list[Group]:
    """Each method's p-values over the tasks of an experiment, corrected together.

    A task of several experiments counts in the largest of those that ask for the method.
    """
    sizes = collections.Counter(
        (group.model, group.select, title) for group in groups for title in group.specs
    )

    def family(group: Group, row: Row) -> Key:
        place = group.model, group.select
        titles = [title for title, methods in group.specs.items() if row.method in methods]
        largest = max(titles, key=lambda title: (sizes[(*place, title)], title), default="")
        return (*place, row.method, largest)

    found: dict[Key, list[float]] = {}
    for group in groups:
        for row in group.rows:
            if row.comparison is not None:
                found.setdefault(family(group, row), []).append(row.comparison.permutation_p)
    corrected = {key: iter(holm(values).tolist()) for key, values in found.items()}

    def with_corrected(group: Group, row: Row) -> Row:
        if row.comparison is None:
            return row
        p = next(corrected[family(group, row)])  # rows come in the same order again
        return dataclasses.replace(row, comparison=dataclasses.replace(row.comparison, corrected_p=p))

    return [
        dataclasses.replace(group, rows=tuple(with_corrected(group, row) for row in group.rows))
        for group in groups
    ]
