"""Which knob does it: scale, shift and norm, each alone and together, from the records of a bench.

Source: Chen et al., 2023, arXiv 2407.11033 (ablations of the adapter's parts); the shares are ours.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from hadamard_adapter.analysis.pictures import draw_seeds, without_mathtext
from hadamard_adapter.analysis.statistics import summarise
from hadamard_adapter.analysis.table import Group, read_groups, row_of
from hadamard_adapter.bench.results import Results
from hadamard_adapter.errors import DataError
from hadamard_adapter.files import expanded

__all__ = ["COMBINATIONS", "KNOBS", "knobs_of_results", "knobs_picture", "shapley"]

KNOBS = ("scale", "shift", "norm")

COMBINATIONS = {
    frozenset[str](): "head",
    frozenset({"scale"}): "hadamard-scale",
    frozenset({"shift"}): "hadamard-shift",
    frozenset({"norm"}): "hadamard-norm",
    frozenset({"scale", "shift"}): "hadamard-no-norm",
    frozenset({"scale", "norm"}): "hadamard-scale-norm",
    frozenset({"shift", "norm"}): "hadamard-shift-norm",
    frozenset(KNOBS): "hadamard",
}
"""Parts that train behind self-attention -> name in the table of methods."""


def shapley(scores: Mapping[frozenset[str], float]) -> dict[str, float]:
    """Each knob's share of what all of them gain: its Shapley value.

    φ_i = sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S)): what i adds, over all orders in
    which n knobs can be turned on, on average. The shares add up to v(all) - v(none).

    Args:
        scores: v, a score for each of the 2^n sets of knobs.

    Source: Shapley, 1953, "A value for n-person games".

    Example:
        >>> none, a, b, both = frozenset(), frozenset("a"), frozenset("b"), frozenset("ab")
        >>> shapley({none: 1.0, a: 3.0, b: 1.0, both: 5.0})
        {'a': 3.0, 'b': 1.0}
    """
    knobs = sorted(frozenset().union(*scores), key=str)
    n = len(knobs)
    shares = dict.fromkeys(knobs, 0.0)
    for knob in knobs:
        others = [other for other in knobs if other != knob]
        for size in range(n):
            weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
            for chosen in map(frozenset, combinations(others, size)):
                shares[knob] += weight * (scores[chosen | {knob}] - scores[chosen])
    return shares


def knobs_of_results(folder: str | Path) -> dict[str, Any]:
    """Scores of all combinations of knobs by task, and each knob's share of the gain.

    Args:
        folder: of `hadamard bench`.

    Returns:
        Name of a table (model, task and settings) -> metric; scores: combination, such as "scale + norm" ->
        seed -> score; and where all eight have seeds in common: shares, knob -> mean and sd over these of its
        Shapley value.

    Raises:
        DataError: no task has two combinations that train something, or there is no such folder.
    """
    results = Results(expanded(folder))
    found = {group.title: _of_group(group) for group in read_groups(results)}
    found = {name: one for name, one in found.items() if len(set(one["scores"]) - {"none"}) > 1}
    if not found:
        is_there = results.folder.is_dir()
        what = "none; run experiments/minilm-knobs.toml" if is_there else "no such folder; name another one"
        raise DataError(
            f"{str(folder)!r}: expected runs of two or more of {', '.join(sorted(COMBINATIONS.values()))} "
            f"on a task, found {what}"
        )
    return {"tasks": found}


def _of_group(group: Group) -> dict[str, Any]:
    """The part of one table; of a method of several settings the row of most seeds, of this recipe."""
    scores: dict[frozenset[str], dict[int, float]] = {}
    for chosen, method in COMBINATIONS.items():
        row = row_of(group, method)
        if row is not None and row.scores:
            scores[chosen] = row.scores
    found: dict[str, Any] = {
        "metric": group.metric,
        "scores": {_named(chosen): one for chosen, one in scores.items()},
    }
    seeds = sorted(set[int].intersection(*(set(one) for one in scores.values()))) if scores else []
    if len(scores) == len(COMBINATIONS) and seeds:
        each = [shapley({chosen: one[seed] for chosen, one in scores.items()}) for seed in seeds]
        summaries = {knob: summarise([shares[knob] for shares in each]) for knob in KNOBS}
        found["shares"] = {knob: {"mean": one.mean, "sd": one.sd} for knob, one in summaries.items()}
        found["seeds"] = seeds
    return found


def _named(chosen: frozenset[str]) -> str:
    """A combination's name.

    Example:
        >>> _named(frozenset({"norm", "scale"})), _named(frozenset())
        ('scale + norm', 'none')
    """
    return " + ".join(knob for knob in KNOBS if knob in chosen) or "none"


def knobs_picture(found: Mapping[str, Any]) -> Any:
    """A figure: a panel a task, a line a combination, a dot a seed, a bar at the mean.

    Args:
        found: of `knobs_of_results`.
    """
    from matplotlib.figure import Figure

    tasks: Mapping[str, Any] = found["tasks"]
    names = [_named(chosen) for chosen in COMBINATIONS]
    figure = Figure(figsize=(1.2 + 3.2 * len(tasks), 2.8), layout="constrained")
    panels: Sequence[Any] = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, (title, task) in zip(panels, tasks.items(), strict=True):
        scores = {name: list(task["scores"].get(name, {}).values()) for name in names}
        draw_seeds(axes, scores, task["metric"])
        axes.set_title(without_mathtext(title.partition(", ")[2]), fontsize=9)
    return figure
