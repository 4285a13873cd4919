"""The recipe: settings, two-stage training on the Hugging Face Trainer, use and export of what it made."""

from typing import TYPE_CHECKING

from hadamard_adapter.lazy import lazy_getattr
from hadamard_adapter.tuning.settings import PRESETS, TuneSettings, field_help, resolve

if TYPE_CHECKING:
    from hadamard_adapter.tuning.classifier import Classifier, Prediction, load
    from hadamard_adapter.tuning.evaluation import Evaluation, evaluate
    from hadamard_adapter.tuning.export import merge
    from hadamard_adapter.tuning.recipe import TuneResult, tune
    from hadamard_adapter.tuning.stage import Progress

__all__ = [
    "PRESETS",
    "Classifier",
    "Evaluation",
    "Prediction",
    "Progress",
    "TuneResult",
    "TuneSettings",
    "evaluate",
    "field_help",
    "load",
    "merge",
    "resolve",
    "tune",
]

_HOME = {  # what needs PyTorch is imported when it is asked for
    "Classifier": "classifier",
    "Evaluation": "evaluation",
    "Prediction": "classifier",
    "Progress": "stage",
    "TuneResult": "recipe",
    "evaluate": "evaluation",
    "load": "classifier",
    "merge": "export",
    "tune": "recipe",
}
__getattr__ = lazy_getattr(__name__, _HOME)
