"""Names of a package that are imported when they are asked for: what needs PyTorch takes seconds."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazy_getattr"]


def lazy_getattr(package: str, home: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`.

    Args:
        package: its name.
        home: name -> module of the package in which it stands.

    Example:
        >>> lazy_getattr("hadamard_adapter", {"hadamard": "functional"})("hadamard").__name__
        'hadamard'
    """

    def get(name: str) -> Any:
        if name in home:
            return getattr(import_module(f"{package}.{home[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
