"""Statistics of methods side by side, against SciPy and against what can be counted by hand."""

import numpy as np
import pytest
from scipy import stats

from hadamard_adapter.analysis.statistics import (
    Interval,
    holm,
    interval_of,
    permutation_p,
    redrawn,
    redrawn_accuracy,
    redrawn_correlation,
    summarise,
    wilcoxon_p,
)
from hadamard_adapter.tasks import METRICS


def accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    return float((labels == predicted).mean())


def bootstrap(labels: np.ndarray, one: np.ndarray, other: np.ndarray, n_draws: int) -> Interval:
    """Of the accuracies of two runs."""
    return interval_of(*(redrawn(accuracy, labels, run, n_draws)[None] for run in (one, other)))


@pytest.mark.parametrize("metric", ["accuracy", "mcc", "pearson"])
@pytest.mark.parametrize("kind", ["usual", "one class", "few rows"])
def test_all_draws_at_once_are_the_same_draws(metric: str, kind: str) -> None:
    chance, n = np.random.default_rng(3), 5 if kind == "few rows" else 60
    numbers = chance.normal(size=(2, n)) + 3
    labels, predicted = numbers if metric == "pearson" else (numbers > 3).astype(float)
    if kind == "one class":
        predicted = np.full(n, 1.0)
    at_once = redrawn_accuracy if metric == "accuracy" else redrawn_correlation
    expected = redrawn(METRICS[metric].compute, labels, predicted, n_draws=50)
    np.testing.assert_allclose(at_once(labels, predicted, 50), expected, atol=1e-12)


def test_a_p_by_example_is_small_where_no_draw_is_on_the_other_side_and_one_without_a_difference() -> None:
    labels = np.array([0, 1] * 50)
    right, wrong = (redrawn_accuracy(labels, run, 199)[None] for run in (labels, 1 - labels))
    assert interval_of(right, wrong).p == interval_of(wrong, right).p == pytest.approx(2 / 200)
    assert interval_of(right, right).p == 1.0


def test_an_interval_holds_what_other_seeds_would_change() -> None:
    """Seeds that differ, rows that do not: its variance is the unbiased guess of the mean's, s² / n."""
    differences = np.random.default_rng(0).normal(size=6)
    one = np.repeat(differences[:, None], 20_001, axis=1)
    found = interval_of(one, np.zeros_like(one), level=0.683)
    assert found.difference == pytest.approx(differences.mean())
    assert (found.high - found.low) / 2 == pytest.approx(differences.std(ddof=1) / np.sqrt(6), rel=0.05)
    alone = interval_of(one[:1], np.zeros_like(one))  # a method without seeds
    assert alone.low == alone.high == pytest.approx(differences[0])


def test_one_value_has_no_spread() -> None:
    assert summarise([0.5]).sd is None
    assert summarise([1.0, 3.0]).sd == pytest.approx(np.sqrt(2))


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_permutation_equals_scipys(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.3, 1.0, n)
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert permutation_p(differences.tolist()) == pytest.approx(expected.pvalue)
    assert permutation_p(np.abs(differences).tolist()) == pytest.approx(2 / 2**n)


def test_many_pairs_are_drawn_and_give_what_a_t_test_gives() -> None:
    differences = np.random.default_rng(0).normal(0.4, 1.0, 40)
    assert permutation_p(differences.tolist()) == pytest.approx(
        stats.ttest_1samp(differences, 0.0).pvalue, abs=0.01
    )


def test_no_difference_is_no_evidence() -> None:
    assert permutation_p([0.0, 0.0, 0.0]) == 1.0
    assert wilcoxon_p([0.0, 0.0]) == 1.0
    others = [-0.05, -0.03, -0.02, -0.04]
    assert wilcoxon_p([-1.1e-16, *others]) == wilcoxon_p([0.0, *others]) == 0.125  # a tie but for rounding


def test_differences_that_are_ties_but_for_rounding_count_on_both_sides() -> None:
    one = np.array([[0.3, 0.1, 0.1], [0.1, 0.1, 0.1], [0.2, 0.1, 0.1]])
    other = one[::-1] + 0.0
    assert (one.mean(axis=0) - (other * 1.0000000000000002).mean(axis=0)).any()
    assert interval_of(one, other * 1.0000000000000002).p == 1.0


def test_holm_equals_the_definition_and_never_lowers_a_p() -> None:
    p = np.random.default_rng(1).uniform(size=12)
    found = holm(p.tolist())
    order = np.argsort(p)
    by_hand = [max(min(1, (12 - j) * p[order[j]]) for j in range(i + 1)) for i in range(12)]
    np.testing.assert_allclose(found[order], by_hand)
    assert (found >= p).all() and holm([0.2]).tolist() == [0.2]


def test_the_bootstrap_covers_the_difference_as_often_as_it_says() -> None:
    """Two methods right with 0.8 and 0.7, independently: the interval holds 0.1 in about 95 of 100 draws."""
    n_covered, widths = 0, list[float]()
    for trial in range(60):
        draw = np.random.default_rng(trial)
        labels = draw.integers(0, 2, 150)
        one, other = (np.where(draw.uniform(size=150) < right, labels, 1 - labels) for right in (0.8, 0.7))
        found = bootstrap(labels, one, other, n_draws=200)
        n_covered += found.low <= 0.1 <= found.high
        widths.append(found.high - found.low)
    assert 51 <= n_covered <= 60
    variance = (0.8 * 0.2 + 0.7 * 0.3) / 150
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(variance), rel=0.1)


def test_the_same_predictions_differ_by_nothing_in_every_draw() -> None:
    labels = np.arange(20) % 2
    found = bootstrap(labels, labels, labels, n_draws=20)
    assert (found.difference, found.low, found.high) == (0.0, 0.0, 0.0)
