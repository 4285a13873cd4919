"""The smallest useful adapter for pre-trained transformers, as a method of Hugging Face PEFT.

Reading order: functional.py (the idea), adapter/ (the PEFT method), tasks/ (data and metrics), tuning/ (the
two-stage recipe), cli/ (the command).
"""

from importlib import import_module
from typing import Any

from hadamard_adapter.adapter import HadamardConfig, HadamardModel
from hadamard_adapter.functional import hadamard

__all__ = ["HadamardConfig", "HadamardModel", "TuneSettings", "evaluate", "hadamard", "load", "merge", "tune"]
__version__ = "0.1.0"

_LAZY = ("TuneSettings", "evaluate", "load", "merge", "tune")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module("hadamard_adapter.tuning"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
