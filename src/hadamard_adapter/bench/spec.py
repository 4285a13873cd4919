"""A spec: which models, tasks, methods and seeds, read from TOML and checked word by word."""

import dataclasses
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from hadamard_adapter import files
from hadamard_adapter.errors import SettingsError, did_you_mean, refuse_below, refuse_twice
from hadamard_adapter.methods import METHODS
from hadamard_adapter.tasks import GLUE, METRICS, PROBLEM_TYPES

__all__ = [
    "OF_FILES",
    "OPTIMIZERS",
    "ORDERS",
    "ORDER_TITLES",
    "Optimizer",
    "Order",
    "Search",
    "Spec",
    "TaskSpec",
    "at_home",
    "check_task",
    "made",
    "made_from",
    "model_name",
    "nearest",
    "order_of",
    "read_spec",
]

MOST_SEEDS = 1000
"""More is a slip of the keys, and the list of runs alone would take minutes."""

LONGEST_NAME = 80
"""Of a task, in bytes: the name of a file has at most 255, and model, method and rate stand in it too."""

OF_FILES = ("text", "pair", "label", "problem_type", "metric")
"""What a task says of its own files, each key as the setting of `tune` is called."""

T = TypeVar("T")

Optimizer = Literal["tune", "trainer"]
Order = Literal["length", "groups", "random"]
ORDERS: dict[Order, dict[str, Any]] = {
    "length": {"shuffle_groups": False},
    "groups": {"shuffle_groups": True},
    "random": {"group_by_length": False, "shuffle_groups": False},
}
"""Name in a spec -> settings."""
ORDER_TITLES: dict[str, str] = {
    "length": "groups from long to short",
    "groups": "groups at random",
    "random": "rows at random",
}
"""What tables call it; a group's rows are of like length."""
OPTIMIZERS: dict[Optimizer, dict[str, Any]] = {
    "tune": {},
    "trainer": {"average": 0.0},
}
"""Name in a spec -> settings where they differ from the defaults; without a mean the schedule is linear."""


def order_of(run: Mapping[str, Any]) -> Order:
    """The order of rows in a record's run; where it has none, that of runs from before there was another."""
    return run.get("order") or "length"


@dataclass(frozen=True)
class TaskSpec:
    """One task of a spec: a GLUE task by name, or any name with files for train and dev."""

    name: str
    """GLUE's name of the task (cola, sst2, ...), or one of your own with `train` and `dev`."""
    rows: int | None = None
    """Training rows, drawn once with seed 0, the same for all runs; None: all."""
    held_out: int | None = None
    """Rows of train beside `rows` that choose learning rates and epochs; None: a tenth of `rows` itself, at
    most 1,000. A tenth of a hundred rows chooses by chance."""
    epochs: int | None = None
    """Epochs of the last or only stage; None: by the number of rows, as `hadamard tune` decides."""
    search_epochs: tuple[int, ...] = ()
    """Epochs that a search tries instead, each with all rates; of these, the fewest that come within 1 % of
    the best score then count, method by method."""
    head_epochs: int | None = None
    """Epochs of the Hadamard recipe's stage 1; None: by the number of rows."""
    batch_size: int = 32
    """Rows in a step."""
    max_length: int | None = None
    """Tokens after which a row is cut; None: 256, or what the model can take if that is less."""
    train: str | None = None
    """A file of training rows, for tasks that are not GLUE's."""
    dev: str | None = None
    """A file of dev rows, read for scores only."""
    text: str | None = None
    """Column of the texts of such files; found by name or content if not given, as `tune` does."""
    pair: str | None = None
    """Column of the second texts."""
    label: str | None = None
    """Column of the labels."""
    problem_type: str | None = None
    """Kind of such a task; inferred from its labels if not given."""
    metric: str | None = None
    """What its score is, where it is not the first of its kind: see `tune --metric`."""
    expected: dict[str, float] = dataclasses.field(default_factory=lambda: dict[str, float](), hash=False)
    """Method -> score in percent that a publication reports; shown beside ours, never in place of it."""

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "TaskSpec":
        """The task that `dataclasses.asdict` turned into JSON, which has lists in place of tuples."""
        values: dict[str, Any] = {**content, "search_epochs": tuple(content.get("search_epochs", ()))}
        return cls(**values)


@dataclass(frozen=True)
class Search:
    """How the learning rate of each model, task and method is searched: seed 0, never on dev."""

    rows: int = 1500
    """Training rows of a run of the search, at most."""
    extensions: int = 3
    """Rates beyond the method's grid, at most, tried while the best one is at an edge."""


@dataclass(frozen=True)
class Spec:
    """All that an experiment is made of.

    Raises:
        SettingsError: an unknown method or task, or a number out of range.
    """

    title: str
    """One line for tables."""
    models: tuple[str, ...]
    """Folders made by save_pretrained, or names on the hub."""
    methods: tuple[str, ...]
    """Names in the table of methods."""
    tasks: tuple[TaskSpec, ...]
    """What is learned."""
    data: str = "glue"
    """Folder that holds the folders of GLUE's tasks."""
    seeds: int = 3
    """Number of seeds, from 0 on."""
    select: Literal["held-out", "dev"] = "held-out"
    """What chooses the epoch: rows held out of train, so that dev is read once; or dev, the looser way."""
    bf16: bool = False
    """Whether to compute in bfloat16 (autocast)."""
    dropout: bool = False
    """Whether the backbone drops activations at random in training, for all methods alike."""
    optimizer: Optimizer = "tune"
    """Whose, for all methods alike: that of `hadamard tune` (a mean of the weights, a constant rate), or the
    Trainer's (the last step's weights, a linear schedule)."""
    order: Order = "groups"
    """Of rows, for all methods alike. length: rows of a batch are of like length, and batches go from long to
    short some times an epoch, as in transformers; groups: such batches at random; random: rows at random."""
    search: Search | None = None
    """None: no search, each method at its published learning rate."""
    kind: Literal["methods"] = "methods"
    """What the file is a spec of; the other kind is that of `hadamard_adapter.bench.speed`."""

    def __post_init__(self) -> None:
        """Check every value once."""
        for name in ("models", "methods", "tasks"):
            if not getattr(self, name):
                raise SettingsError(f"{name}: expected one or more, received none")
        for method in self.methods:
            if method not in METHODS:
                raise SettingsError(f"methods: no method {method!r}{nearest(method, METHODS)}")
        refuse_twice("models", self.models)
        for name in map(model_name, self.models):
            places = [model for model in self.models if model_name(model) == name]
            if len(places) > 1:
                raise SettingsError(
                    f"models: {' and '.join(map(repr, places))} are both named {name!r}, under which results "
                    "stand; rename one folder"
                )
        refuse_twice("methods", self.methods)
        refuse_twice("tasks", [task.name for task in self.tasks])
        for task in self.tasks:
            check_task(task)
            if task.search_epochs and (self.search is None or task.epochs is not None):
                beside = "search, which is what tries them" if self.search is None else "no epochs"
                raise SettingsError(f"search_epochs of {task.name}: expected {beside}, beside it")
            for method in task.expected:
                if method not in METHODS:
                    raise SettingsError(
                        f"expected of {task.name}: no method {method!r}{nearest(method, METHODS)}"
                    )
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise SettingsError(
                f"seeds: expected a number from 1 on, at most {MOST_SEEDS}, received {self.seeds!r}"
            )
        if self.search is not None and (self.search.rows < 20 or self.search.extensions < 0):
            raise SettingsError(
                f"search: expected rows from 20 on and extensions from 0 on, received {self.search!r}"
            )


def read_spec(path: str | Path) -> Spec:
    """The spec in a TOML file.

    Args:
        path: the file.

    Raises:
        SettingsError: no such file, no TOML, an unknown key, method or task (with the nearest known name), a
            value of the wrong type or out of range; the message begins with the path.

    Example:
        >>> read_spec("no/such.toml")
        Traceback (most recent call last):
        hadamard_adapter.errors.SettingsError: no/such.toml: No such file or directory
    """
    return made_from(path, lambda given: at_home(made(Spec, given, "the spec")))


def model_name(model: str) -> str:
    """The short name of a model: that of its folder, or the last part of what it is called on the hub.

    Example:
        >>> model_name("downloads/all-MiniLM-L6-v2/"), model_name("google-bert/bert-base-uncased")
        ('all-MiniLM-L6-v2', 'bert-base-uncased')
    """
    return Path(model).absolute().name


def at_home(spec: T) -> T:
    """A spec of either kind, with the home folder in place of a "~" that begins a path."""
    home, given = os.path.expanduser, typing.cast(Any, spec)
    tasks = tuple(
        dataclasses.replace(task, train=task.train and home(task.train), dev=task.dev and home(task.dev))
        for task in given.tasks
    )
    models = tuple(home(model) for model in given.models)
    return dataclasses.replace(given, models=models, data=home(given.data), tasks=tasks)


def made_from(path: str | Path, make: Callable[[dict[str, Any]], T]) -> T:
    """What `make` makes of the content of a TOML file.

    Raises:
        SettingsError: no such file, no TOML, or what `make` raises; the message begins with the path.
    """
    given = files.read_toml(path)
    try:
        return make(given)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown word: the nearest known one, or all of them.

    Example:
        >>> nearest("LoRRA", ["lora", "full"])
        "; did you mean 'lora'?"
        >>> nearest("x", ["lora", "full"])
        '; known: lora, full'
    """
    names = list(known)
    return did_you_mean(word, names, otherwise=f"; known: {', '.join(names)}")


def made(cls: type[T], given: Any, where: str) -> T:
    """A dataclass from a TOML table, every key and type checked.

    Args:
        cls: the dataclass.
        given: what TOML gave.
        where: what the table is, for messages.

    Raises:
        SettingsError: no table, an unknown or missing key, or a value of the wrong type.
    """
    if not isinstance(given, dict):
        raise SettingsError(f"{where}: expected a table, received {given!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    for key in given:
        if key not in fields:
            raise SettingsError(f"{where}: unknown key {key!r}{nearest(key, fields)}")
    missing = [
        name
        for name, field in fields.items()
        if name not in given
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise SettingsError(f"{where}: {missing[0]!r} is missing")
    return cls(**{key: _value(value, hints[key], f"{where}: {key}") for key, value in given.items()})


def check_task(task: TaskSpec) -> None:
    """Refuse a task that is not GLUE's and has no files, or one for both, or a number out of range.

    Raises:
        SettingsError: which one, and the nearest known name.
    """
    if (task.train is None) != (task.dev is None):
        raise SettingsError(f"task {task.name!r}: expected both train and dev, or neither")
    if task.train is not None and task.dev is not None and files.is_same_file(task.train, task.dev):
        raise SettingsError(
            f"task {task.name!r}: expected a dev file with rows that are not trained on, received "
            f"{task.dev!r}, which is the train file itself; split it into two"
        )
    if re.fullmatch(r"\w[\w.-]*", task.name) is None or len(task.name.encode()) > LONGEST_NAME:
        raise SettingsError(
            f"task {task.name!r:.120}: expected letters, digits, '.', '_' and '-', since files are named "
            f"after it, and at most {LONGEST_NAME} bytes of them"
        )
    if task.train is not None and task.name in GLUE:
        raise SettingsError(
            f"task {task.name!r}: that is GLUE's, and train and dev name other rows; choose another name"
        )
    if task.train is None and task.name not in GLUE:
        raise SettingsError(
            f"tasks: no GLUE task {task.name!r}{nearest(task.name, GLUE)} (another one needs train and dev)"
        )
    named = [name for name in OF_FILES if getattr(task, name) is not None]
    if task.train is None and named:
        raise SettingsError(
            f"task {task.name!r}: {named[0]}: expected for a task with train and dev alone; leave it out"
        )
    for name, known in (("problem_type", PROBLEM_TYPES), ("metric", METRICS)):
        if (word := getattr(task, name)) is not None and word not in known:
            raise SettingsError(f"task {task.name!r}: no {name} {word!r}{nearest(word, known)}")
    if len({epochs for epochs in task.search_epochs if epochs >= 1}) < len(task.search_epochs):
        raise SettingsError(
            f"task {task.name!r}: search_epochs: expected numbers from 1 on that differ, received "
            f"{list(task.search_epochs)!r}"
        )
    leasts = {"rows": 20, "held_out": 20, "epochs": 1, "head_epochs": 1, "batch_size": 1, "max_length": 2}
    for name, least in leasts.items():
        refuse_below(f"task {task.name!r}: {name}", getattr(task, name), least)


def _value(value: Any, hint: Any, where: str) -> Any:
    """A TOML value as the type that an annotation asks for."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):  # "X | None": TOML has no None
        return _value(value, inner[0], where)
    if dataclasses.is_dataclass(hint):
        return made(typing.cast(type, hint), value, where)
    if origin is typing.Literal:
        if value not in inner:
            raise SettingsError(f"{where}: expected {' or '.join(map(repr, inner))}, received {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise SettingsError(f"{where}: expected a list, received {value!r}")
        return tuple(_value(item, inner[0], f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise SettingsError(f"{where}: expected a table, received {value!r}")
        return {key: _value(item, inner[1], f"{where}.{key}") for key, item in value.items()}
    if hint is float and type(value) is int and abs(value) <= sys.float_info.max:
        value = float(value)
    if type(value) is not hint or value == "" or (hint is float and not math.isfinite(value)):
        raise SettingsError(f"{where}: expected {_WORDS[hint]}, received {value!r}")
    return value


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text in quotes, not empty",
    bool: "true or false",
}
