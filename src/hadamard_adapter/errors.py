"""Every error that a user can cause, and what each one means.

HadamardError
├── DataError      a file, column, row or label is not as it must be
├── SettingsError  options that do not fit together or do not fit the model
│   ├── BusyError  another process works in the same place
│   └── LoadError  a model or tokenizer is not where it was looked for, or cannot be read
├── AdapterError   an adapter folder that does not fit its base model, or is damaged
└── TrainingError  training cannot go on (no space left)
    └── DivergedError  a loss or a logit is not finite

The message says what was expected, what was received and what to do next. The command line turns each of
them into one line on standard error and exit code 2.
"""

import difflib
import errno
from collections.abc import Iterable

__all__ = [
    "AdapterError",
    "BusyError",
    "DataError",
    "DivergedError",
    "HadamardError",
    "LoadError",
    "SettingsError",
    "TrainingError",
    "did_you_mean",
    "is_out_of_memory",
    "option",
    "refuse_below",
    "refuse_twice",
]


def option(name: str, value: str = "...") -> str:
    """How a setting is spelled on the command line and in Python, for messages that both may show.

    Example:
        >>> option("allow_remote_code", "True")
        '--allow-remote-code (in Python allow_remote_code=True)'
    """
    return f"--{name.replace('_', '-')} (in Python {name}={value})"


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6, otherwise: str = "") -> str:
    """A hint for an unknown word: the nearest known one, whatever its case, or else `otherwise`.

    Args:
        word: as it was received.
        known: what it could have been.
        cutoff: likeness from which on a word is near, 0 to 1, as in difflib.get_close_matches.
        otherwise: where none is near.

    Example:
        >>> did_you_mean("LoRRA", ["lora", "full"])
        "; did you mean 'lora'?"
        >>> did_you_mean("x", ["lora", "full"])
        ''
    """
    names = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), names, n=1, cutoff=cutoff)
    return f"; did you mean {names[found[0]]!r}?" if found else otherwise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left, in any of PyTorch's words.

    CUDA has a type of its own, MPS, cuBLAS and processors on Windows raise a RuntimeError.

    Example:
        >>> is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
        True
        >>> is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
        False
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


class HadamardError(Exception):
    """The root of this package's errors; catch it to catch them all."""


class DataError(HadamardError, ValueError):
    """A file, column, row or label is not as it must be."""


class SettingsError(HadamardError, ValueError):
    """Options do not fit together, or do not fit the model."""


class BusyError(SettingsError):
    """Another process works in the same place."""


class LoadError(SettingsError):
    """A model or tokenizer is not where it was looked for, or cannot be read."""


class AdapterError(HadamardError, ValueError):
    """An adapter folder is damaged or does not fit its base model."""


class TrainingError(HadamardError, RuntimeError):
    """Training cannot go on; the last good state is kept."""


class DivergedError(TrainingError):
    """A loss or a logit is not finite."""


def refuse_below(name: str, value: float | None, least: float) -> None:
    """Refuse a number below the least one, and NaN; None passes.

    Raises:
        SettingsError: its name, and both numbers.

    Example:
        >>> refuse_below("epochs", 0, 1)
        Traceback (most recent call last):
        hadamard_adapter.errors.SettingsError: epochs: expected a number from 1 on, received 0
    """
    if value is not None and not value >= least:
        raise SettingsError(f"{name}: expected a number from {least} on, received {value!r}")


def refuse_twice(name: str, words: Iterable[str]) -> None:
    """Refuse a word that stands in a list twice.

    Raises:
        SettingsError: which one.
    """
    seen: set[str] = set()
    for word in words:
        if word in seen:
            raise SettingsError(f"{name}: {word!r} stands there twice; name it once")
        seen.add(word)
