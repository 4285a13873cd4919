"""What specs of speed ask for and no run came to, so that no empty cell goes unsaid."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hadamard_adapter.analysis.gains import SHARED
from hadamard_adapter.analysis.kept import kept_specs
from hadamard_adapter.analysis.speed import task_title
from hadamard_adapter.bench.results import Results
from hadamard_adapter.bench.spec import ORDER_TITLES, model_name, order_of
from hadamard_adapter.bench.speed.plan import runs_of
from hadamard_adapter.bench.speed.run import SpeedRun
from hadamard_adapter.bench.speed.spec import PURPOSES, Purpose, SpeedSpec, read_speed
from hadamard_adapter.bench.speed.variants import VARIANTS

__all__ = ["Unmeasured", "asked_of", "read_unmeasured"]

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Unmeasured:
    """Runs of some variants, on a model, that specs ask for and that have no result."""

    model: str
    """Its folder's name."""
    purpose: Purpose
    """Of the runs."""
    tasks: tuple[str, ...]
    """As tables call them, with what grows, and the order of rows where there are several."""
    variants: tuple[str, ...]
    """Names in the table of variants."""
    is_begun: bool
    """Whether some runs of each of them, on each of the tasks, have a result."""


def asked_of(results: Results) -> list[SpeedRun]:
    """The runs of all specs of speed that are kept in a folder; one that is damaged is a problem there."""
    found = kept_specs(results, "speed", lambda path: runs_of(_without_searches(read_speed(path))))
    return [run for runs in found for run in runs]


def read_unmeasured(asked: Iterable[SpeedRun], records: Iterable[Record]) -> list[Unmeasured]:
    """The runs that are asked for and have no result, not run or failed; rates and epochs do not matter.

    Args:
        asked: runs of specs.
        records: of runs of speed.
    """
    there = {_trait(record["run"]) for record in records if record["status"] == "done"}
    runs = {_trait(dataclasses.asdict(run)): run for run in asked}
    has_orders = len({run.order for run in runs.values() if VARIANTS[run.variant].path.is_ordered}) > 1
    lacking = dict[tuple[str, Purpose, str], dict[str, list[bool]]]()
    for trait, run in runs.items():
        by_variant = lacking.setdefault((model_name(run.model), run.purpose, _title(run, has_orders)), {})
        by_variant.setdefault(run.variant, []).append(trait not in there)
    tasks = dict[tuple[str, Purpose, tuple[str, ...], bool], list[str]]()
    for (model, purpose, task), by_variant in lacking.items():
        for is_begun in (False, True):
            variants = sorted(v for v, lack in by_variant.items() if any(lack) and is_begun != all(lack))
            if variants:
                tasks.setdefault((model, purpose, tuple(variants), is_begun), []).append(task)
    rows = [
        Unmeasured(model, purpose, tuple(filter(None, names)), variants, is_begun)
        for (model, purpose, variants, is_begun), names in tasks.items()
    ]
    return sorted(rows, key=lambda row: (row.model, PURPOSES.index(row.purpose), row.tasks))


def _title(run: SpeedRun, has_orders: bool) -> str:
    """What a run is of: nothing to say of a step whose memory is measured, all of which are alike."""
    order = ORDER_TITLES[run.order] if has_orders and VARIANTS[run.variant].path.is_ordered else ""
    if run.purpose == "memory":
        return order
    task = run.task.name if run.axis == "rows" else task_title(dataclasses.asdict(run))
    return ", ".join(filter(None, (task, run.axis, order)))


def _without_searches(spec: SpeedSpec) -> SpeedSpec:
    """The spec at rates and epochs of its own: which runs it asks for does not hang on what was searched."""
    tasks = tuple(dataclasses.replace(task, search_epochs=()) for task in spec.tasks)
    return dataclasses.replace(spec, searched=None, tasks=tasks)


def _trait(run: Record) -> str:
    """What tells a spec's runs from each other, and is the same on every machine; not rates and epochs."""
    step = [run["purpose"], model_name(run["model"]), run["variant"], run["seed"], order_of(run)]
    size = [run.get("axis"), run.get("value"), run["task"].get("batch_size")]
    task = [run["task"].get(name) for name in ("name", "rows", *SHARED)]
    more = [run.get(name) for name in ("steps", "points", "dev_rows")]
    return json.dumps([*step, *size] if run["purpose"] == "memory" else [*step, *size, *task, *more])
