"""How a classifier does on each of its classes: precision, recall, F1, and what is taken for what."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DataError, SettingsError
from .metrics import Array, checked_logits, decided
from .task import Task

__all__ = ["class_report"]


def class_report(
    task: Task, logits: Array, labels: Sequence[Any] | Array
) -> tuple[dict[str, dict[str, float]], list[list[int]]]:
    """Return precision, recall, f1 and support (rows) of each class by its name, and the confusion matrix.

    A share that is not defined, as the precision of a class that is never predicted, counts as 0. Rows of the
    matrix are true classes, columns predicted ones; with several labels a row there is none, and it is empty.

    Args:
        task: a classification task.
        logits: (b, l).
        labels: b class indices or multi-hot rows.

    Raises:
        SettingsError: the task is a regression.
        DivergedError: a logit is not finite.
        DataError: the shapes do not fit.

    Example:
        >>> task = Task("mood", "single_label_classification", ("bad", "good"), ("accuracy",))
        >>> per_class, confusion = class_report(task, np.array([[2.0, 1.0], [0.0, 1.0]]), [0, 0])
        >>> per_class["bad"]["recall"], confusion
        (0.5, [[1, 1], [0, 0]])
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    if task.problem_type == "regression":
        raise SettingsError(
            f"{task.name}: expected a classification task for a report by class, received a regression"
        )
    predicted = decided(task, checked_logits(task, logits))
    if len(labels) != len(predicted):
        raise DataError(
            f"{task.name}: expected as many labels as logits, received {len(labels)} and {len(predicted)}"
        )
    truth, classes = np.asarray(labels, dtype=np.int64), range(len(task.label_names))
    undefined: Any = 0  # scikit-learn's annotation knows words alone
    found: Any = precision_recall_fscore_support(truth, predicted, labels=classes, zero_division=undefined)
    per_class = {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in zip(task.label_names, *found, strict=True)
    }
    if task.problem_type != "single_label_classification":
        return per_class, []
    return per_class, confusion_matrix(truth, predicted, labels=classes).tolist()
