"""The specs that are kept beside results, read for what they ask for."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hadamard_adapter.bench.results import Results
from hadamard_adapter.bench.speed.spec import kind_of
from hadamard_adapter.errors import SettingsError

__all__ = ["kept_specs"]

T = TypeVar("T")


def kept_specs(results: Results, kind: str, read: Callable[[Path], T]) -> list[T]:
    """What is read from each kept spec of a kind; one that cannot be read is a problem of the folder.

    Args:
        results: folder of `hadamard bench`.
        kind: "methods" or "speed".
        read: may raise a SettingsError.
    """
    found: list[T] = []
    for path in sorted((results.folder / "specs").glob("*.toml")):
        try:
            if kind_of(path) == kind:
                found.append(read(path))
        except SettingsError as error:
            results.problems[path.name] = f"not a spec of this version ({error}); what it expects is left out"
    return found
