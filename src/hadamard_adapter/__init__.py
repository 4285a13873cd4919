"""One of the smallest useful adapters for pre-trained transformers, as a method of Hugging Face PEFT.

Reading order: functional.py (the idea), adapter/ (the PEFT method), tasks/ (data and metrics), tuning/ (the
two-stage recipe), methods/ (what it is held against), bench/ (experiments), analysis/ (their reports and the
paper's analyses), serving/ (many tasks, one model), cli/ (the command).
"""

from typing import TYPE_CHECKING

from hadamard_adapter.after_peft import register_after_peft
from hadamard_adapter.lazy import lazy_getattr

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
__getattr__ = lazy_getattr(__name__, _HOME)

register_after_peft()
