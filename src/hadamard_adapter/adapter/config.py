"""HadamardConfig: what is adapted, what is trained, and what a saved adapter must remember."""

import copy
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from numbers import Number
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel
from peft.utils import PeftType

from hadamard_adapter.adapter.families import SITE_NAMES
from hadamard_adapter.adapter.register import NAME, add_peft_type
from hadamard_adapter.errors import SettingsError

__all__ = ["HadamardConfig"]

POSITIONS = ("output", "input")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
"""Of transformers."""
NAMES = {
    "target_modules": "names as a list, or one regular expression",
    "norm_modules": "names as a list, or one regular expression",
    "exclude_modules": "names as a list, or one regular expression",
    "train_shift": "True, False, names as a list, or one regular expression",
    "modules_to_save": "names as a list",
    "head_modules": "names as a list",
    "identity_modules": "True, False or names as a list",
}
"""The fields that hold names of modules, and what each takes."""
CARD = "README.md"
"""Of PEFT: the model card of what was saved together."""

USAGE = """
## How to load it

This adapter's method lives in a package beside PEFT; importing it registers the method.

```python
import hadamard_adapter  # in a clone: pip install .
from peft import AutoPeftModel{auto}

model = AutoPeftModel{auto}.from_pretrained("{folder}")
```
"""


@dataclass
class HadamardConfig(PeftConfig):
    """Settings of a Hadamard adapter: per site, y = (1 + scale) ⊙ x + shift; per norm, γ + δγ and β + δβ.

    Everything trained is an offset from the identity and zero at the start. What is left at None is resolved
    against the model when the adapter is injected, and the saved config holds the resolved values, so that a
    later change of the family table never changes an old adapter.

    Args:
        sites: Which sub-layer outputs are adapted: "attention" (the paper's), "ffn" (feed-forward).
        target_modules: Projections to adapt, as names, name endings or one regular expression over full
            names. None: the projections of `sites`, from the table of families.
        position: "output" adapts what the projection gives, "input" what it receives.
        norm_modules: Norms whose weight and bias are tuned, named as in `target_modules`. None: the norm that
            follows each site (no norms where `target_modules` is given); []: none.
        layers_to_transform: Indices of the layers to adapt; None: all.
        layers_pattern: Name of the list of layers, where `target_modules` is a list and names are unusual.
        exclude_modules: Modules never adapted, named as in `target_modules`.
        train_scale: Whether the projection gets a scale.
        train_shift: Whether the projection gets a shift. None: where a merge can carry it, that is where the
            projection has a bias or the model's config has a switch for one. True: everywhere, with a warning
            where no merge can (`hadamard tune` says True for what is None here).
        freeze_head: Whether the head stays as it is while the adapter trains (stage 2 of the paper).
        freeze_adapter: Whether the adapter stays as it is while the head trains (stage 1 of the paper).
        modules_to_save: Further modules to train and save whole.
        head_modules: Full names of the head's modules. None: found (see `hadamard_adapter.adapter.heads`).
        identity_modules: Layers of the head that are the identity, neither trained nor saved. True: all
            before the output layer, so that the head is one linear layer (see `adapter.identity`).
        init_weights: True: zeros, the base model. False: small random values, for tests.
        id2label: Label names of this adapter's task; None: those of the base model. For another number of
            labels the adapter's head gets a new output layer.
        problem_type: transformers' problem type of this adapter's task; None: that of the base model.
        base_fingerprint: Fingerprint of the backbone that the adapter was trained on, if known.

    Raises:
        SettingsError: A value is not among those allowed.

    Example:
        >>> HadamardConfig(task_type="SEQ_CLS", sites=["attention", "ffn"]).position
        'output'
    """

    sites: list[str] = field(
        default_factory=lambda: ["attention"], metadata={"help": "attention, ffn or both"}
    )
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "projections"})
    position: str = field(default="output", metadata={"help": "output or input of the projection"})
    norm_modules: list[str] | str | None = field(default=None, metadata={"help": "norms"})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "layers"})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "list of layers"})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "never adapted"})
    train_scale: bool = field(default=True, metadata={"help": "train a scale"})
    train_shift: bool | str | list[str] | None = field(default=None, metadata={"help": "train a shift"})
    freeze_head: bool = field(default=False, metadata={"help": "keep the head as it is"})
    freeze_adapter: bool = field(default=False, metadata={"help": "keep the adapter as it is"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "trained and saved whole"})
    head_modules: list[str] | None = field(default=None, metadata={"help": "the head, found if None"})
    identity_modules: bool | list[str] = field(
        default=False, metadata={"help": "layers of the head that are the identity"}
    )
    init_weights: bool = field(default=True, metadata={"help": "start at the identity"})
    # JSON makes strings of the indices; __post_init__ undoes it.
    id2label: dict[int, str] | dict[str, str] | None = field(default=None, metadata={"help": "label names"})
    problem_type: str | None = field(default=None, metadata={"help": "transformers' problem type"})
    base_fingerprint: str | None = field(default=None, metadata={"help": "of the backbone"})

    def __post_init__(self) -> None:
        super().__post_init__()
        add_peft_type()
        self.filled_in: dict[str, tuple[Any, Any]] | None = None  # field -> before and after an injection
        self.peft_type = PeftType(NAME)
        self.sites = [self.sites] if isinstance(self.sites, str) else list(self.sites)
        unknown = [site for site in self.sites if site not in SITE_NAMES]
        if unknown or not self.sites:
            raise SettingsError(f"sites: expected one or more of {SITE_NAMES}, received {self.sites!r}")
        if self.position not in POSITIONS:
            raise SettingsError(f"position: expected one of {POSITIONS}, received {self.position!r}")
        for name in NAMES:
            setattr(self, name, _checked_names(name, getattr(self, name)))
        if isinstance(self.layers_to_transform, (set, frozenset, range)):  # which JSON does not hold
            self.layers_to_transform = sorted(self.layers_to_transform)
        _check_layers(self.layers_to_transform, self.layers_pattern)
        if isinstance(self.layers_to_transform, (list, tuple)) and not self.layers_to_transform:
            raise SettingsError(
                f"layers_to_transform: expected one or more layers, or None for all, received "
                f"{self.layers_to_transform!r}; to train the head alone, set freeze_adapter=True"
            )
        self.id2label = _checked_labels(self.id2label)
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise SettingsError(
                f"problem_type: expected one of {PROBLEM_TYPES} or None, received {self.problem_type!r}"
            )
        if not self.train_scale and self.train_shift is False and self.norm_modules == []:
            raise SettingsError(
                "nothing to train: train_scale and train_shift are False and norm_modules is []"
            )

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Remembers what an injection within it fills in, also where it fails."""
        before = copy.deepcopy({field.name: getattr(self, field.name) for field in fields(self)})
        try:
            yield
        finally:
            after = copy.deepcopy({name: getattr(self, name) for name in before})
            changed = [name for name in before if before[name] != after[name]]
            self.filled_in = {name: (before[name], after[name]) for name in changed}

    def settle(self, name: str, value: Any) -> None:
        """Sets a field to what it came to on this model; for another one it is as it was asked."""
        filled_in = self.filled_in or {}
        before = filled_in[name][0] if name in filled_in else getattr(self, name)
        self.filled_in = {**filled_in, name: (before, copy.deepcopy(value))}
        setattr(self, name, value)

    def as_asked(self) -> "HadamardConfig":
        """Returns a copy for another model: what an injection filled in is open again, what was set stays."""
        fresh = copy.deepcopy(self)
        for name, (before, after) in (self.filled_in or {}).items():
            if getattr(self, name) == after:
                setattr(fresh, name, before)
        return fresh

    @property
    def is_resolved(self) -> bool:
        """Whether nothing is left open: the names were resolved against a model, or all were given."""
        names = (self.target_modules, self.norm_modules, self.train_shift, self.head_modules)
        return None not in names and self.identity_modules is not True

    def save_pretrained(self, save_directory: str | PathLike[str], **kwargs: Any) -> None:
        """Writes adapter_config.json, and into PEFT's model card how to load an adapter of this method."""
        super().save_pretrained(fspath(save_directory), **kwargs)
        folder, above = Path(save_directory), Path(save_directory).absolute().parent
        # PEFT writes a card into the folder that it was given: this one, or for an adapter with a name that
        # above; above an adapter of that save stands no adapter of another.
        card = folder / CARD
        if not card.exists() and not (above / "adapter_config.json").exists():
            card = above / CARD
        try:
            text = card.read_text(encoding="utf8")
        except (OSError, UnicodeDecodeError):  # none, or not PEFT's
            return
        if "library_name: peft" not in text or "import hadamard_adapter" in text:
            return
        made = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(self.task_type or "", PeftModel)
        auto = made.__name__.removeprefix("PeftModel")
        card.write_text(text + USAGE.format(auto=auto, folder=Path(save_directory).name), encoding="utf8")


def _checked_names(field_name: str, value: Any) -> Any:
    """Names as a list, or the regular expression as it is; a bool or None is left as it is."""
    expected = NAMES[field_name]
    if value is None or (isinstance(value, bool) and field_name in ("train_shift", "identity_modules")):
        return value
    if isinstance(value, str) and "regular expression" in expected:
        _check_pattern(field_name, value)
        return value
    names: list[Any] = [None]
    if isinstance(value, Iterable) and not isinstance(value, (str, dict)):
        names = list(value)
    if not all(isinstance(name, str) for name in names):
        raise SettingsError(f"{field_name}: expected {expected}, or None, received {value!r}")
    return sorted(names) if isinstance(value, (set, frozenset)) else names


def _check_pattern(field_name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise SettingsError(
            f"{field_name}: expected a regular expression, received {pattern!r} ({error}); correct it, or "
            "give names as a list"
        ) from error


def _check_layers(layers: Any, pattern: Any) -> None:
    indices: list[Any] = list(layers) if isinstance(layers, (list, tuple, set, range)) else [layers]
    if layers is not None and not all(isinstance(index, int) for index in indices):
        raise SettingsError(
            f"layers_to_transform: expected indices of layers, or None for all, received {layers!r}"
        )
    patterns: list[Any] = [pattern] if isinstance(pattern, str) else list(pattern or ())
    for part in patterns:
        _check_pattern("layers_pattern", str(part))
    if patterns and layers is None:
        raise SettingsError(
            f"layers_pattern: expected none without layers_to_transform, whose layers it finds, received "
            f"{pattern!r}; set layers_to_transform, or leave it out"
        )


def _checked_labels(id2label: Any) -> dict[int, str] | None:
    """Label names by int: JSON has turned the indices into strings. Numbers as labels become words."""
    try:
        return None if id2label is None else {int(index): _word(label) for index, label in id2label.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise SettingsError(
            f"id2label: expected names by index, as {{0: 'no', 1: 'yes'}}, or None, received {id2label!r}"
        ) from error


def _word(label: Any) -> str:
    """A label's name, which UTF-8 can write.

    Raises:
        TypeError, ValueError: it is none, or no text.
    """
    if not isinstance(label, (str, Number)):
        raise TypeError(f"{label!r} is no name")
    str(label).encode()
    return str(label)
