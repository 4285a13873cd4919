"""The last step of every benchmark here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hadamard_adapter.files import write_json

__all__ = ["keep"]


def keep(output: str | Path, found: Mapping[str, Any]) -> None:
    """Write a result as JSON, whole or not at all; its folder is made where there is none."""
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
