"""The recipe: settings, two-stage training on the Hugging Face Trainer, use and export of what it made."""

from hadamard_adapter.tuning.classifier import Classifier, Prediction, load
from hadamard_adapter.tuning.evaluation import Evaluation, evaluate, evaluate_examples
from hadamard_adapter.tuning.export import MergeReport, merge
from hadamard_adapter.tuning.recipe import TuneResult, say_on_stderr, tune
from hadamard_adapter.tuning.settings import PRESETS, Preset, TuneSettings, field_help, resolve
from hadamard_adapter.tuning.stage import Progress

__all__ = [
    "PRESETS",
    "Classifier",
    "Evaluation",
    "MergeReport",
    "Prediction",
    "Preset",
    "Progress",
    "TuneResult",
    "TuneSettings",
    "evaluate",
    "evaluate_examples",
    "field_help",
    "load",
    "merge",
    "resolve",
    "say_on_stderr",
    "tune",
]
