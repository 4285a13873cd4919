"""Use of a tuned adapter: load it with checks, predict, evaluate."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Classifier", "Evaluation", "Prediction", "evaluate", "load"]


@dataclass(frozen=True)
class Prediction:
    """What the classifier says about one text."""

    label: str | tuple[str, ...] | None
    """Name of the most probable label; multi-label: all from the threshold on; regression: None."""
    probabilities: dict[str, float] = field(default_factory=dict)
    """Name of each label -> its probability; empty for regression."""
    value: float | None = None
    """The predicted number, for regression."""


@dataclass(frozen=True)
class Evaluation:
    """How well an adapter does on labelled rows."""

    scores: dict[str, float]
    """Name of the metric -> score (accuracy is among them where classes are predicted)."""
    per_class: dict[str, dict[str, float]]
    """Name of the class -> precision, recall, f1, support; empty for regression."""
    confusion: list[list[int]]
    """Row: true class, column: predicted class, in the order of `label_names`; empty unless single label."""
    label_names: tuple[str, ...]
    """Names of the classes."""
    n_rows: int
    """Number of rows."""
    n_truncated: int
    """Number of rows that were cut to the maximal length."""
    errors: list[dict[str, Any]]
    """Rows where the prediction is wrong: row, text, pair, label, predicted, probability."""


class Classifier:
    """A base model with one tuned adapter, ready to predict; made by `load`."""

    def predict(
        self, texts: list[str], pairs: list[str] | None = None, batch_size: int = 32
    ) -> list[Prediction]:
        """One prediction per text, in the order of the texts."""
        raise NotImplementedError

    def logits(self, texts: list[str], pairs: list[str] | None = None, batch_size: int = 32) -> np.ndarray:
        """Logits (b, l) as float32, in the order of the texts."""
        raise NotImplementedError


def load(
    folder: str, model: str | None = None, device: str | None = None, allow_remote_code: bool = False
) -> Classifier:
    """The classifier in a folder that `tune` made."""
    raise NotImplementedError


def evaluate(
    folder: str,
    data: str,
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    split: str | None = None,
    quoting: bool | None = None,
    model: str | None = None,
    device: str | None = None,
    batch_size: int = 32,
    allow_remote_code: bool = False,
) -> Evaluation:
    """Scores of an adapter on a table of labelled rows."""
    raise NotImplementedError
