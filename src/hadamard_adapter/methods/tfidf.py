"""The floor of every comparison: words and word pairs counted, and a linear model. No pre-trained model."""

from typing import Any, NoReturn

import numpy as np
from scipy.special import logit
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from hadamard_adapter.errors import DataError
from hadamard_adapter.methods.method import Logits
from hadamard_adapter.tasks import Examples, Task

__all__ = ["no_model", "tfidf"]

TINY = 1e-12


def tfidf(task: Task, train: Examples, c: float) -> tuple[Logits, int]:
    """TF-IDF of words and word pairs, then logistic regression; ridge regression for numbers.

        logits = W tfidf(text, pair) + b,   penalty |W|² / 2C (for numbers alpha = 1 / C)

    A pair's two texts are joined: what they share is not seen. A class that no training row has never wins.

    Args:
        task: its problem type and labels.
        train: rows with labels.
        c: inverse of the strength of the penalty, above zero.

    Returns:
        What gives logits, and the number of fitted coefficients.

    Raises:
        DataError: no word in any row, or one class alone.

    Source: scikit-learn's TfidfVectorizer, LogisticRegression (one a label in multi-label tasks), Ridge.
    """
    words = TfidfVectorizer(ngram_range=(1, 2))
    try:
        return _fitted(words, task, train, c)
    except ValueError as error:
        raise DataError(f"TF-IDF and a linear model: expected words and two classes, {error}") from error


def _fitted(words: TfidfVectorizer, task: Task, train: Examples, c: float) -> tuple[Logits, int]:
    if task.problem_type == "regression":
        model = make_pipeline(words, Ridge(alpha=1 / c))
        model.fit(_joined(train.texts, train.pairs), train.labels)
        return lambda texts, pairs: model.predict(_joined(texts, pairs))[:, None], _size(model[-1])
    inner = LogisticRegression(C=c, max_iter=1000)
    is_multi = task.problem_type == "multi_label_classification"
    last: Any = OneVsRestClassifier(inner) if is_multi else inner
    model = make_pipeline(words, last)
    model.fit(_joined(train.texts, train.pairs), np.asarray(train.labels))
    classes = np.arange(task.n_outputs) if is_multi else last.classes_

    def logits(texts: list[str], pairs: list[str] | None) -> np.ndarray:
        seen = np.clip(model.predict_proba(_joined(texts, pairs)), TINY, 1 - TINY)
        found = np.full((len(texts), task.n_outputs), np.log(TINY))
        found[:, classes] = logit(seen) if is_multi else np.log(seen)
        return found

    return logits, sum(_size(one) for one in (last.estimators_ if is_multi else [last]))


def no_model(base: Any, head: tuple[str, ...]) -> NoReturn:
    """Stands in the table where a method has no model to make."""
    raise AssertionError("fitted, not trained: it has no model")


def _joined(texts: list[str], pairs: list[str] | None) -> list[str]:
    return texts if pairs is None else [f"{a} {b}" for a, b in zip(texts, pairs, strict=True)]


def _size(model: Any) -> int:
    """Fitted numbers; a label that all rows have, or none, has no model."""
    return sum(int(np.size(getattr(model, name, ()))) for name in ("coef_", "intercept_"))
