"""How a classifier does on each of its classes: precision, recall, F1, and what is taken for what."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError, SettingsError
from .metrics import Array, checked_logits, decided
from .task import Task

__all__ = ["ClassReport", "ClassRow", "class_report"]


@dataclass(frozen=True)
class ClassRow:
    """One class: `ClassRow("good", 0.9, 0.8, 0.85, 120)`."""

    label: str
    """Name of the class."""
    precision: float
    """Share of the rows predicted as this class that are of it; 0 where none is predicted."""
    recall: float
    """Share of the rows of this class that are predicted as it; 0 where there are none."""
    f1: float
    """Harmonic mean of the two; 0 where both are."""
    support: int
    """Number of rows of this class."""


@dataclass(frozen=True)
class ClassReport:
    """All classes: `report.classes[0].recall`, `report.confusion[true][predicted]`."""

    classes: tuple[ClassRow, ...]
    """In the order of the task's labels."""
    confusion: tuple[tuple[int, ...], ...]
    """Single label: rows are the true class, columns the predicted one. Multi-label: a row per label with
    (true negatives, false positives, false negatives, true positives)."""


def class_report(task: Task, logits: Array, labels: Sequence[Any] | Array) -> ClassReport:
    """Return the report of each class and the confusion matrix.

    Args:
        task: a classification task.
        logits: (b, l).
        labels: b class indices or multi-hot rows.

    Raises:
        SettingsError: the task is a regression.
        TrainingError: a logit is not finite.
        DataError: the shapes do not fit.

    Example:
        >>> task = Task("mood", "single_label_classification", ("bad", "good"), ("accuracy",))
        >>> class_report(task, np.array([[2.0, 1.0], [0.0, 1.0]]), [0, 0]).confusion
        ((1, 1), (0, 0))
    """
    if task.problem_type == "regression":
        raise SettingsError(
            f"{task.name}: expected a classification task for a report by class, received a regression"
        )
    predicted = decided(task, checked_logits(task, logits))
    if len(labels) != len(predicted):
        raise DataError(
            f"{task.name}: expected as many labels as logits, received {len(labels)} and {len(predicted)}"
        )
    n_labels = len(task.label_names)
    if task.problem_type == "single_label_classification":
        truth = np.asarray(labels, dtype=np.int64)
        confusion = np.zeros((n_labels, n_labels), dtype=np.int64)
        np.add.at(confusion, (truth, predicted), 1)
        hits = confusion.diagonal()
        n_predicted, n_true = confusion.sum(axis=0), confusion.sum(axis=1)
    else:
        truth, chosen = np.asarray(labels, dtype=bool).reshape(-1, n_labels), predicted.astype(bool)
        hits, n_predicted, n_true = (truth & chosen).sum(axis=0), chosen.sum(axis=0), truth.sum(axis=0)
        confusion = np.stack(
            [len(truth) - n_predicted - n_true + hits, n_predicted - hits, n_true - hits, hits], axis=1
        )
    rows = tuple(
        _row(name, int(hit), int(n_chosen), int(n_real))
        for name, hit, n_chosen, n_real in zip(task.label_names, hits, n_predicted, n_true, strict=True)
    )
    return ClassReport(rows, tuple(tuple(int(count) for count in line) for line in confusion))


def _row(label: str, hits: int, n_predicted: int, n_true: int) -> ClassRow:
    precision = hits / n_predicted if n_predicted else 0.0
    recall = hits / n_true if n_true else 0.0
    f1 = 2 * hits / (n_predicted + n_true) if hits else 0.0
    return ClassRow(label, precision, recall, f1, n_true)
