"""What a spec of speed comes to: its runs in the order they are done, their learning rates, their time."""

import dataclasses
import math
import random
from collections.abc import Iterable, Mapping
from typing import Any

from hadamard_adapter.bench.plan import Records, Traits, quality_of, total_estimate
from hadamard_adapter.bench.results import Results, is_over
from hadamard_adapter.bench.search import Quality, best_rate, fewest_epochs
from hadamard_adapter.bench.spec import ORDERS, Order, TaskSpec, model_name, order_of
from hadamard_adapter.bench.speed.run import SpeedRun, name_of, passes_of
from hadamard_adapter.bench.speed.spec import Purpose, SpeedSpec
from hadamard_adapter.bench.speed.variants import VARIANTS
from hadamard_adapter.files import expanded
from hadamard_adapter.methods import METHODS
from hadamard_adapter.tasks import METRICS

__all__ = ["epochs_of", "missing", "rate_of", "runs_of", "total_seconds"]


def runs_of(spec: SpeedSpec) -> list[SpeedRun]:
    """All runs: memory first, then curves seed by seed, paces round by round, then growth.

    Variants take turns, in an order drawn anew for each seed or round and task: who ran before leaves its
    traces. Points of more layers are of the variants of `tune` alone.
    """
    searched = {} if spec.searched is None else Results(expanded(spec.searched)).records()
    memory = [
        _run(spec, model, spec.tasks[0], variant, "memory", axis="length", value=spec.memory.tokens)
        for model in spec.models
        for variant in spec.variants
        if spec.memory is not None and VARIANTS[variant].share_of_layers == 1  # its step has all layers
    ]
    curves = [
        _run(spec, model, own, variant, "curve", seed=seed, rate=rate_of(spec, model, own, variant, searched))
        for seed in range(spec.seeds if spec.points else 0)
        for model in spec.models
        for task, variant in _turns(spec, model, seed)
        for own in [dataclasses.replace(task, epochs=epochs_of(model, task, variant, searched, spec.order))]
    ]
    return [*memory, *curves, *_paces(spec), *_growth(spec)]


def missing(runs: Iterable[SpeedRun], records: Records) -> list[SpeedRun]:
    """The runs that have no record, or one of a run that was cut short."""
    return [run for run in runs if not is_over(records.get(name_of(run)))]


def epochs_of(model: str, task: TaskSpec, variant: str, searched: Records, order: Order) -> int | None:
    """A variant's epochs: the fewest that searches found good enough, else the task's own.

    Of the searches those with the task's `search_epochs` count, others only where there is none of these: a
    search that another experiment adds later changes no measurement.

    Args:
        model: its folder's name tells which searches count.
        task: its name, likewise.
        variant: name in the table of variants; a method's variants share its epochs.
        searched: records of `hadamard bench`, of specs that differ in epochs. As in `rate_of`, only those on
            the largest part count.
        order: of rows; searches in it count before others.
    """
    by_epochs = _searches(model, task, variant, searched, order)
    known = {epochs: found for epochs, found in by_epochs.items() if epochs is not None}
    asked = {epochs: found for epochs, found in known.items() if epochs in task.search_epochs}
    return fewest_epochs(asked or known) or task.epochs


def rate_of(
    spec: SpeedSpec, model: str, task: TaskSpec, variant: str, searched: Records
) -> tuple[float, str]:
    """A variant's learning rate, and where it comes from: a search, the spec, or the published one.

    Args:
        spec: gives rates by method, or by task and method.
        model: its folder's name tells which searches count.
        task: its name, likewise; searches of as many epochs count before others.
        variant: name in the table of variants; a method's variants share its rate.
        searched: records of `hadamard bench`. Searches with the variant's own optimizer count before others,
            then those in bfloat16 without dropout, then those with the task's size of a step and length of a
            row, then those in the spec's order of rows, then those on the same part of the task, then those
            on a larger part, then those of more training rows.
    """
    method = VARIANTS[variant].method
    by_epochs = _searches(model, task, variant, searched, spec.order)
    nearest_first = sorted(by_epochs, key=lambda epochs: abs((epochs or math.inf) - (task.epochs or 0)))
    for epochs in nearest_first:
        best = best_rate(by_epochs[epochs])
        if best is not None:
            return best, "searched"
    for name in (f"{task.name} {method}", method):
        if name in spec.rates:
            return spec.rates[name], "spec"
    return METHODS[method].lr, "published"


def _searches(
    model: str, task: TaskSpec, variant: str, searched: Records, order: Order
) -> dict[int | None, dict[float, Quality | None]]:
    """Epochs -> what each rate came to, of those searches of a variant's method that count."""
    row = VARIANTS[variant]
    by_part: dict[tuple[Any, ...], dict[int | None, dict[float, Quality | None]]] = {}
    for record in searched.values():
        run = record["run"]
        wanted = ("search", model_name(model), task.name, row.method)
        own = (run["purpose"], model_name(run["model"]), run["task"]["name"], run.get("method"))
        if own == wanted and record["status"] == "done":
            rows = run["task"].get("rows")
            is_alike = run.get("optimizer") == row.path.optimizer
            is_fast = bool(run.get("bf16")) and not run.get("dropout")
            sizes = [run["task"].get(name) for name in ("batch_size", "max_length")]
            is_of_size = sizes == [task.batch_size, task.max_length]
            same = (is_alike, is_fast, is_of_size, order_of(run) == order, rows == task.rows)
            first = -[*ORDERS].index(order_of(run))  # of other orders the first in the table
            part = (*same, rows or math.inf, run["search_rows"], first, str(sizes))
            of_epochs = by_part.setdefault(part, {}).setdefault(run["task"].get("epochs"), {})
            of_epochs[run["lr"]] = quality_of(record, METRICS[record["metric"]].sign)
    return by_part[max(by_part)] if by_part else {}


def total_seconds(runs: Iterable[SpeedRun], records: Records) -> tuple[float, int]:
    """Estimated seconds of those runs that have an estimate, and the number of those that have none.

    A run takes what runs of the same model, purpose, variant and task took; where there are none, or all are
    far shorter, those that share fewer of these.

    Args:
        runs: to come.
        records: what ran.
    """
    wanted = [(passes_of(run), _likest_first(dataclasses.asdict(run))) for run in runs]
    ran = [
        ((record["row_passes"], record["total_seconds"]), _likest_first(record["run"]))
        for record in records.values()
        if record["status"] == "done" and "row_passes" in record
    ]
    return total_estimate(wanted, ran)


def _likest_first(run: Mapping[str, Any]) -> Traits:
    model, purpose, variant = model_name(run["model"]), run["purpose"], run["variant"]
    return (
        (model, purpose, variant, run["task"]["name"]),
        (model, purpose, variant),
        (model, purpose),
        (model, purpose != "memory"),
    )


def _turns(spec: SpeedSpec, model: str, seed: int) -> list[tuple[TaskSpec, str]]:
    """A seed's curves on a model."""
    return [
        (task, variant)
        for task in spec.tasks
        for variant in _shuffled(spec.variants, f"{seed} {model_name(model)} {task.name}")
    ]


def _paces(spec: SpeedSpec) -> list[SpeedRun]:
    """Every variant at the beginning of each task's training, once a round."""
    if spec.pace is None:
        return []
    parts = [dataclasses.replace(task, epochs=1, head_epochs=1) for task in spec.tasks]
    return [
        _run(spec, model, part, variant, "pace", value=number, steps=spec.pace.steps)
        for number in range(spec.pace.rounds)
        for model in spec.models
        for part in parts
        for variant in _shuffled(spec.variants, f"pace {number} {model_name(model)} {part.name}")
    ]


def _growth(spec: SpeedSpec) -> list[SpeedRun]:
    """The points of growth, variants in turn at each."""
    growth = spec.growth
    if growth is None:
        return []
    task = dataclasses.replace(spec.tasks[0], epochs=1, head_epochs=1)
    fixed = dataclasses.replace(task, rows=growth.fixed_rows)
    points: list[tuple[str, int, TaskSpec]] = [
        *(("rows", value, dataclasses.replace(task, rows=value)) for value in growth.rows),
        *(
            ("length", value, dataclasses.replace(fixed, max_length=value))
            for value in sorted(growth.lengths)
        ),
        *(("layers", value, fixed) for value in growth.layers),
    ]
    return [
        _run(spec, model, part, variant, "growth", axis=axis, value=value)
        for model in spec.models
        for axis, value, part in points
        for variant in growth.variants
        if axis != "layers" or METHODS[VARIANTS[variant].method].settings is not None
    ]


def _run(
    spec: SpeedSpec,
    model: str,
    task: TaskSpec,
    variant: str,
    purpose: Purpose,
    seed: int = 0,
    rate: tuple[float, str] | None = None,
    axis: Any = "",
    value: int = 0,
    steps: int | None = None,
) -> SpeedRun:
    lr, rate_from = rate or (METHODS[VARIANTS[variant].method].lr, "published")
    return SpeedRun(
        purpose=purpose,
        model=model,
        task=dataclasses.replace(task, expected={}, search_epochs=()),
        data=spec.data,
        variant=variant,
        lr=lr,
        rate_from=rate_from,
        seed=seed,
        points=spec.points if purpose == "curve" else 0,
        dev_rows=spec.dev_rows if purpose == "curve" else None,
        axis=axis,
        value=value,
        steps=steps,
        order=spec.order if VARIANTS[variant].path.is_ordered else "length",
    )


def _shuffled(names: Iterable[str], seed: str) -> list[str]:
    found = list(names)
    random.Random(seed).shuffle(found)
    return found
