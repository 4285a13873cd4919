"""What one timed process does, the identity that tells it from all others, and the rows it works on."""

import dataclasses
import functools
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from hadamard_adapter.bench import run as bench_run
from hadamard_adapter.bench.rows import cut, read_rows
from hadamard_adapter.bench.spec import OPTIMIZERS, ORDERS, Order, TaskSpec, model_name
from hadamard_adapter.bench.speed.spec import Purpose
from hadamard_adapter.bench.speed.variants import VARIANTS
from hadamard_adapter.methods import METHODS
from hadamard_adapter.tasks import Examples, data_fingerprint
from hadamard_adapter.tuning import TuneSettings, resolve
from hadamard_adapter.tuning.data import TuneData
from hadamard_adapter.tuning.models import config_of
from hadamard_adapter.tuning.precision import placed

__all__ = ["SpeedRun", "changed", "data_of", "identified", "identity", "name_of", "passes_of", "settings_of"]

RECIPE = 2
"""Counted up by every change of the code that moves a figure: earlier runs then count as others."""
_DEFAULTS_BEFORE: dict[str, Any] = {**OPTIMIZERS["trainer"], **ORDERS["length"], "schedule": "linear"}
"""Of settings whose defaults have changed since; runs that keep these still count."""
FEW_DEV_ROWS = 32
"""Of a run that has no curve."""


@dataclass(frozen=True)
class SpeedRun:
    """One process: a training under the clock, or a training step whose memory is measured."""

    purpose: Purpose
    """curve: score against seconds; pace, growth: seconds of some steps, of an epoch; memory: of one step."""
    model: str
    """Folder or name on the hub."""
    task: TaskSpec
    """Rows, epochs, batch size."""
    data: str
    """Folder of GLUE."""
    variant: str
    """Name in the table of variants."""
    lr: float
    """Learning rate."""
    rate_from: str
    """Where it comes from: searched, spec or published."""
    seed: int
    """Of the head's start, the order of rows and dropout."""
    points: int
    """Points of the curve an epoch; 0: none."""
    dev_rows: int | None
    """Dev rows that give the curve; None: all."""
    axis: Literal["", "rows", "length", "layers"] = ""
    """What grows, in a run of growth; length in one of memory."""
    value: int = 0
    """How far; in a run of pace the number of its round."""
    steps: int | None = None
    """Of each stage, about, in a run of pace."""
    order: Order = "length"
    """Of rows on the path of `tune`: a name in the table of orders."""

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "SpeedRun":
        """The run that `dataclasses.asdict` turned into JSON."""
        values: dict[str, Any] = {**content, "task": TaskSpec.from_json(content["task"])}
        return cls(**values)


def settings_of(run: SpeedRun) -> TuneSettings:
    """The settings of a run: those of its method in `hadamard bench`, and what its variant changes.

    Raises:
        SettingsError: the model cannot be found.
    """
    row = VARIANTS[run.variant]
    usual = bench_run.Run(
        purpose="score", model=run.model, task=run.task, data=run.data, method=row.method, lr=run.lr,
        seed=run.seed, select="dev", bf16=False, dropout=False, search_rows=None,
        optimizer=row.path.optimizer, order=run.order,
    )  # fmt: skip
    settings = dataclasses.replace(bench_run.settings_of(usual), **row.settings)
    settings = dataclasses.replace(settings, dtype=placed(settings).dtype)
    if METHODS[row.method].head_lr is not None:  # the Trainer by itself has one rate
        settings = dataclasses.replace(settings, stage2_head_lr=run.lr)
    if run.axis != "layers" and row.share_of_layers == 1:
        return settings
    n_layers = config_of(run.model).num_hidden_layers
    n_adapted = run.value if run.axis == "layers" else round(row.share_of_layers * n_layers)
    return dataclasses.replace(settings, layers=tuple(range(n_layers - n_adapted, n_layers)))


def data_of(run: SpeedRun) -> TuneData:
    """The rows to train on, and those that give the curve.

    Raises:
        DataError: a file or a row is not as it must be.
    """
    data = read_rows(run.task, run.data).to_score("dev")
    n_dev = FEW_DEV_ROWS if run.purpose in ("pace", "growth") else run.dev_rows
    dev = data.dev if n_dev is None else cut(data.dev, n_dev)
    train = data.train if run.axis != "length" else _lengthened(data.train, run.value)
    return dataclasses.replace(data, train=train, dev=dev)


def identified(run: SpeedRun) -> dict[str, Any]:
    """What a record of any status begins with: the run, its identity, and its variant's title.

    Raises:
        DataError, SettingsError: as `identity`.
    """
    title = VARIANTS[run.variant].title
    return {"run": bench_run.described(run), "identity": identity(run), "title": title}


@functools.cache
def identity(run: SpeedRun) -> str:
    """A hash of what changes the run's figures, the machine left out: rows, settings, variant, model.

    Raises:
        DataError: a file or a row is not as it must be.
        SettingsError: the model cannot be found.
    """
    row, data = VARIANTS[run.variant], data_of(run)
    key = dataclasses.asdict(run) | {"recipe": RECIPE, "path": row.path.name, "method": row.method}
    key |= {"task": None, "data": None, "rate_from": None, "model": bench_run.content_of(run.model)}
    del key["order"]  # the settings hold it
    if run.steps is None:
        del key["steps"]
    key["settings"] = changed(settings_of(run), len(data.train))
    key["rows"] = [data_fingerprint(part) for part in (data.train, data.dev)]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def changed(settings: TuneSettings, n_rows: int) -> dict[str, Any]:
    """Of a run's settings those that count in its identity: all that differ from the defaults.

    A setting that is new, and not made use of, leaves the runs that are there as they are. One whose default
    changes must be in `_DEFAULTS_BEFORE`.

    Args:
        settings: of `settings_of`.
        n_rows: number of training rows.
    """
    settings = dataclasses.replace(settings, model="none", task=None, data=None, train="rows", dev=None)
    default = {field.name: field.default for field in dataclasses.fields(settings)} | _DEFAULTS_BEFORE
    found = dataclasses.asdict(resolve(settings, n_rows))
    return {name: value for name, value in found.items() if value != default[name]}


def name_of(run: SpeedRun) -> str:
    """The name of the run's file: readable first, the beginning of its identity last."""
    rows = run.task.name + (f"_{run.task.rows}" if run.task.rows else "")
    what = {"curve": f"s{run.seed}", "growth": f"{run.axis}{run.value}"}
    which = what.get(run.purpose, f"{run.purpose}{run.value}")
    start = f"{model_name(run.model)}-{rows}-{run.variant}-{which}"
    return f"{start}-{identity(run)[:10]}"


@functools.cache
def passes_of(run: SpeedRun) -> float:
    """The work of a run in rows that pass through the model, there and back; what its time is estimated from.

    A row that is only evaluated counts a third. A run of memory counts as one of a hundred rows.
    """
    if run.purpose == "memory":
        return 100.0
    data = data_of(run)
    epochs = resolve(settings_of(run), len(data.train)).epochs
    assert epochs is not None  # resolved
    longer = run.value / 32 if run.axis == "length" else 1.0
    n_train = min(len(data.train), (run.steps or math.inf) * run.task.batch_size)
    return epochs * longer * (n_train + run.points * len(data.dev) / 3)


def _lengthened(examples: Examples, n_tokens: int) -> Examples:
    """Every text repeated until it has a word for each token, so that cutting it leaves just so many."""
    texts = [" ".join([text] * math.ceil(n_tokens / max(1, len(text.split())))) for text in examples.texts]
    return dataclasses.replace(examples, texts=texts)
