"""Evaluation of a tuned adapter on labelled rows: scores, classes, errors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from hadamard_adapter.tasks import (
    METRICS,
    Examples,
    Table,
    Task,
    class_report,
    encode,
    predictions,
    read_table,
    score,
)
from hadamard_adapter.tasks.metrics import checked_logits, decided
from hadamard_adapter.tuning.classifier import Classifier, load

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """How well an adapter does on labelled rows."""

    scores: dict[str, float]
    """Name of the metric -> score. Accuracy, the share of rows that are right in all their labels, is among
    them but in regression."""
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
    max_length: int
    """Tokens after which a row was cut."""


def evaluate(
    folder: str | Path,
    data: str,
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    split: str | None = None,
    quoting: bool | None = None,
    delimiter: str | None = None,
    model: str | None = None,
    device: str | None = None,
    batch_size: int = 32,
    allow_remote_code: bool = False,
) -> Evaluation:
    """Scores of an adapter on a table of labelled rows.

    Args:
        folder: of the adapter.
        data: file, or name or folder of a dataset.
        text: column of the text; None: as in training.
        pair: column of the second text.
        label: column of the label.
        split: of a dataset.
        quoting: whether quotes enclose cells; None: yes in csv, no in tsv.
        delimiter: character between cells; None: comma in csv, tab in tsv.
        model: base model, where it has moved.
        device: cpu, cuda or mps.
        batch_size: rows at a time.
        allow_remote_code: whether code that comes with the base model may run.

    Raises:
        AdapterError: as `load`.
        DataError: a column, text or label is not as it must be.

    Example:
        >>> evaluate("out", "test.csv").scores["accuracy"]  # doctest: +SKIP
        0.9
    """
    table = read_table(data, quoting=quoting, delimiter=delimiter, split=split)
    classifier = load(folder, model, device, allow_remote_code)
    columns = classifier.columns_in(table, text, pair, label, need_label=True)
    task, examples = classifier.task, encode(table, columns, classifier.task)
    labels = examples.labels or []
    logits, n_cut = classifier.logits_and_cuts(examples.texts, examples.pairs, batch_size)
    scores = score(task, logits, labels)
    per_class: dict[str, dict[str, float]] = {}
    confusion: list[list[int]] = []
    if task.problem_type != "regression":
        per_class, confusion = class_report(task, logits, labels)
        predicted = decided(task, checked_logits(task, logits))
        scores = {**scores, "accuracy": METRICS["accuracy"].compute(np.asarray(labels), predicted)}
    return Evaluation(
        scores=scores,
        per_class=per_class,
        confusion=confusion,
        label_names=task.label_names,
        n_rows=len(examples.texts),
        n_truncated=n_cut,
        errors=_errors(classifier, examples, logits, table),
        max_length=classifier.max_length,
    )


def _errors(
    classifier: Classifier, examples: Examples, logits: Float[np.ndarray, "b l"], table: Table
) -> list[dict[str, Any]]:
    task, errors = classifier.task, []
    if task.problem_type == "regression":
        return []
    predicted, probabilities = predictions(task, logits)
    for index, label in enumerate(examples.labels or []):
        true, said = _name(task, label), predicted[index]
        said = said if isinstance(said, str) else task.separator.join(said)
        if said == true:
            continue
        errors.append(
            {
                "row": table.row_numbers[index],
                "text": examples.texts[index],
                "pair": examples.pairs[index] if examples.pairs is not None else None,
                "label": true,
                "predicted": said,
                "probability": round(float(probabilities[index].max()), 6),
            }
        )
    return errors


def _name(task: Task, label: Any) -> str:
    """Name of a true label; of several, as the training rows join them."""
    if isinstance(label, (int, np.integer)):
        return task.label_names[label]
    return task.separator.join(name for name, hit in zip(task.label_names, label, strict=True) if hit)
