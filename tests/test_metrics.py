"""Metrics: every row against its definition, degenerate predictions, and the report by class."""

import warnings
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from hadamard_adapter.errors import DataError, SettingsError, TrainingError
from hadamard_adapter.tasks import (
    METRICS,
    PROBLEM_TYPES,
    Task,
    choose_metrics,
    class_report,
    predictions,
    score,
)

SINGLE, MULTI, REGRESSION = PROBLEM_TYPES
NAMES = {SINGLE: ("bad", "good"), MULTI: ("a", "b", "c"), REGRESSION: ()}

REFERENCE: dict[tuple[str, str], Any] = {
    (SINGLE, "accuracy"): reference.accuracy_score,
    (SINGLE, "f1"): reference.f1_score,
    (SINGLE, "macro-f1"): lambda y, p: reference.f1_score(y, p, average="macro"),
    (SINGLE, "micro-f1"): lambda y, p: reference.f1_score(y, p, average="micro"),
    (SINGLE, "mcc"): reference.matthews_corrcoef,
    (MULTI, "macro-f1"): lambda y, p: reference.f1_score(y, p, average="macro"),
    (MULTI, "micro-f1"): lambda y, p: reference.f1_score(y, p, average="micro"),
    (MULTI, "subset-accuracy"): reference.accuracy_score,
    (REGRESSION, "pearson"): lambda y, p: stats.pearsonr(y, p)[0],
    (REGRESSION, "spearman"): lambda y, p: stats.spearmanr(y, p)[0],
    (REGRESSION, "mse"): reference.mean_squared_error,
    (REGRESSION, "rmse"): reference.root_mean_squared_error,
    (REGRESSION, "mae"): reference.mean_absolute_error,
    (REGRESSION, "r2"): reference.r2_score,
}
CASES = [(kind, name) for name, row in METRICS.items() for kind in row.problem_types]


def task_of(kind: str, *names: str) -> Task:
    return Task("test", kind, NAMES[kind], names or choose_metrics(kind, len(NAMES[kind])))


def sample(kind: str) -> tuple[np.ndarray, list[Any], Any]:
    random = np.random.default_rng(3)
    if kind == REGRESSION:
        labels = random.normal(size=40)
        logits = labels + random.normal(size=40)
        return logits[:, None], labels.tolist(), logits
    width = len(NAMES[kind])
    logits = random.normal(size=(40, width))
    if kind == MULTI:
        return logits, (random.random((40, width)) < 0.4).astype(float).tolist(), (logits >= 0).astype(float)
    return logits, random.integers(0, width, 40).tolist(), logits.argmax(1)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_metric_equals_its_definition(kind: str, name: str) -> None:
    logits, labels, decided = sample(kind)
    expected = REFERENCE[kind, name](np.asarray(labels), decided)
    assert score(task_of(kind, name), logits, labels) == {name: pytest.approx(expected, abs=1e-12)}


@pytest.mark.parametrize(("kind", "name"), CASES)
@pytest.mark.parametrize("side", ["predictions", "labels", "both", "one row"])
def test_constant_predictions_and_labels_give_a_number_without_a_warning(
    kind: str, name: str, side: str
) -> None:
    logits, labels, _ = sample(kind)
    if side in ("predictions", "both"):
        logits = np.zeros_like(logits) + 0.1
    if side in ("labels", "both"):
        labels = [labels[0]] * len(labels)
    if side == "one row":
        logits, labels = logits[:1], labels[:1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = score(task_of(kind, name), logits, labels)[name]
    assert np.isfinite(value)
    if name in ("mcc", "pearson", "spearman"):
        assert value == 0.0


def test_all_wrong_and_all_right_are_the_ends_of_the_scale() -> None:
    right, wrong = np.eye(2)[[0, 1, 0]], np.eye(2)[[1, 0, 1]]
    names = ("accuracy", "f1", "macro-f1", "mcc")
    assert set(score(task_of(SINGLE, *names), right, [0, 1, 0]).values()) == {1.0}
    assert list(score(task_of(SINGLE, *names), wrong, [0, 1, 0]).values()) == [0.0, 0.0, 0.0, -1.0]


@pytest.mark.parametrize("kind", PROBLEM_TYPES)
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(kind: str, broken: float) -> None:
    logits, labels, _ = sample(kind)
    logits[5, 0] = broken
    with pytest.raises(TrainingError, match=r"1 of 40 rows of logits are not finite \(first: row 5"):
        score(task_of(kind), logits, labels)
    with pytest.raises(TrainingError, match="not finite"):
        predictions(task_of(kind), logits)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"expected logits of shape \(rows, 2\), received \(4, 3\)"):
        score(task_of(SINGLE), np.zeros((4, 3)), [0] * 4)
    with pytest.raises(DataError, match="as many labels as logits"):
        score(task_of(SINGLE), np.zeros((4, 2)), [0] * 3)
    with pytest.raises(DataError, match="at least one"):
        score(task_of(SINGLE), np.zeros((0, 2)), [])


def test_predictions_carry_names_and_probabilities() -> None:
    labels, shares = predictions(task_of(SINGLE), np.array([[0.0, np.log(3.0)], [1000.0, -1000.0]]))
    assert labels == ["good", "bad"]
    np.testing.assert_allclose(shares, [[0.25, 0.75], [1.0, 0.0]], atol=1e-12)
    strict = Task("x", MULTI, NAMES[MULTI], ("micro-f1",), threshold=0.7)
    hits, shares = predictions(strict, np.array([[0.0, 1.0, -1000.0]], dtype=np.float32))
    assert hits == [["b"]]
    np.testing.assert_allclose(shares, [[0.5, 1 / (1 + np.exp(-1.0)), 0.0]], atol=1e-7)
    numbers, none = predictions(task_of(REGRESSION), np.array([1.5, -2.0]))
    assert (numbers, none.shape) == ([1.5, -2.0], (2, 0))


def test_the_report_by_class_equals_its_definition() -> None:
    for kind in (SINGLE, MULTI):
        logits, labels, decided = sample(kind)
        task = task_of(kind)
        per_class, confusion = class_report(task, logits, labels)
        truth = np.asarray(labels)
        n_labels = len(task.label_names)
        is_true, is_said = (
            values.astype(bool) if kind == MULTI else values[:, None] == np.arange(n_labels)
            for values in (truth, decided)
        )
        assert tuple(per_class) == task.label_names
        for index, row in enumerate(per_class.values()):
            hits = int((is_true & is_said)[:, index].sum())
            n_true, n_said = int(is_true[:, index].sum()), int(is_said[:, index].sum())
            expected = [hits / n_said, hits / n_true, 2 * hits / (n_true + n_said), n_true]
            np.testing.assert_allclose(list(row.values()), expected)
        counts = (is_true[:, :, None] & is_said[:, None]).sum(axis=0).tolist()
        assert confusion == (counts if kind == SINGLE else [])


def test_the_report_counts_a_class_that_never_occurs_as_zero() -> None:
    task = Task("x", SINGLE, ("a", "b", "c"), ("accuracy",))
    per_class, confusion = class_report(task, np.eye(3)[[0, 1]], [0, 1])
    assert [(row["f1"], row["support"]) for row in per_class.values()] == [(1.0, 1), (1.0, 1), (0.0, 0)]
    assert confusion == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    with pytest.raises(SettingsError, match="received a regression"):
        class_report(task_of(REGRESSION), np.zeros(2), [0.0, 1.0])
