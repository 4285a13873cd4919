"""A run: what one training is made of, and the identity that tells it from all others."""

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hadamard_adapter.bench.rows import TaskRows, files_of, read_rows
from hadamard_adapter.bench.spec import OPTIMIZERS, ORDERS, Optimizer, Order, TaskSpec, model_name
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.methods import METHODS
from hadamard_adapter.tasks import data_fingerprint
from hadamard_adapter.tuning import TuneSettings, resolve
from hadamard_adapter.tuning.data import TuneData, key_without_content
from hadamard_adapter.tuning.models import config_of
from hadamard_adapter.tuning.resume import HOW

__all__ = [
    "RECIPE",
    "Run",
    "content_of",
    "data_of",
    "described",
    "identified",
    "identity",
    "key_of",
    "name_of",
    "settings_of",
    "work_of",
]

RECIPE = 2
"""Counted up by every change of the code that moves a score: earlier runs then count as others."""

_NOT_IN_IDENTITY = ("device", "dtype", *HOW)
"""Where and how fast it is computed; said in the record instead. What `dtype` changes says the run's bf16."""


@dataclass(frozen=True)
class Run:
    """One training: a model, a task, a method, a learning rate and a seed."""

    purpose: Literal["search", "score"]
    """search: a learning rate is tried on rows held out of train; score: its dev score counts."""
    model: str
    """Folder or name on the hub."""
    task: TaskSpec
    """Its expected scores are left out, since they change nothing."""
    data: str
    """Folder of GLUE."""
    method: str
    """Name in the table of methods."""
    lr: float
    """Learning rate."""
    seed: int
    """Seed of the head's start, of the order of rows and of dropout."""
    select: Literal["held-out", "dev"]
    """What chooses the epoch of a run whose score counts."""
    bf16: bool
    """Whether to compute in bfloat16."""
    dropout: bool
    """Whether the backbone drops activations at random."""
    search_rows: int | None
    """Training rows of a search, at most; None in runs whose score counts."""
    optimizer: Optimizer = "tune"
    """Whose: that of `hadamard tune`, or the Trainer's."""
    order: Order = "length"
    """Of rows: a name in the table of orders."""

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Run":
        """The run that `dataclasses.asdict` turned into JSON.

        Raises:
            SettingsError: its method is a row that the process that asked for it added to the table.
        """
        if content["method"] not in METHODS:
            raise SettingsError(
                f"no method {content['method']!r} in a worker, which imports the package alone: run methods "
                "of your own with --executor local, or write their rows into methods/table.py"
            )
        values: dict[str, Any] = {**content, "task": TaskSpec.from_json(content["task"])}
        return cls(**values)


_config = functools.cache(config_of)


def described(run: Any) -> dict[str, Any]:
    """What a record says of its run: all its fields, with names in place of this machine's folders and files.

    Args:
        run: one of any kind that has `model`, `task` and `data`.
    """
    is_on_hub = not Path(run.model).is_dir()
    model = run.model if is_on_hub else model_name(run.model)
    places = {"model": model, "data": Path(run.data).name}
    files = {"train": run.task.train, "dev": run.task.dev}
    names = {part: None if path is None else Path(path).name for part, path in files.items()}
    return dataclasses.asdict(run) | places | {"task": dataclasses.asdict(run.task) | names}


def identified(run: Run) -> dict[str, Any]:
    """What a record of any status begins with: the run, its identity, and its method's title.

    Raises:
        DataError, SettingsError: as `identity`.
    """
    return {"run": described(run), "identity": identity(run), "title": METHODS[run.method].title}


def settings_of(run: Run) -> TuneSettings:
    """The settings of a run, the same for all methods but for what a row of the table says.

    Raises:
        SettingsError: the model cannot be found.
    """
    method = METHODS[run.method]
    given: dict[str, Any] = {
        **files_of(run.task, run.data),
        **({"stages": 1} if method.settings is None else method.settings(_config(run.model))),
        "lr": run.lr,
        "epochs": run.task.epochs,
        "batch_size": run.task.batch_size,
        "max_length": run.task.max_length,
        "seed": run.seed,
        "dtype": "bfloat16" if run.bf16 else "float32",
        "dropout": run.dropout,
        **OPTIMIZERS[run.optimizer],
        **ORDERS[run.order],
        "quiet": True,
    }
    if given.get("stages", 2) == 2:
        given["head_epochs"] = run.task.head_epochs
    if given.get("stages") == 1:
        given["stage2_head_lr"] = run.lr if method.head_lr is None else method.head_lr
    return TuneSettings(model=run.model, output="none", **given)


def data_of(run: Run) -> tuple[TaskRows, TuneData]:
    """All rows of the run's task, and those that it trains on and is chosen on.

    Raises:
        DataError: a file or a row is not as it must be.
    """
    rows = read_rows(run.task, run.data)
    if run.purpose == "search":
        assert run.search_rows is not None, "a search has a size"
        return rows, rows.to_search(run.search_rows)
    return rows, rows.to_score(run.select)


@functools.cache
def identity(run: Run) -> str:
    """A hash of `key_of`.

    Raises:
        DataError, SettingsError: as `key_of`.
    """
    return hashlib.sha256(json.dumps(key_of(run), sort_keys=True).encode()).hexdigest()


@functools.cache
def key_of(run: Run) -> dict[str, Any]:
    """Everything that changes the run's result: method, settings, seed, fingerprints of rows and model.

    Raises:
        DataError: a file or a row is not as it must be.
        SettingsError: the model cannot be found.
    """
    rows, data = data_of(run)
    key = _key(settings_of(run), data, run.model)
    key = {name: value for name, value in key.items() if name not in _NOT_IN_IDENTITY}
    key |= {"recipe": RECIPE, "method": run.method, "purpose": run.purpose, "bf16": run.bf16}
    if run.purpose == "score":
        key["test_data"] = data_fingerprint(rows.dev)
        if run.task.search_epochs:  # whose table it stands in
            key["search_epochs"] = sorted(run.task.search_epochs)
    return key


def name_of(run: Run) -> str:
    """The name of the run's file: readable first, the beginning of its identity last."""
    rows = run.task.name + (f"_{run.task.rows}" if run.task.rows else "")
    start = f"{model_name(run.model)}-{rows}-{run.method}"
    kind = "search-" if run.purpose == "search" else ""
    return f"{start}-{kind}lr{run.lr:g}-s{run.seed}-{identity(run)[:10]}"


@functools.cache
def work_of(run: Run) -> int:
    """The work of a run: training rows times epochs, over its stages; what its time is estimated from."""
    _, data = data_of(run)
    settings = resolve(settings_of(run), len(data.train))
    return len(data.train) * ((settings.head_epochs or 0) + (settings.epochs or 0))


@functools.cache
def content_of(model: str) -> str:
    """A hash of what a model's files hold, of long ones a sample, read once; its name where none is."""
    from hadamard_adapter.tuning.content import base_content

    return base_content(model, is_sample=True) or model


def _key(settings: TuneSettings, data: TuneData, model: str) -> dict[str, Any]:
    _config(model)  # refuses what is no model, before a run of it fails
    key = key_without_content(resolve(dataclasses.replace(settings, model="none"), len(data.train)), data, 1)
    return {**key, "model_content": content_of(model)}
