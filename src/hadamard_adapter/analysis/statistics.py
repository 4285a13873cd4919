"""Statistics of methods side by side: pure functions over arrays; which test says what stands with each."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

__all__ = [
    "Interval",
    "Summary",
    "holm",
    "interval_of",
    "permutation_p",
    "redrawn",
    "redrawn_accuracy",
    "redrawn_correlation",
    "summarise",
    "wilcoxon_p",
]


@dataclass(frozen=True)
class Summary:
    """Some values in short."""

    n: int
    """How many there are."""
    mean: float
    """Their mean."""
    sd: float | None
    """Their standard deviation with n - 1; None for one value."""
    median: float
    """Their median."""


@dataclass(frozen=True)
class Interval:
    """A difference and what chance makes of it."""

    difference: float
    """As found."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    p: float
    """Two-sided: twice the share of draws on the other side of zero, or on it."""


def summarise(values: Sequence[float]) -> Summary:
    """Number, mean, standard deviation and median.

    Args:
        values: at least one.

    Example:
        >>> summarise([1.0, 2.0, 6.0])
        Summary(n=3, mean=3.0, sd=2.6457513110645907, median=2.0)
    """
    array = np.asarray(values, dtype=np.float64)
    sd = float(array.std(ddof=1)) if len(array) > 1 else None
    return Summary(len(array), float(array.mean()), sd, float(np.median(array)))


def permutation_p(differences: Sequence[float]) -> float:
    """Two-sided p of a mean difference, over all changes of sign of paired differences.

    p = #{s in {-1, 1}^n : |mean(s · d)| >= |mean(d)|} / 2^n, exact up to 16 pairs, else over 50,000 draws
    (seed 0). With n seeds it cannot be below 2 / 2^n: three seeds never show significance by themselves.

    Source: Dror et al., The Hitchhiker's Guide to Testing Statistical Significance in NLP, ACL 2018.

    Args:
        differences: one a pair, such as a seed; at least one.

    Example:
        >>> permutation_p([0.1, 0.2, 0.3])
        0.25
    """
    d = np.asarray(differences, dtype=np.float64)
    if len(d) <= 16:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(d))))
        return float((np.abs(signs @ d) >= abs(d.sum()) - 1e-12).mean())
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(50_000, len(d)))
    return float(((np.abs(signs @ d) >= abs(d.sum()) - 1e-12).sum() + 1) / (50_000 + 1))


def wilcoxon_p(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test of paired differences; 1 where all are zero.

    Differences below 1e-12 are ties: two means of the same numbers in another order differ by rounding.

    Source: scipy.stats.wilcoxon; over tasks as in Demšar, Statistical Comparisons of Classifiers over
    Multiple Data Sets, JMLR 2006.

    Args:
        differences: one a pair, such as a task or a seed.

    Example:
        >>> wilcoxon_p([0.1, 0.2, 0.3, 0.4, 0.5])
        0.0625
    """
    from scipy.stats import wilcoxon

    d = np.asarray(differences, dtype=np.float64).round(12)
    if not d.any():
        return 1.0
    found: Any = wilcoxon(d)
    return float(found.pvalue)


def redrawn(
    score: Callable[[Shaped[np.ndarray, " b"], Shaped[np.ndarray, " b"]], float],
    labels: Shaped[np.ndarray, " b"],
    predicted: Shaped[np.ndarray, " b"],
    n_draws: int,
) -> Float[np.ndarray, " d"]:
    """Scores of a run: on the examples, then on each draw of as many of them with replacement (seed 0).

    The draws depend on the number of examples alone, so those of two runs are of the same rows.
    """
    return np.array([score(labels[rows], predicted[rows]) for rows in _draws(len(labels), n_draws)])


def redrawn_accuracy(
    labels: Shaped[np.ndarray, " b"], predicted: Shaped[np.ndarray, " b"], n_draws: int
) -> Float[np.ndarray, " d"]:
    """`redrawn` with the share of examples that are right, for all draws at once."""
    return _counts(len(labels), n_draws) @ (labels == predicted) / len(labels)


def redrawn_correlation(
    labels: Shaped[np.ndarray, " b"], predicted: Shaped[np.ndarray, " b"], n_draws: int
) -> Float[np.ndarray, " d"]:
    """`redrawn` with Pearson's correlation, for all draws at once; 0 where one of the two is constant.

    Of two classes it is Matthews' coefficient, whatever their numbers.
    """
    counts, n = _counts(len(labels), n_draws), len(labels)
    x, y = (values - values.mean() for values in (labels.astype(np.float64), predicted.astype(np.float64)))
    mean_x, mean_y, xy, xx, yy = (counts @ values / n for values in (x, y, x * y, x * x, y * y))
    spread = np.maximum(xx - mean_x**2, 0) * np.maximum(yy - mean_y**2, 0)
    constant = spread <= 1e-24 * max(1.0, float((x * x).max() * (y * y).max()))
    return np.where(constant, 0.0, (xy - mean_x * mean_y) / np.sqrt(np.where(constant, 1.0, spread)))


def _draws(n: int, n_draws: int) -> list[Int[np.ndarray, " b"]]:
    draw = np.random.default_rng(0)
    return [np.arange(n), *(draw.integers(0, n, n) for _ in range(n_draws))]


@functools.lru_cache(maxsize=8)
def _counts(n: int, n_draws: int) -> Float[np.ndarray, "d b"]:
    """How often each example counts in each draw."""
    return np.stack([np.bincount(rows, minlength=n).astype(np.float64) for rows in _draws(n, n_draws)])


def interval_of(
    one: Float[np.ndarray, "#n d"], other: Float[np.ndarray, "n d"], level: float = 0.95
) -> Interval:
    """Difference of two methods' mean scores, and its interval over draws of seeds and examples (bootstrap).

    In each draw the same seeds and the same rows count for both methods. Of n seeds a draw takes n - 1, with
    replacement: n would show (n - 1) / n of the variance that other seeds make, two thirds with three of
    them. It is still a guess from few seeds, and with one seed tells what other rows would change alone.

    Source: Sellam et al., The MultiBERTs, ICLR 2022 (the multi-bootstrap); McCarthy and Snowden, The
    Bootstrap and Finite Population Sampling, 1985 (n - 1); the percentile interval of Efron and Tibshirani.

    Args:
        one: a row a seed, as `redrawn` gives them; of a method without seeds one row.
        other: of the method that is compared with, seeds in the same order.
        level: share of draws inside the interval.

    Example:
        >>> right = lambda labels, predicted: float((labels == predicted).mean())
        >>> labels = np.array([0, 1] * 50)
        >>> one, other = (redrawn(right, labels, said, 99)[None] for said in (labels, 0 * labels))
        >>> interval_of(one, other).difference
        0.5
    """
    pairs = one - other
    n, n_draws = len(pairs), pairs.shape[1] - 1
    seeds = np.random.default_rng(0).integers(0, n, (max(1, n - 1), n_draws))
    drawn = pairs[seeds, np.arange(1, n_draws + 1)].mean(axis=0).round(12)  # ties, but for rounding
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    beyond = 1 + min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p = min(1.0, 2 * beyond / (n_draws + 1))
    return Interval(float(pairs[:, 0].mean().round(12)), float(low), float(high), p)


def holm(p_values: Sequence[float], n: int = 0) -> Float[np.ndarray, " n"]:
    """p-values corrected for their number by Holm's step-down method, in their order.

    p'(i) = max over j <= i of min(1, (m - j + 1) p(j)), p(1) <= ... <= p(m).

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.

    Args:
        p_values: those that are known.
        n: how many there will be, if more: those that are missing count as 1.

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
        >>> holm([0.01], n=5).tolist()
        [0.05]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.minimum(1.0, p[order] * (max(n, len(p)) - np.arange(len(p))))
    found = np.empty_like(p)
    found[order] = np.maximum.accumulate(corrected)
    return found
