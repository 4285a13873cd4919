"""One of the smallest useful adapters for pre-trained transformers, as a method of Hugging Face PEFT.

Reading order: functional.py (the idea), adapter/ (the PEFT method), tasks/ (data and metrics), tuning/ (the
two-stage recipe), methods/ (what it is held against), bench/ (experiments), analysis/ (their reports and the
paper's analyses), serving/ (many tasks, one model), cli/ (the command).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hadamard_adapter.after_peft import register_after_peft

if TYPE_CHECKING:
    from hadamard_adapter.adapter import HadamardConfig, HadamardModel
    from hadamard_adapter.functional import hadamard
    from hadamard_adapter.tuning import TuneSettings, evaluate, load, merge, tune

__all__ = ["HadamardConfig", "HadamardModel", "TuneSettings", "evaluate", "hadamard", "load", "merge", "tune"]
__version__ = "0.1.0"

_HOME = {
    "HadamardConfig": "adapter",
    "HadamardModel": "adapter",
    "TuneSettings": "tuning.settings",
    "evaluate": "tuning",
    "hadamard": "functional",
    "load": "tuning",
    "merge": "tuning",
    "tune": "tuning",
}

register_after_peft()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
