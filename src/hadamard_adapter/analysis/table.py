"""Records of runs as a table: a row for each model, task and method, with its seeds and its statistics."""

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hadamard_adapter.analysis.comparison import Comparison, compared, largest, last_begun
from hadamard_adapter.analysis.kept import kept_specs
from hadamard_adapter.analysis.statistics import Summary, holm, summarise
from hadamard_adapter.bench.plan import Cell, cells_of
from hadamard_adapter.bench.results import Results
from hadamard_adapter.bench.run import RECIPE, described
from hadamard_adapter.bench.spec import ORDER_TITLES, TaskSpec, order_of, read_spec
from hadamard_adapter.methods import METHODS
from hadamard_adapter.tasks import METRICS
from hadamard_adapter.tuning.report import libraries

__all__ = ["Group", "Row", "read_groups", "row_of"]

BASELINES = ("full", "hadamard-wide", "hadamard")
"""Methods that others are compared with: in each table the first of these that it has."""

REFERENCES = ("lora", "hadamard-wide")
"""Where a table has a baseline, its methods are compared with these too, each pair once."""

Key = tuple[str, ...]
"""Of a table: model, task, sizes of its parts, what chose the epoch, settings that all shares, order."""

_SHOWN = ("lr", "scale_lr", "shift_lr", "norm_lr", "stage2_head_lr", "epochs")
"""Settings that a row shows in a column of its own, or that follow from it."""


_SIZES = {"head_epochs": "epochs of stage 1:", "batch_size": "batches of", "max_length": "tokens at most:"}
"""Settings of a task that a table shares, and how it says them where they are not the default."""
_DEFAULT = {field.name: field.default for field in dataclasses.fields(TaskSpec)}

_CORRECTED = ("corrected_p", "corrected_interval_p")
"""p-values of a comparison that are corrected for the number of tasks."""

_Place = tuple[int, int, str, str]
"""Where one stands: index of the group and of its row, reference, one of `_CORRECTED`."""


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
    """Median time of a run that was not broken off; None where all were."""
    memory_mb: float | None
    """Largest peak of memory of a run."""
    layers: dict[str, list[float]]
    """Kind and module -> offsets by layer, mean over seeds."""
    published: float | None = None
    """Score in percent that a publication reports, as the spec says; None where it says nothing."""
    against: Mapping[str, Comparison] = dataclasses.field(default_factory=dict)
    """Reference -> comparison with it; without itself, and where either has no run."""
    edge: str = ""
    """"lowest tried" or "highest tried" where the rate stands at an edge of its search, which ended there."""
    older_recipe: int | None = None
    """Version of the recipe that its runs were made with; None: that of now."""
    processors: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Processor ("not recorded" where a record says nothing) -> number of its runs that are done."""
    libraries: tuple[str, ...] = ()
    """Versions of the libraries that compute, one entry for all runs that share them: "torch 2.13, …"."""
    last_begun: str = ""
    """When the last of its runs began, as ISO 8601 writes it; empty where no record says."""
    scored_on: tuple[str | None, ...] = ()
    """Metric, fingerprint of the dev rows, and of the model's content (None for a fit)."""
    has_failed_search: bool = False
    """Whether all runs of its search failed, so that no rate was found and no seed can run."""

    @property
    def why_empty(self) -> str:
        """What stands where there is no score; nothing where its seeds failed, which is said elsewhere."""
        return "search failed" if self.has_failed_search else "" if self.failed else "not run"

    def is_beside(self, other: "Row") -> bool:
        """Whether scores may stand beside the other row's: metric, dev rows and model are the same."""
        pairs = zip(self.scored_on, other.scored_on, strict=False)
        return all(a is None or b is None or a == b for a, b in pairs)


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
    settings: str = ""
    """Sizes of the task's parts, and what else all rows share, such as epochs."""
    references: tuple[str, ...] = ()
    """Methods that the others are compared with, the baseline first; empty where no run of one is there."""

    @property
    def title(self) -> str:
        """Model and task, and that epochs were chosen on dev, where they were."""
        return f"{self.model}, {self.task}" + (", epochs chosen on dev" if self.select == "dev" else "")

    @property
    def is_error(self) -> bool:
        """Whether less of the metric is better."""
        return self.metric in METRICS and METRICS[self.metric].sign < 0

    @property
    def score(self) -> str:
        """The metric, and that less of it is better, where it is."""
        return f"{self.metric} (lower is better)" if self.is_error else self.metric

    @property
    def baseline(self) -> str | None:
        """The first of the references."""
        return next(iter(self.references), None)

    @property
    def columns_against(self) -> tuple[str, ...]:
        """Methods that a table has a column against: the references, or full fine-tuning, to be run."""
        return self.references or ("full",)


def row_of(group: "Group", method: str) -> "Row | None":
    """A method's row, of this recipe's runs: of several the last one that has all seeds.

    None where there is none, or several have as many seeds and no record says which is the last.

    Args:
        group: of `read_groups`.
        method: its name.
    """
    return _standing_for(method, group.rows)


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
    keys, tried = sorted(found.keys() | asked.keys()), _tried(results)
    has_orders = len({key[-1] for key in keys}) > 1  # else it is said nowhere
    return _corrected(
        [_group(key, has_orders, found.get(key, {}), results, asked.get(key, []), tried) for key in keys]
    )


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


def _tried(results: Results) -> dict[tuple[Key, str], dict[float, bool]]:
    """Table and method -> the rates that its searches tried, and whether a run of each is done."""
    found: dict[tuple[Key, str], dict[float, bool]] = {}
    for record in results.records().values():
        run = record["run"]
        if run["purpose"] == "search" and record["status"] in ("done", "failed"):
            rates, rate = found.setdefault((_searched_as(run), run["method"]), {}), float(run["lr"])
            rates[rate] = rates.get(rate, False) or record["status"] == "done"
    return found


def _has_failed(cells: Sequence[Cell], tried: Mapping[tuple[Key, str], Mapping[float, bool]]) -> bool:
    """Whether cells of one method were searched, and no run of a search is done."""
    epochs = [(cell, n) for cell in cells for n in cell.task.search_epochs or (cell.task.epochs,)]
    runs = [cell.run("search", n, lr=0.0, seed=0) for cell, n in epochs]
    found = [tried.get((_searched_as(described(run)), run.method), {}) for run in runs]
    return any(found) and not any(any(rates.values()) for rates in found)


def _searched_as(run: Mapping[str, Any]) -> Key:
    """The key of a run's search, which has a number of epochs of its own, and does not choose on dev."""
    return _key({**run, "select": "held-out", "task": {**run["task"], "search_epochs": ()}})


def _edge(rates: Sequence[float], tried: set[float]) -> str:
    """Where a row's only rate stands among those tried, if at an edge."""
    if len(rates) != 1 or len(tried) < 2 or rates[0] not in tried:
        return ""
    return {max(tried): "highest tried", min(tried): "lowest tried"}.get(rates[0], "")


def _settings(record: Mapping[str, Any]) -> str:
    """What runs of one row share: all but the seed; of a record that has no settings, its run's fields."""
    found = record.get("settings") or record["run"]
    settings = {name: value for name, value in found.items() if name != "seed"}
    return json.dumps(settings, sort_keys=True)


def _cells(results: Results) -> list[dict[Key, list[Cell]]]:
    """Of each spec that was run into a folder: table -> its cells."""
    found: list[dict[Key, list[Cell]]] = []
    for cells in kept_specs(results, "methods", lambda path: cells_of(read_spec(path))):
        tables: dict[Key, list[Cell]] = {}
        for cell in cells:
            key = _key(described(cell.run("score", cell.task.epochs, lr=0.0, seed=0)))
            tables.setdefault(key, []).append(cell)
        found.append(tables)
    return found


def _key(run: Mapping[str, Any]) -> Key:
    """What runs of one table share; runs of other settings stand in a table of their own."""
    task = run["task"]
    sizes = [f"{task['rows']:,} rows"] if task.get("rows") else []
    sizes += [f"{task['held_out']:,} held out"] if task.get("held_out") else []
    searched, fixed = task.get("search_epochs"), task.get("epochs")
    epochs = " or ".join(map(str, sorted(searched))) if searched else "" if fixed is None else str(fixed)
    more = [f"{epochs} epoch" + ("" if epochs == "1" else "s")] if epochs else []
    own = {name: task.get(name, _DEFAULT[name]) for name in _SIZES}
    more += [f"{_SIZES[name]} {value}" for name, value in own.items() if value != _DEFAULT[name]]
    more += [word for word in ("bf16", "dropout") if run[word]]
    more += [task["metric"]] if task.get("metric") else []
    more += ["the Trainer's optimizer"] if run.get("optimizer", "tune") == "trainer" else []
    order = order_of(run)
    return Path(run["model"]).name, task["name"], ", ".join(sizes), run["select"], ", ".join(more), order


def _group(
    key: Key,
    has_orders: bool,
    found: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
    results: Results,
    asked: Sequence[Cell],
    tried: Mapping[tuple[Key, str], dict[float, bool]],
) -> Group:
    published = {method: score for cell in asked for method, score in cell.task.expected.items()}
    seeds = dict[str, int]()
    for cell in asked:
        seeds[cell.method] = max(seeds.get(cell.method, 0), cell.n_seeds)
    references = _references(found)
    rows: list[Row] = []
    for (method, settings), records in found.items():
        row = _row(method, records, published.get(method), seeds.get(method, 0))
        others = [other for name, other in found if name == method]
        recipe = _recipe(settings)
        title = row.title + _differing(settings, others)
        edge = _edge(row.lr, {*tried.get((_searched_as(records[0]["run"]), method), ())})
        older = None if recipe == RECIPE else recipe
        row = dataclasses.replace(row, title=title, edge=edge, older_recipe=older)
        known = references[: references.index(method)] if method in references else references
        against = {
            name: comparison
            for name in known
            if (comparison := compared(records, [r for (m, _), r in found.items() if m == name], results))
        }
        rows.append(dataclasses.replace(row, against=against))
    rows = _asked_once(rows)
    base = _standing_for(references[0], rows) if references else None
    rows = [row if base is None or row.is_beside(base) else _said_apart(row) for row in rows]
    there = {row.method for row in rows if row.older_recipe is None}
    missing = [method for method in seeds if method not in there]
    for method in missing:
        row = _row(method, [], published.get(method), seeds[method])
        has_failed = _has_failed([cell for cell in asked if cell.method == method], tried)
        rows.append(dataclasses.replace(row, has_failed_search=has_failed))
    rows.sort(key=lambda row: (row.n_trained is None, row.n_trained))
    done = [r for records in found.values() for r in records if r["status"] == "done"]
    metric = done[0]["metric"] if done else "not run"
    model, task, sizes, select, more, order = key
    more = ", ".join(filter(None, (more, ORDER_TITLES[order] if has_orders else "")))
    name = (f"{task} ({sizes})" if sizes else task) + (f", {more}" if more else "")
    specs: dict[str, tuple[str, ...]] = {}
    for cell in asked:  # specs of one title are one experiment
        both = (*specs.get(cell.spec.title, ()), *cell.spec.methods)
        specs[cell.spec.title] = tuple(dict.fromkeys(both))
    shared = ", ".join(part for part in (sizes, more) if part)
    return Group(model, name, select, metric, tuple(rows), specs, shared, references)


def _references(found: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> tuple[str, ...]:
    """The table's baseline, then the other references, of those that have a run; none without a baseline."""
    ran = {
        method
        for (method, settings), records in found.items()
        if _recipe(settings) == RECIPE and any(record["status"] == "done" for record in records)
    }
    baseline = next((method for method in BASELINES if method in ran), None)
    if baseline is None:
        return ()
    return (baseline, *(method for method in REFERENCES if method in ran and method != baseline))


def _recipe(settings: str) -> int:
    """Version of the recipe that a row's runs were made by."""
    return json.loads(settings).get("recipe", RECIPE)


def _asked_once(rows: Sequence[Row]) -> list[Row]:
    """What a spec asks of a method, its last row with all seeds owes; older ones and other recipes do not."""
    owing = dict[str, Row]()
    for row in rows:
        if row.older_recipe is None and _standing(row) >= _standing(owing.get(row.method, row)):
            owing[row.method] = row
    return [row if row is owing.get(row.method) else dataclasses.replace(row, n_asked=0) for row in rows]


def _standing_for(method: str, rows: Sequence[Row]) -> Row | None:
    """The method's row that a spec asks for, else the one that stands highest."""
    own = [row for row in rows if row.method == method and row.older_recipe is None]
    return largest(own, lambda row: (row.n_asked > 0, _standing(row)))


def _standing(row: Row) -> tuple[int, str]:
    """How far a row has what is asked for, then how new it is."""
    return min(len(row.scores), row.n_asked or len(row.scores)), row.last_begun


def _said_apart(row: Row) -> Row:
    """The row, saying that it was not scored as the table's baseline."""
    return dataclasses.replace(row, title=f"{row.title} (other dev rows, metric or model)")


def _differing(settings: str, others: Sequence[str]) -> str:
    """What tells a row from others of its method, where no column does: " (batch_size 8)"; else nothing."""
    own, found = json.loads(settings), [json.loads(other) for other in others]
    values = {
        name: value
        for name, value in own.items()
        if name not in _SHOWN and any(other.get(name) != value for other in found)
    }
    words = [f"{name} {str(value)[:12]}" for name, value in values.items() if not isinstance(value, dict)]
    return f" ({', '.join(words)})" if words else ""


def _row(method: str, records: Sequence[Mapping[str, Any]], published: float | None, n_asked: int) -> Row:
    done = sorted((r for r in records if r["status"] == "done"), key=lambda r: r["run"]["seed"])
    scores = {record["run"]["seed"]: float(record["score"]) for record in done}
    first = done[0] if done else {}
    seconds = [record["seconds"] for record in done if not record.get("is_resumed")]
    return Row(
        method=method,
        title=records[0]["title"] if records else METHODS[method].title,
        n_trained=first.get("trained_parameters"),
        n_head=first.get("head_parameters"),
        share_percent=first.get("share_percent"),
        lr=tuple(sorted({float(record["run"]["lr"]) for record in records})),
        epochs=tuple(sorted({record["run"]["task"].get("epochs") or 0 for record in records} - {0})),
        scores=scores,
        summary=summarise(list(scores.values())) if scores else None,
        n_asked=n_asked,
        failed=tuple(sorted(r["run"]["seed"] for r in records if r["status"] == "failed")),
        collapsed=tuple(record["run"]["seed"] for record in done if record["is_collapsed"]),
        seconds=float(np.median(seconds)) if seconds else None,
        memory_mb=max((float(record.get("peak_memory_mb") or 0) for record in done), default=None),
        layers=_mean_layers([record["layers"] for record in done if record.get("layers")]),
        published=published,
        processors=collections.Counter(
            (r.get("machine") or {}).get("processor") or "not recorded" for r in done
        ),
        libraries=tuple(sorted({libraries(record.get("versions") or {}) for record in done} - {""})),
        last_begun=last_begun(records),
        scored_on=_scored_on(first) if first else (),
    )


def _scored_on(record: Mapping[str, Any]) -> tuple[str | None, ...]:
    content = (record.get("settings") or {}).get("model_content")
    return record["metric"], record["dev_fingerprint"], None if content is None else str(content)


def _mean_layers(found: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    if not found:
        return {}
    return {kind: np.mean([layers[kind] for layers in found], axis=0).tolist() for kind in found[0]}


def _corrected(groups: list[Group]) -> list[Group]:
    """Each method's p-values over the tasks of an experiment, those of a reference and kind together.

    A task of several experiments counts in the largest of those that ask for the method. A task that is not
    run yet counts as one that shows nothing.
    """
    sizes = collections.Counter[Key](
        (group.model, group.select, title, method)
        for group in groups
        for title, methods in group.specs.items()
        for method in methods
    )
    families: dict[Key, list[tuple[_Place, float]]] = {}
    for place, p in _p_values(groups).items():
        at_group, at_row, *kind = place
        group = groups[at_group]
        key = (*_experiment(group, group.rows[at_row].method, sizes), *kind)
        families.setdefault(key, []).append((place, p))
    corrected: dict[_Place, float] = {}
    for key, members in families.items():
        n_missing = sizes[key[:4]] - len({groups[place[0]].task for place, _ in members})
        found = holm([p for _, p in members], len(members) + n_missing)
        corrected |= zip((place for place, _ in members), found.tolist(), strict=True)
    return [
        dataclasses.replace(group, rows=tuple(_with(corrected, (i, j), r) for j, r in enumerate(group.rows)))
        for i, group in enumerate(groups)
    ]


def _p_values(groups: Sequence[Group]) -> dict[_Place, float]:
    """Those that are to be corrected, by where they stand."""
    return {
        (i, j, reference, kind): p
        for i, group in enumerate(groups)
        for j, row in enumerate(group.rows)
        for reference, comparison in row.against.items()
        for kind in _CORRECTED
        if (p := getattr(comparison, kind)) is not None
    }


def _experiment(group: Group, method: str, sizes: collections.Counter[Key]) -> Key:
    """Model, selection, title and method of the largest experiment that asks for the method there."""
    titles = [title for title, methods in group.specs.items() if method in methods]
    keys = [(group.model, group.select, title, method) for title in titles or [""]]
    return max(keys, key=lambda key: (sizes[key], key))


def _with(corrected: Mapping[_Place, float], at: tuple[int, int], row: Row) -> Row:
    """The row at a group's and its own index, with its p-values corrected."""
    against = dict(row.against)
    for reference, comparison in row.against.items():
        places = {kind: (*at, reference, kind) for kind in _CORRECTED}
        changes = {kind: corrected[place] for kind, place in places.items() if place in corrected}
        against[reference] = dataclasses.replace(comparison, **changes)
    return dataclasses.replace(row, against=against)
