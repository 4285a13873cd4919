"""Scores of logits against labels: one row per metric, with the kinds of problem it fits.

scikit-learn and SciPy are imported where they are used: they would double the start-up time of the commands.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, DivergedError, SettingsError
from .reading import words
from .task import PROBLEM_TYPES, Task

__all__ = [
    "DEFAULT_METRICS",
    "METRICS",
    "Metric",
    "checked_logits",
    "choose_metrics",
    "decided",
    "predictions",
    "score",
]

Array = NDArray[Any]

_SINGLE, _MULTI, _REGRESSION = PROBLEM_TYPES


@dataclass(frozen=True)
class Metric:
    """A row of METRICS: `Metric(f, ("regression",))`."""

    compute: Callable[[Array, Array], float]
    """Labels and predictions to a score: class indices (b,), multi-hot (b, l), or numbers (b,)."""
    problem_types: tuple[str, ...]
    """The kinds of problem it is defined for."""
    greater_is_better: bool = True
    """False for errors (mse, rmse, mae), where the smallest is the best."""
    is_binary: bool = False
    """True where exactly two classes are needed; the last label is the positive one."""

    @property
    def sign(self) -> int:
        """1 where the greater score is the better, else -1."""
        return 1 if self.greater_is_better else -1


def score(task: Task, logits: Array, labels: Sequence[Any] | Array) -> dict[str, float]:
    """Return every metric of the task by name; correlations and mcc in -1..1, errors ≥ 0, the rest in 0..1.

    A correlation with constant predictions, which is not defined, counts as 0.

    Args:
        task: what was learned.
        logits: (b, l), in regression (b, 1) or (b,).
        labels: b class indices, multi-hot rows or numbers, as in `Examples.labels`.

    Raises:
        DivergedError: a logit is not finite.
        DataError: the shapes do not fit the task.

    Example:
        >>> task = Task("mood", "single_label_classification", ("bad", "good"), ("accuracy",))
        >>> score(task, np.array([[2.0, 1.0], [0.0, 1.0]]), [0, 0])
        {'accuracy': 0.5}
    """
    checked = checked_logits(task, logits)
    if len(labels) != len(checked) or not len(checked):
        raise DataError(
            f"expected as many labels as logits and at least one, received {len(labels)} and {len(checked)}"
        )
    truth = np.asarray(labels, dtype=np.int64 if task.problem_type == _SINGLE else np.float64)
    predicted = decided(task, checked)
    return {name: float(METRICS[name].compute(truth, predicted)) for name in task.metrics}


def predictions(task: Task, logits: Array) -> tuple[list[Any], Array]:
    """Return the predicted labels and the probabilities (b, l) in float64.

    Single label: a name each, softmax. Multi-label: a list of names each, sigmoid. Regression: a float each
    and an array of shape (b, 0), for there are no probabilities.

    Args:
        task: what was learned.
        logits: (b, l), in regression (b, 1) or (b,).

    Raises:
        DivergedError: a logit is not finite.
        DataError: the shape does not fit the task.

    Example:
        >>> task = Task("mood", "single_label_classification", ("bad", "good"), ("accuracy",))
        >>> predictions(task, np.array([[0.0, 0.0], [0.0, 1.0]]))[0]
        ['bad', 'good']
    """
    checked = checked_logits(task, logits)
    chosen = decided(task, checked)
    names = task.label_names
    if task.problem_type == _REGRESSION:
        return [float(value) for value in chosen], np.zeros((len(checked), 0))
    if task.problem_type == _MULTI:
        hits = [[name for name, hit in zip(names, row, strict=True) if hit] for row in chosen]
        return hits, _sigmoid(checked)
    powers = np.exp(checked - checked.max(axis=1, keepdims=True))
    return [names[index] for index in chosen], powers / powers.sum(axis=1, keepdims=True)


def choose_metrics(problem_type: str, n_labels: int, metric: str | None = None) -> tuple[str, ...]:
    """Return the metrics of a task: `metric` first if given, then the usual ones of its kind.

    Raises:
        SettingsError: the metric is not known or not defined for this kind of problem.

    Example:
        >>> choose_metrics("single_label_classification", 2, "mcc")
        ('mcc', 'accuracy', 'macro-f1')
    """
    usual = DEFAULT_METRICS[problem_type]
    if metric is None:
        return usual
    fitting = [
        name
        for name, row in METRICS.items()
        if problem_type in row.problem_types and (n_labels == 2 or not row.is_binary)
    ]
    if metric not in fitting:
        why = "is not known" if metric not in METRICS else f"does not fit {PROBLEM_TYPES[problem_type]}"
        if metric in METRICS and problem_type in METRICS[metric].problem_types:
            why = f"needs exactly two classes, these are {n_labels}"
        raise SettingsError(f"the metric {metric!r} {why}; expected one of {words(fitting)}")
    return (metric, *(name for name in usual if name != metric))


def checked_logits(task: Task, logits: Array) -> Array:
    """Return logits as float64 (b, l) after checking their shape and that they are finite.

    Raises:
        DivergedError: a logit is not finite.
        DataError: the shape does not fit the task.

    Example:
        >>> checked_logits(Task("s", "regression", (), ("pearson",)), np.array([1.0, 2.0])).shape
        (2, 1)
    """
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim == 1 and task.n_outputs == 1:
        values = values[:, None]
    if values.ndim != 2 or values.shape[1] != task.n_outputs:
        raise DataError(
            f"{task.name}: expected logits of shape (rows, {task.n_outputs}), received {np.shape(logits)!r}; "
            "the model's head must have one output for each of: "
            f"{words(task.label_names) or 'the single number'}"
        )
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if broken.size:
        raise DivergedError(
            f"{task.name}: {broken.size} of {len(values)} rows of logits are not finite (first: row "
            f"{broken[0]}, {values[broken[0]].tolist()!r}); lower the learning rate, or compute in fp32"
        )
    return values


def decided(task: Task, logits: Array) -> Array:
    """Return class indices (b,), multi-hot rows (b, l) or numbers (b,) for checked logits (b, l).

    Example:
        >>> task = Task("x", "single_label_classification", ("a", "b"), ("accuracy",))
        >>> decided(task, np.array([[0.0, 1.0]]))
        array([1])
    """
    if task.problem_type == _REGRESSION:
        return logits[:, 0]
    if task.problem_type == _MULTI:
        return (_sigmoid(logits) >= task.threshold).astype(np.float64)
    return logits.argmax(axis=1)


def _sigmoid(logits: Array) -> Array:
    from scipy.special import expit

    return np.asarray(expit(logits))


def _accuracy(labels: Array, predicted: Array) -> float:
    return float((labels == predicted).reshape(len(labels), -1).all(axis=1).mean())


def _sklearn(name: str, **options: Any) -> Callable[[Array, Array], float]:
    def compute(labels: Array, predicted: Array) -> float:
        import sklearn.metrics

        return float(getattr(sklearn.metrics, name)(labels, predicted, **options))

    return compute


def _f1(average: str) -> Callable[[Array, Array], float]:
    return _sklearn("f1_score", average=average, zero_division=0)


def _mcc(labels: Array, predicted: Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    if len(np.unique(labels)) < 2 or len(np.unique(predicted)) < 2:
        return 0.0
    return float(matthews_corrcoef(labels, predicted))


def _correlation(name: str) -> Callable[[Array, Array], float]:
    def compute(labels: Array, predicted: Array) -> float:
        from scipy import stats

        if len(labels) < 2 or np.ptp(labels) == 0:
            return 0.0
        # Predictions that differ by rounding only are constant for our purpose; their correlation is noise.
        if np.ptp(predicted) <= 1e-12 * max(1.0, float(np.abs(predicted).max())):
            return 0.0
        return float(getattr(stats, name)(labels, predicted)[0])

    return compute


def _r2(labels: Array, predicted: Array) -> float:
    spread = float(np.square(labels - labels.mean()).sum())
    return 1.0 - float(np.square(labels - predicted).sum()) / spread if spread > 0 else 0.0


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy, (_SINGLE,)),
    "f1": Metric(_f1("binary"), (_SINGLE,), is_binary=True),
    "macro-f1": Metric(_f1("macro"), (_SINGLE, _MULTI)),
    "micro-f1": Metric(_f1("micro"), (_SINGLE, _MULTI)),
    "mcc": Metric(_mcc, (_SINGLE,)),
    "subset-accuracy": Metric(_accuracy, (_MULTI,)),
    "pearson": Metric(_correlation("pearsonr"), (_REGRESSION,)),
    "spearman": Metric(_correlation("spearmanr"), (_REGRESSION,)),
    "mse": Metric(_sklearn("mean_squared_error"), (_REGRESSION,), greater_is_better=False),
    "rmse": Metric(_sklearn("root_mean_squared_error"), (_REGRESSION,), greater_is_better=False),
    "mae": Metric(_sklearn("mean_absolute_error"), (_REGRESSION,), greater_is_better=False),
    "r2": Metric(_r2, (_REGRESSION,)),
}
"""Name, as in --metric, to row; f1 counts the last label as positive."""

DEFAULT_METRICS: dict[str, tuple[str, ...]] = {
    _SINGLE: ("accuracy", "macro-f1"),
    _MULTI: ("micro-f1", "macro-f1", "subset-accuracy"),
    _REGRESSION: ("pearson", "spearman", "rmse"),
}
"""Kind of problem to the metrics that are computed when none is asked for."""
