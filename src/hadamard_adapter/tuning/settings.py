"""Every setting of a tuning run, its meaning and its measured default.

`TuneSettings` is flat, so that the command line, a TOML file and a library call all spell a setting the same
way. What depends on the preset or on the number of rows stands in two tables, `PRESETS` and `EPOCHS_BY_ROWS`.
"""

import ast
import dataclasses
import inspect
import math
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hadamard_adapter.errors import SettingsError, refuse_below
from hadamard_adapter.files import is_utf8

__all__ = ["EPOCHS_BY_ROWS", "PRESETS", "Preset", "TuneSettings", "field_help", "refuse_idle", "resolve"]


@dataclass(frozen=True)
class Preset:
    """What one preset decides; any field of `TuneSettings` that is given wins over it."""

    sites: tuple[str, ...]
    """Sites that are adapted, each with the norm that follows it."""
    freeze_head: bool
    """Whether the head of stage 1 stays as it is in stage 2."""
    lr: float
    """Learning rate of scale, shift and norm in stage 2."""
    head_lr: float
    """Learning rate of the head in stage 1."""
    stage2_head_lr: float
    """Learning rate of the head in stage 2, where it keeps training."""


PRESETS: dict[str, Preset] = {
    "paper": Preset(sites=("attention",), freeze_head=True, lr=5e-3, head_lr=1e-3, stage2_head_lr=1e-3),
    "wide": Preset(sites=("attention", "ffn"), freeze_head=False, lr=5e-3, head_lr=1e-3, stage2_head_lr=1e-3),
}
"""Name of the preset -> what it decides."""

EPOCHS_BY_ROWS: tuple[tuple[float, int, int], ...] = (
    # up to this many training rows: epochs of stage 1, epochs of stage 2
    (2_000, 10, 20),
    (10_000, 3, 10),
    (50_000, 2, 5),
    (math.inf, 1, 3),
)
"""Epochs of both stages by the number of training rows, for settings that give none."""

HEAD_BATCHES = 4
"""Rows in a step of stage 1 for each row in a step of stage 2: such a step costs little but its overhead."""


@dataclass(frozen=True)
class TuneSettings:
    """All settings of one tuning run; every field but the first two has a default.

    Raises:
        SettingsError: a value is out of its range, or two settings contradict each other.

    Example:
        >>> TuneSettings(model="bert-base-uncased", output="out", train="train.csv").preset
        'wide'
    """

    model: str
    """Base model: a folder made by save_pretrained, or a name on the hub."""
    output: str
    """Folder that receives the adapter; it appears when the run is complete, not before."""
    train: str | None = None
    """Training rows: a csv, tsv, jsonl or parquet file, or the name or folder of a dataset."""
    dev: str | None = None
    """Rows that choose the epoch; without them a part of the training rows is set aside."""
    train_split: str | None = None
    """Split to train on, where --train is a dataset with several."""
    dev_split: str | None = None
    """Split that chooses the epoch, where --dev is a dataset with several."""
    text: str | None = None
    """Column of the text; found by its name or its content if not given."""
    pair: str | None = None
    """Column of the second text of a pair."""
    label: str | None = None
    """Column of the label; found by its name if not given."""
    quoting: bool | None = None
    """Whether quotes in the file enclose cells; by default yes in csv, no in tsv."""
    delimiter: str | None = None
    """Character between the cells of the file; by default a comma in csv, a tab in tsv."""
    task: str | None = None
    """A GLUE task by name (cola, sst2, mrpc, stsb, rte, ...), read from --data with its official metrics."""
    data: str | None = None
    """Folder of the GLUE task's files, or the one that holds all tasks' folders."""
    problem_type: (
        Literal["single_label_classification", "multi_label_classification", "regression"] | None
    ) = None
    """Kind of the task; inferred from the label column and printed if not given."""
    metric: str | None = None
    """Score that chooses the epoch (accuracy, f1, macro-f1, ...); by the kind of task if not given."""
    threshold: float = 0.5
    """Multi-label only: probability from which on a label counts as given."""
    preset: Literal["paper", "wide"] = "wide"
    """paper: attention and its norm, head frozen in stage 2; wide: feed-forward and norm too, head free."""
    sites: tuple[str, ...] | None = None
    """Sites to adapt (attention, ffn); None: those of the preset."""
    norm_modules: tuple[str, ...] | None = None
    """Ends of the norms' module names; None: the norm after each site, empty: no norm."""
    layers: tuple[int, ...] | None = None
    """Layers to adapt, counted from 0; None: all."""
    train_scale: bool = True
    """Whether the sites get a scale."""
    train_shift: bool = True
    """Whether the sites get a shift, where a merge can carry one."""
    position: Literal["output", "input"] = "output"
    """Whether to adapt what the site's projection puts out or what it takes in."""
    freeze_head: bool | None = None
    """Whether the head stays as stage 1 left it; None: as the preset says."""
    stages: Literal[1, 2] = 2
    """2: the head first, then the adapter (the paper's recipe). 1: both at once."""
    head_epochs: int | None = None
    """Epochs of stage 1; None: 10 up to 2,000 training rows, 3 up to 10,000, 2 up to 50,000, else 1."""
    epochs: int | None = None
    """Epochs of stage 2; None: 20 up to 2,000 training rows, 10 up to 10,000, 5 up to 50,000, else 3."""
    head_lr: float | None = None
    """Learning rate of the head in stage 1; None: the preset's, 1e-3."""
    lr: float | tuple[float, ...] | None = None
    """Learning rate of the adapter; several: dev chooses among a run with each; None: the preset's, 5e-3."""
    scale_lr: float | None = None
    """Learning rate of the scales; None: as --lr."""
    shift_lr: float | None = None
    """Learning rate of the shifts; None: as --lr."""
    norm_lr: float | None = None
    """Learning rate of the norms' offsets; None: as --lr."""
    stage2_head_lr: float | None = None
    """Learning rate of the head beside the adapter; None: the preset's, 1e-3."""
    dropout: bool = False
    """Whether the frozen backbone drops activations at random in training; the head's own dropout stays."""
    cache_gb: float = 4.0
    """Largest size in GB of what frozen layers put out, kept on disk while a stage trains without dropout; 0:
    nothing is kept."""
    first_token_only: bool = True
    """Whether the last layer leaves out, behind its attention, tokens that the head does not read."""
    group_by_length: bool = True
    """Whether a step's rows are of like length, behind stage 1. If not they are drawn at random, and computed
    in parts of like length: the gradient of the plain batch, less padding."""
    shuffle_groups: bool = True
    """Whether steps of like length follow each other at random. If not they go from long rows to short ones,
    a few times an epoch, as transformers orders them, and an epoch ends with its shortest rows."""
    head: Literal["full", "linear"] = "full"
    """full: the class's own head, a pooler of the checkpoint with it; linear: its output layer alone."""
    start: str | None = None
    """Folder of an adapter whose offsets tuning starts from, head excluded; None: from the base model."""
    basis: str | None = None
    """File of `hadamard share basis`: the adapter stays in its directions, so that a task trains one number a
    direction beside its head."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] | None = None
    """Course of the learning rates after the warm-up; None: constant where a mean is kept, else linear."""
    warmup: float = 0.06
    """Share of the steps in which the learning rates rise from zero (RED's setting)."""
    average: float = 0.99
    """Share of the running mean of weights that a step leaves; the mean is scored and saved. 0: no mean."""
    weight_decay: float = 0.0
    """AdamW's decay; on the adapter it pulls towards the base model, since offsets are stored."""
    max_grad_norm: float = 1.0
    """Largest norm of the gradient; longer ones are scaled down to it."""
    batch_size: int = 32
    """Rows in a step, per process."""
    head_batch_size: int | None = None
    """Rows in a step of stage 1, per process; None: four times --batch-size."""
    grad_accumulation: int = 1
    """Batches whose gradients are added up for one step."""
    micro_batch_tokens: int | None = None
    """Tokens, padding included, that a step computes at once; None: all of a batch. A batch with more is
    computed in parts that add up to its gradient, with less memory; a longer row is computed alone."""
    max_length: int | None = None
    """Tokens after which a row is cut; None: 256, or what the model can take if that is less."""
    dev_fraction: float = 0.1
    """Share of the training rows that is set aside where there is no dev file."""
    early_stopping: int = 0
    """Epochs without a better dev score after which a stage ends; 0: never."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a rare class counts more, by n / (classes * rows of the class)."""
    seed: int = 0
    """Seed of the head's start, the order of rows, dropout and the dev split."""
    seeds: int = 1
    """Number of seeds, from --seed on: a run with each, of which dev chooses one."""
    device: str | None = None
    """cpu, cuda or mps; None: the fastest that is there."""
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    """Type of the frozen weights and of products with them (auto: bfloat16 where that is faster)."""
    gradient_checkpointing: bool = False
    """Whether backward computes activations again instead of keeping them: less memory, slower."""
    torch_compile: bool = False
    """Whether to compile the layers with torch.compile; that takes seconds to minutes a stage, and brought
    nothing on a CPU."""
    overwrite: bool = False
    """Whether a result or an unfinished run of other settings in the output folder may be replaced."""
    allow_remote_code: bool = False
    """Whether a model may run Python code that its folder or the hub brings."""
    quiet: bool = False
    """Whether to say nothing but errors."""

    def __post_init__(self) -> None:
        """Turn paths and lists into text and tuples, which run.json holds; check every value once."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, os.PathLike | list | range):
                plain = os.fspath(value) if isinstance(value, os.PathLike) else tuple(value)
                object.__setattr__(self, field.name, plain)
        _check(self)


def field_help(cls: type) -> dict[str, str]:
    """Name of each annotated field of a class and its bases -> the docstring written under it.

    Example:
        >>> field_help(Preset)["sites"]
        'Sites that are adapted, each with the norm that follows it.'
    """
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__[:-1]):
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for field, after in zip(tree.body, tree.body[1:], strict=False):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                found[field.target.id] = inspect.cleandoc(str(after.value.value))
    return found


def resolve(settings: TuneSettings, n_rows: int) -> TuneSettings:
    """The same settings with every None that a preset or the number of rows decides filled in.

    What has no effect (the head's settings of a stage that does not train it) stays None.

    Args:
        settings: as the user gave them, of one run: one learning rate, one seed.
        n_rows: number of training rows, after a dev part was set aside.

    Example:
        >>> resolve(TuneSettings(model="m", output="o", train="t.csv", preset="paper"), 500).sites
        ('attention',)
    """
    preset = PRESETS[settings.preset]
    head_epochs, epochs = next(row[1:] for row in EPOCHS_BY_ROWS if n_rows <= row[0])
    lr = _first(settings.lr, preset.lr)
    freeze_head = _first(settings.freeze_head, preset.freeze_head) and settings.stages == 2
    filled: dict[str, Any] = {
        "sites": _first(settings.sites, preset.sites),
        "freeze_head": freeze_head,
        "epochs": _first(settings.epochs, epochs),
        "lr": lr,
        "schedule": _first(settings.schedule, "constant_with_warmup" if settings.average else "linear"),
    }
    if settings.basis is None:
        filled |= {name: _first(getattr(settings, name), lr) for name in ("scale_lr", "shift_lr", "norm_lr")}
    if settings.stages == 2:
        filled |= {
            "head_epochs": _first(settings.head_epochs, head_epochs),
            "head_lr": _first(settings.head_lr, preset.head_lr),
            "head_batch_size": _first(settings.head_batch_size, HEAD_BATCHES * settings.batch_size),
        }
    if not freeze_head:
        filled["stage2_head_lr"] = _first(settings.stage2_head_lr, preset.stage2_head_lr)
    return dataclasses.replace(settings, **filled)


def _first(given: Any, otherwise: Any) -> Any:
    return otherwise if given is None else given


_AT_LEAST: dict[str, float] = {
    "head_epochs": 1, "epochs": 1, "batch_size": 1, "head_batch_size": 1, "grad_accumulation": 1,
    "seeds": 1, "max_length": 2, "early_stopping": 0, "seed": 0, "warmup": 0, "weight_decay": 0,
    "cache_gb": 0, "micro_batch_tokens": 1,
}  # fmt: skip
_COUNTS = frozenset(_AT_LEAST) - {"warmup", "weight_decay", "cache_gb"}
_SHARES = ("threshold", "dev_fraction", "average", "warmup")
_ABOVE_ZERO = ("lr", "head_lr", "scale_lr", "shift_lr", "norm_lr", "stage2_head_lr", "max_grad_norm")


def _check(settings: TuneSettings) -> None:
    values = dataclasses.asdict(settings)
    for name, value in values.items():
        if isinstance(value, str) and not is_utf8(value):
            raise SettingsError(f"{name}: expected a name in UTF-8, received {value!r}; rename what has it")
    for name in (*_AT_LEAST, *_ABOVE_ZERO, *_SHARES):
        for value in values[name] if isinstance(values[name], tuple) else (values[name],):
            if value is not None and not isinstance(value, int | float):
                raise SettingsError(f"{name}: expected a number, received {value!r}")
            if name in _COUNTS and value is not None and type(value) is not int:
                raise SettingsError(f"{name}: expected a whole number, received {value!r}")
    for name, least in _AT_LEAST.items():
        refuse_below(name, values[name], least)
    rates = settings.lr if isinstance(settings.lr, tuple) else ()
    for name in _ABOVE_ZERO:
        for value in values[name] if isinstance(values[name], tuple) else (values[name],):
            if value is not None and not 0 < value < math.inf:
                raise SettingsError(f"{name}: expected a number above 0, received {value!r}")
    if len(set(rates)) < len(rates):
        raise SettingsError(f"lr: expected rates that differ, received {rates!r}")
    for name in ("threshold", "dev_fraction"):
        if not 0 < values[name] < 1:
            raise SettingsError(f"{name}: expected a number between 0 and 1, received {values[name]!r}")
    last_seed = settings.seed + settings.seeds - 1
    if last_seed >= 1 << 32:  # NumPy takes no more
        raise SettingsError(f"seed: expected a number below 2**32, received {last_seed!r}")
    for name in ("layers", "sites", "lr"):
        if values[name] == ():
            raise SettingsError(
                f"{name}: expected one or more, received none; leave it out for the usual ones"
            )
    if not 0 <= settings.average < 1:
        raise SettingsError(f"average: expected a share from 0 to below 1, received {settings.average!r}")
    if settings.warmup >= 1:
        raise SettingsError(f"warmup: expected a share of the steps below 1, received {settings.warmup!r}")
    _check_choices(settings)
    if (settings.train is None) == (settings.task is None):
        raise SettingsError(
            f"expected either train=FILE or task=NAME with data=FOLDER, received train={settings.train!r} "
            f"and task={settings.task!r}; give one of them"
        )
    if settings.task is not None and settings.data is None:
        raise SettingsError(f"task={settings.task!r} needs data=FOLDER, the folder of its files")
    _check_effect(settings)


OF_TABLES = (
    *("dev", "train_split", "dev_split", "text", "pair", "label", "problem_type", "threshold"),
    *("quoting", "delimiter"),
)
"""Settings that a GLUE task decides itself."""


def _check_effect(settings: TuneSettings) -> None:
    """Refuse a setting that would be without effect beside another."""
    default = {field.name: field.default for field in dataclasses.fields(settings)}
    given = [name for name in OF_TABLES if getattr(settings, name) != default[name]]
    if settings.task is not None and given:
        raise SettingsError(
            f"{given[0]}: expected none beside task={settings.task!r}, whose files fix it, received "
            f"{getattr(settings, given[0])!r}; leave it out, or pass train and dev instead of task"
        )
    if settings.task is None and settings.data is not None:
        raise SettingsError(
            f"data: expected none beside train={settings.train!r}, received {settings.data!r}; data is the "
            "folder of a GLUE task: pass task with it, or leave it out"
        )
    freeze_head = _first(settings.freeze_head, PRESETS[settings.preset].freeze_head)
    idle: dict[str, tuple[bool, str]] = {
        "dev_fraction": (
            settings.dev is not None or settings.dev_split is not None or settings.task is not None,
            "rows for dev that are given",
        ),
        **dict.fromkeys(("head_epochs", "head_lr", "head_batch_size"), (settings.stages == 1, "stages=1")),
        "freeze_head": (settings.stages == 1 and settings.freeze_head is True, "stages=1"),
        "stage2_head_lr": (settings.stages == 2 and freeze_head, "a head that is frozen in stage 2"),
        "lr": (
            isinstance(settings.lr, tuple)
            and None not in (settings.scale_lr, settings.shift_lr, settings.norm_lr),
            "scale_lr, shift_lr and norm_lr, which replace it",
        ),
        "start": (settings.basis is not None, "basis, which starts from the base model"),
        **dict.fromkeys(("scale_lr", "shift_lr", "norm_lr"), (settings.basis is not None, "basis")),
    }
    refuse_idle(settings, idle)


def refuse_idle(settings: TuneSettings, idle: Mapping[str, tuple[bool, str]]) -> None:
    """Refuse settings that were given and have no effect.

    Args:
        settings: as the user gave them.
        idle: name -> whether it has no effect, and beside what.

    Raises:
        SettingsError: which one, and why.
    """
    default = {field.name: field.default for field in dataclasses.fields(settings)}
    for name, (is_idle, beside) in idle.items():
        if is_idle and getattr(settings, name) != default[name]:
            raise SettingsError(
                f"{name}: expected none beside {beside}, where it has no effect, received "
                f"{getattr(settings, name)!r}; leave it out"
            )


def _check_choices(settings: TuneSettings) -> None:
    for name, hint in get_type_hints(TuneSettings).items():
        parts = [hint, *get_args(hint)]  # of "Literal[…] | None" the literal is a part
        known = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
        value = getattr(settings, name)
        is_left_out = value is None and type(None) in parts
        if known and value not in known and not is_left_out:
            raise SettingsError(f"{name}: expected one of {known}, received {value!r}")
    for name in ("model", "output"):
        if not getattr(settings, name):
            raise SettingsError(f"{name}: expected a name or a path, received {getattr(settings, name)!r}")
