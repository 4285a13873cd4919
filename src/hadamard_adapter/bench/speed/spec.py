"""A spec of kind "speed": what is timed, on which models and tasks, at which learning rates."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hadamard_adapter.bench.spec import (
    Order,
    TaskSpec,
    at_home,
    check_task,
    made,
    made_from,
    model_name,
    nearest,
)
from hadamard_adapter.bench.speed.variants import VARIANTS
from hadamard_adapter.errors import SettingsError, refuse_below, refuse_twice
from hadamard_adapter.files import expanded
from hadamard_adapter.methods import METHODS
from hadamard_adapter.tasks import METRICS

__all__ = [
    "PACKED",
    "PURPOSES",
    "Growth",
    "Memory",
    "Pace",
    "Purpose",
    "SpeedSpec",
    "find_spec",
    "kind_of",
    "read_speed",
]

KINDS = ("methods", "speed")
Purpose = Literal["memory", "curve", "pace", "growth"]
PURPOSES: tuple[Purpose, ...] = ("memory", "curve", "pace", "growth")
"""Of runs, in the order in which they are done. Time counts in all but memory: on a processor each process's
own, so that a curve may stand beside other work; on a GPU the wall's, so that nothing else may run."""
PACKED = Path(__file__).parent
"""Folder of the specs that come with the package."""


@dataclass(frozen=True)
class Memory:
    """The training step whose memory is measured; rows come from the first task's batch size."""

    tokens: int = 128
    """Tokens of each row, none of them padding."""


@dataclass(frozen=True)
class Pace:
    """How long a step takes, apart from curves: the first steps of a run, all variants in turn, in rounds."""

    steps: int = 50
    """Of each stage, about: whole groups of rows of like length, or one epoch where that is less."""
    rounds: int = 3
    """Times that each variant is at it."""


@dataclass(frozen=True)
class Growth:
    """How the time of an epoch grows: points of one epoch each, on the first task."""

    variants: tuple[str, ...]
    """Names in the table of variants."""
    rows: tuple[int, ...] = ()
    """Numbers of training rows."""
    lengths: tuple[int, ...] = ()
    """Numbers of tokens that every row has, its text repeated and cut."""
    layers: tuple[int, ...] = ()
    """Numbers of layers adapted, the upper ones; of variants of `tune` alone."""
    fixed_rows: int = 1000
    """Training rows of points of length and layers."""


@dataclass(frozen=True)
class SpeedSpec:
    """All that a measurement of speed is made of.

    Raises:
        SettingsError: an unknown variant, task or method, or a number out of range.
    """

    kind: Literal["speed"]
    """Tells the file from a spec of methods."""
    title: str
    """One line for readers."""
    models: tuple[str, ...]
    """Folders made by save_pretrained, or names on the hub."""
    variants: tuple[str, ...]
    """Names in the table of variants."""
    tasks: tuple[TaskSpec, ...]
    """What is learned; each variant with the same batch size, schedule and epochs."""
    data: str = "glue"
    """Folder that holds the folders of GLUE's tasks."""
    seeds: int = 3
    """Number of seeds, from 0 on; variants take turns within each seed, in an order drawn anew."""
    points: int = 10
    """Points of the curve an epoch; 0: no curves."""
    dev_rows: int | None = None
    """Dev rows that give the curve, drawn once with seed 0; None: all."""
    rates: dict[str, float] = dataclasses.field(default_factory=lambda: dict[str, float](), hash=False)
    """Method, or "TASK METHOD", to learning rate; others have the published one."""
    searched: str | None = None
    """Folder of `hadamard bench`: learning rates that its searches found on held-out rows count first."""
    memory: Memory | None = None
    """None: memory is not measured."""
    pace: Pace | None = None
    """None: a curve's seconds are those of its own run."""
    growth: Growth | None = None
    """None: growth is not measured."""
    order: Order = "groups"
    """Of rows on the path of `tune`, as in a spec of methods; the Trainer by itself has its own."""

    def __post_init__(self) -> None:
        """Check every value once."""
        for name in ("models", "variants", "tasks"):
            if not getattr(self, name):
                raise SettingsError(f"{name}: expected one or more, received none")
        grown = () if self.growth is None else self.growth.variants
        for where, names in (("variants", self.variants), ("growth: variants", grown)):
            for name in names:
                if name not in VARIANTS:
                    raise SettingsError(f"{where}: no variant {name!r}{nearest(name, VARIANTS)}")
            refuse_twice(where, names)
        refuse_twice("models", [model_name(model) for model in self.models])
        refuse_twice("tasks", [task.name for task in self.tasks])
        for task in self.tasks:
            check_task(task)
            if task.metric is not None and not METRICS[task.metric].greater_is_better:
                raise SettingsError(
                    f"metric of {task.name}: expected a score, since curves reach a target from below, "
                    f"received the error {task.metric!r}; measure the time to a correlation or r2 instead"
                )
            if task.search_epochs and self.searched is None:
                raise SettingsError(
                    f"search_epochs of {task.name}: expected `searched` too, the folder with the searches of "
                    "hadamard bench that they are looked up in; name it, or give epochs"
                )
        _check_rates(self)
        for name, least in (("seeds", 1), ("points", 0), ("dev_rows", 2)):
            refuse_below(name, getattr(self, name), least)
        if not (self.points or self.memory or self.pace or self.growth):
            raise SettingsError("points: 0 leaves nothing to run; give points, memory, pace or growth")
        _check_points(self)


def read_speed(path: str | Path) -> SpeedSpec:
    """The spec in a TOML file.

    Raises:
        SettingsError: as `read_spec` of methods raises it.

    Example:
        >>> read_speed(find_spec("speed")).seeds
        3
    """
    return made_from(path, lambda given: at_home(made(SpeedSpec, given, "the spec")))


def find_spec(word: str) -> Path:
    """The file of a spec: a path, or the name of one that comes with the package.

    Args:
        word: "speed", "speed-mpnet", or a path.

    Raises:
        SettingsError: a word without a folder or an ending that is neither.

    Example:
        >>> find_spec("sped")
        Traceback (most recent call last):
        hadamard_adapter.errors.SettingsError: no spec 'sped'; did you mean 'speed'?
    """
    packed = {path.stem: path for path in sorted(PACKED.glob("*.toml"))}
    path = expanded(word)
    if path.exists() or path.suffix or path.parent != Path():
        return path
    if word in packed:
        return packed[word]
    raise SettingsError(f"no spec {word!r}{nearest(word, packed)}")


def kind_of(path: Path) -> str:
    """The kind of a spec: "methods" or "speed".

    Raises:
        SettingsError: no such file, no TOML, or another kind.
    """

    def kind(given: dict[str, Any]) -> str:
        found = given.get("kind", KINDS[0])
        if found not in KINDS:
            raise SettingsError(f"kind: no kind {found!r}{nearest(str(found), KINDS)}")
        return found

    return made_from(path, kind)


def _check_rates(spec: SpeedSpec) -> None:
    tasks = [task.name for task in spec.tasks]
    for name, rate in spec.rates.items():
        task, _, method = name.rpartition(" ")
        if task and task not in tasks:
            raise SettingsError(f"rates: no task {task!r} in this spec{nearest(task, tasks)}")
        if method not in METHODS:
            raise SettingsError(f"rates: no method {method!r}{nearest(method, METHODS)}")
        if rate <= 0:
            raise SettingsError(f"rates: {name}: expected a number above 0, received {rate!r}")


def _check_points(spec: SpeedSpec) -> None:
    growth, memory, pace = spec.growth, spec.memory, spec.pace
    least = {"memory: tokens": (2, () if memory is None else (memory.tokens,))}
    if pace is not None:
        least |= {"pace: steps": (1, (pace.steps,)), "pace: rounds": (1, (pace.rounds,))}
    if growth is not None:
        least |= {
            "growth: rows": (20, growth.rows),
            "growth: lengths": (3, growth.lengths),
            "growth: layers": (1, growth.layers),
            "growth: fixed_rows": (20, (growth.fixed_rows,)),
        }
    for name, (smallest, values) in least.items():
        for value in values:
            refuse_below(name, value, smallest)
