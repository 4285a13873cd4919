"""A method against another one, its reference: by seed, and by seeds and dev rows that are drawn again."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from hadamard_adapter.analysis.statistics import (
    Interval,
    interval_of,
    permutation_p,
    redrawn,
    redrawn_accuracy,
    redrawn_correlation,
)
from hadamard_adapter.bench.results import Results
from hadamard_adapter.methods import is_fit
from hadamard_adapter.tasks import METRICS

__all__ = ["N_DRAWS", "Comparison", "compared", "largest", "last_begun"]

N_DRAWS = 2000
"""Of seeds and dev rows, for an interval."""

_SAME = ("model_content", "train_data", "dev_data", "batch_size", "max_length", "recipe")
"""Settings that two runs share where one is held against the other, beside the dev rows that score them."""


_T = TypeVar("_T")


@dataclass(frozen=True)
class Comparison:
    """A method against another one, its reference, on the same rows."""

    by_seed: tuple[float, ...]
    """Differences of seeds that both have; empty for a fit, which has no seeds."""
    permutation_p: float | None
    """Of these differences, exact; None where there are none."""
    corrected_p: float | None
    """The same, corrected over the tasks of the model by Holm's method."""
    interval: Interval | None
    """Bootstrap over seeds and dev rows; None where predictions were not kept."""
    corrected_interval_p: float | None
    """Its p, corrected as that of the seeds."""


def largest(found: Iterable[_T], size: Callable[[_T], Any]) -> _T | None:
    """The one of the greatest size; None where there is none, or where several are as great.

    Example:
        >>> largest(["a", "bb"], len), largest(["aa", "bb"], len)
        ('bb', None)
    """
    found = sorted(found, key=size, reverse=True)
    is_one = bool(found) and (len(found) == 1 or size(found[0]) > size(found[1]))
    return found[0] if is_one else None


def last_begun(records: Iterable[Mapping[str, Any]]) -> str:
    """When the last of the runs began, as ISO 8601 writes it; empty where no record says."""
    return max((str(record.get("started_at") or "") for record in records), default="")


def compared(
    records: Sequence[Mapping[str, Any]],
    others: Sequence[Sequence[Mapping[str, Any]]],
    results: Results,
) -> Comparison | None:
    """A row's runs beside those of a reference that are alike; None where none are.

    They are alike that were scored on the same dev rows, and began and trained with the same. Of several rows
    of the reference the one with most seeds counts, of those that have as many the last one, and none where
    that is not known.

    Args:
        records: a row's runs, of one method and one set of settings.
        others: rows of the reference's runs.
        results: where they are, with the labels of their dev rows.
    """
    own = {r["run"]["seed"]: r for r in records if r["status"] == "done"}
    alike = [
        [r for r in other if r["status"] == "done" and any(_alike(one, r) for one in own.values())]
        for other in others
    ]
    chosen = largest(filter(None, alike), lambda runs: (len(runs), last_begun(runs))) or []
    base = {r["run"]["seed"]: r for r in chosen}
    if chosen and is_fit(records[0]["run"]["method"]):  # its only run against the mean over all seeds
        return _of_one_task((), None, _interval(list(own.values()), chosen, results))
    seeds = [seed for seed in sorted(base.keys() & own.keys()) if _alike(own[seed], base[seed])]
    if not seeds:
        return None
    differences = tuple(float(own[seed]["score"] - base[seed]["score"]) for seed in seeds)
    p = permutation_p(differences)
    interval = _interval([own[seed] for seed in seeds], [base[seed] for seed in seeds], results)
    return _of_one_task(differences, p, interval)


def _of_one_task(by_seed: tuple[float, ...], p: float | None, interval: Interval | None) -> Comparison:
    """A comparison whose p-values are those of one task."""
    return Comparison(by_seed, p, p, interval, None if interval is None else interval.p)


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two runs were scored on the same dev rows, and began and trained with the same."""
    a, b = (record.get("settings") or {} for record in (one, other))
    is_same = all(a.get(name) == b.get(name) for name in _SAME) and one["metric"] == other["metric"]
    return is_same and one["dev_fingerprint"] == other["dev_fingerprint"]


def _interval(
    own: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], results: Results
) -> Interval | None:
    labels = results.labels(own[0]["dev_fingerprint"])
    n_rows = (own[0].get("rows") or {}).get("dev")
    said = {len(record["predictions"].split()) for record in (*own, *base)}
    if labels is None or len(labels) != n_rows or said != {n_rows}:  # several labels a row are no plain list
        return None
    one, other = (
        np.stack([_redrawn(record["metric"], tuple(labels), record["predictions"]) for record in records])
        for records in (own, base)
    )
    return interval_of(one, other)


@functools.cache  # a reference is held against every other method
def _redrawn(metric: str, labels: tuple[float, ...], predictions: str) -> np.ndarray:
    """A run's scores on draws of the dev rows."""
    truth, predicted = np.array(labels), np.array([float(word) for word in predictions.split()])
    if metric == "accuracy":
        return redrawn_accuracy(truth, predicted, N_DRAWS)
    if metric == "pearson" or (metric == "mcc" and len(np.union1d(truth, predicted)) <= 2):
        return redrawn_correlation(truth, predicted, N_DRAWS)
    return redrawn(METRICS[metric].compute, truth, predicted, N_DRAWS)
