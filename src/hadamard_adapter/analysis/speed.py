"""Speed from records: time to a target, paired ratios over seeds, memory, growth; pure functions of curves.

A curve is a list of points (seconds of training, score). The target is a share of a reference's own final
score, on the same task and seed, so that seeds are paired. A curve that never gets there has no time; in a
median over seeds it counts as infinitely late.
"""

import collections
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hadamard_adapter.analysis.comparison import largest
from hadamard_adapter.analysis.gains import SHARED, machine_of, seconds_field
from hadamard_adapter.bench.spec import ORDER_TITLES, order_of
from hadamard_adapter.bench.speed.spec import PURPOSES
from hadamard_adapter.bench.speed.variants import REFERENCES, VARIANTS

__all__ = [
    "SHARE",
    "Footprint",
    "GrowthLine",
    "Pairing",
    "SpeedGroup",
    "SpeedRow",
    "is_speed",
    "paired",
    "read_footprints",
    "read_growth",
    "read_speed_groups",
    "score_at",
    "seconds_to",
    "slope",
    "task_title",
    "twins",
]

SHARE = 0.99
"""Of the reference's final score: the target."""

_Settings = tuple[str, float, int | None, str, str]
"""Of a row: variant, learning rate, epochs, order of rows, and what it shares with those that it is held
against. Of a reference with several rows that of most seeds counts."""

_Curve = Sequence[tuple[float, float]]
"""Points (seconds, score), in the order of time."""


@dataclass(frozen=True)
class Pairing:
    """A variant against a reference, seed by seed."""

    n: int
    """Seeds that both have."""
    n_reached: int
    """Of these, seeds in which the variant reached the target."""
    n_kept: int
    """Of these, seeds in which its last point is at the target still."""
    seconds: float | None
    """Median time to the target; None where it is not reached in more than half of the seeds."""
    ratio: float | None
    """Median of the variant's time over the reference's own time to the same target."""
    low: float | None
    """Smallest of these ratios, over seeds that reached it."""
    high: float | None
    """Largest of these ratios; None where a seed did not reach the target."""
    score_then: float | None
    """Median score when the reference is through, at its total time."""


@dataclass(frozen=True)
class SpeedRow:
    """A variant on a model and task, at one learning rate and number of epochs."""

    variant: str
    """Name in the table of variants."""
    title: str
    """For readers."""
    lr: tuple[float, ...]
    """Learning rates of the runs."""
    epochs: tuple[int, ...]
    """Of the runs' last stage."""
    curves: dict[int, _Curve]
    """Seed -> curve, the time of caches counted as training."""
    n_failed: int
    """Runs that failed; they are in no figure."""
    epoch_seconds: float | None
    """Median time of an epoch of the last stage."""
    final: float | None
    """Mean score at the end."""
    prepare_seconds: float | None
    """Median time of loading, tokenising and making the model, which no curve holds."""
    cache_seconds: float | None
    """Median time of the passes over frozen layers."""
    pairings: dict[str, Pairing]
    """Reference -> comparison with it, the time of caches left out."""
    cached_pairings: dict[str, Pairing]
    """The same with the time of caches counted as training."""
    wall_pairings: dict[str, Pairing]
    """The same again, in time on the wall."""


@dataclass(frozen=True)
class SpeedGroup:
    """A model and a task."""

    model: str
    """Its folder's name."""
    task: str
    """Its name, with the number of rows where it is a part."""
    metric: str
    """Of the scores."""
    rows: tuple[SpeedRow, ...]
    """Variants, that with the shortest epoch first."""


@dataclass(frozen=True)
class Footprint:
    """Memory of a variant's training step."""

    model: str
    """Its folder's name."""
    title: str
    """Of the variant."""
    shape: tuple[int, int]
    """Rows and tokens of the step."""
    peak_bytes: int | None
    """Of the process beyond its loaded model."""
    saved_bytes: int
    """Of tensors that autograd keeps."""
    result_bytes: int
    """Of the files of the result."""
    variant: str
    """Name in the table of variants."""
    processor: str
    """On which it was measured."""


@dataclass(frozen=True)
class GrowthLine:
    """Seconds of an epoch over what grows."""

    model: str
    """Its folder's name."""
    axis: str
    """rows, length or layers."""
    title: str
    """Of the variant."""
    points: tuple[tuple[float, float], ...]
    """(value, seconds), rising."""
    cache_seconds: tuple[float, ...]
    """Of the points: what a run spends once on caches of train and dev rows."""


def is_speed(record: Mapping[str, Any]) -> bool:
    """Whether a record is of a spec of speed."""
    return record["run"]["purpose"] in PURPOSES


def seconds_to(curve: _Curve, target: float) -> float | None:
    """The time of the first point whose score is at least the target; None where there is none.

    Nothing is drawn between points: all variants are evaluated after the same steps.

    Example:
        >>> seconds_to([(1.0, 0.2), (2.0, 0.6), (3.0, 0.5)], 0.55)
        2.0
    """
    return next((seconds for seconds, score in curve if score >= target), None)


def score_at(curve: _Curve, seconds: float) -> float | None:
    """The score of the last point that is not later; None where the first one is.

    Example:
        >>> score_at([(1.0, 0.2), (2.0, 0.6)], 1.9)
        0.2
    """
    return next((score for at, score in reversed(curve) if at <= seconds), None)


def paired(own: Mapping[int, _Curve], reference: Mapping[int, _Curve]) -> Pairing | None:
    """A variant against a reference, over the seeds that both have; None where there is none.

    Time counts up to the first point that reaches 99 % of the reference's own final score. Seeds in
    which it ends at a score of zero or less have no target and are left out.

    Args:
        own: seed -> curve of the variant.
        reference: seed -> curve of the reference.

    Example:
        >>> paired({0: [(1.0, 0.8)], 1: [(3.0, 0.8)]}, {0: [(2.0, 0.8)], 1: [(4.0, 0.8)]}).ratio
        0.625
    """
    times, ratios, then, n_kept = list[float](), list[float](), list[float](), 0
    for seed in sorted(own.keys() & reference.keys()):
        base = reference[seed]
        if base[-1][1] <= 0:
            continue
        target = SHARE * base[-1][1]
        base_time = seconds_to(base, target)
        assert base_time is not None, "its last point is above a share of itself"
        time = seconds_to(own[seed], target)
        times.append(math.inf if time is None else time)
        ratios.append(times[-1] / base_time)
        n_kept += own[seed][-1][1] >= target
        score = score_at(own[seed], base[-1][0])
        then.append(-math.inf if score is None else score)
    if not times:
        return None
    reached = [ratio for ratio in ratios if math.isfinite(ratio)]
    return Pairing(
        n=len(times),
        n_reached=len(reached),
        n_kept=n_kept,
        seconds=_finite(statistics.median(times)),
        ratio=_finite(statistics.median(ratios)),
        low=_finite(min(ratios)),
        high=_finite(max(ratios)),
        score_then=_finite(statistics.median(then)),
    )


def slope(points: Iterable[tuple[float, float]]) -> float | None:
    """The exponent p of seconds ~ value^p: least squares on logarithms; None for fewer than two points.

    1 is a straight line through zero.

    Example:
        >>> slope([(10, 2.0), (100, 20.0)])
        1.0
    """
    logs = [(math.log(value), math.log(seconds)) for value, seconds in points if value > 0 and seconds > 0]
    if len({x for x, _ in logs}) < 2:
        return None
    return round(statistics.linear_regression(*zip(*logs, strict=True)).slope, 3)


def read_speed_groups(records: Iterable[Mapping[str, Any]]) -> list[SpeedGroup]:
    """All models and tasks that have curves, in the seconds that `seconds_field` names.

    Args:
        records: of runs, of any kind.
    """
    found: dict[tuple[str, str], dict[_Settings, list[Mapping[str, Any]]]] = {}
    for record in _drawn(records):
        run = record["run"]
        variants = found.setdefault((run["model"], task_title(run)), {})
        variants.setdefault(_settings_of(record), []).append(record)
    return [_group(*key, variants) for key, variants in sorted(found.items())]


def twins(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for every curve of which there are several, alike in all that a table tells apart.

    They differ in something else that their identities hold, a default that changed for one.

    Args:
        records: of runs, of any kind.
    """
    found: dict[tuple[Any, ...], list[str]] = {}
    for record in _drawn(records):
        run = record["run"]
        if record["status"] == "done":
            key = run["model"], task_title(run), run["variant"], f"seed {run['seed']}", _settings_of(record)
            found.setdefault(key, []).append(record["identity"][:10])
    return [
        f"{', '.join(key[:-1])}: {len(names)} runs of these settings ({', '.join(names)}), the newest counts"
        for key, names in sorted(found.items(), key=lambda item: str(item[0]))
        if len(names) > 1
    ]


def _drawn(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of curves, the oldest first."""
    curves = [r for r in records if r["run"]["purpose"] == "curve" and r["status"] != "cancelled"]
    return sorted(curves, key=lambda record: record["started_at"])


def _settings_of(record: Mapping[str, Any]) -> _Settings:
    """What a row of the table stands for."""
    run = record["run"]
    shared = {name: run["task"].get(name) for name in SHARED}
    shared |= {name: run.get(name) for name in ("dev_rows", "points")}
    shared |= {"machine": machine_of(record)}
    return run["variant"], float(run["lr"]), run["task"].get("epochs"), order_of(run), json.dumps(shared)


def read_footprints(records: Iterable[Mapping[str, Any]]) -> list[Footprint]:
    """Memory of every variant that was measured, of several times the newest, the smallest first."""
    done = [r for r in records if r["run"]["purpose"] == "memory" and r["status"] == "done"]
    found = {
        (record["run"]["model"], shape, record["run"]["variant"]): Footprint(
            model=record["run"]["model"],
            title=VARIANTS[record["run"]["variant"]].title,
            shape=shape,
            peak_bytes=record.get("peak_bytes"),
            saved_bytes=record["saved_bytes"],
            result_bytes=record["result_bytes"],
            variant=record["run"]["variant"],
            processor=record["machine"]["processor"],
        )
        for record in sorted(done, key=lambda record: record["started_at"])
        for shape in [(record["run"]["task"]["batch_size"], record["run"]["value"])]
    }
    return sorted(found.values(), key=lambda one: (one.model, one.shape, one.peak_bytes or one.saved_bytes))


def read_growth(records: Iterable[Mapping[str, Any]]) -> list[GrowthLine]:
    """The lines of growth, axis by axis, in the seconds that `seconds_field` names."""
    found: dict[tuple[str, str, str], dict[str, dict[float, tuple[float, float]]]] = {}
    done = [r for r in records if r["run"]["purpose"] == "growth" and r["status"] == "done"]
    for record in sorted(done, key=lambda record: record["started_at"]):  # of runs that are alike the newest
        run, task = record["run"], record["run"]["task"]
        lines = found.setdefault((run["model"], run["axis"], VARIANTS[run["variant"]].title), {})
        processor, device, threads = machine_of(record)
        of = task["name"] if run["axis"] == "rows" else task_title(run)
        is_cut = task.get("max_length") and run["axis"] != "length"  # which sets it, point by point
        longest = f", of {task['max_length']} tokens at most" if is_cut else ""
        is_ordered = VARIANTS[run["variant"]].path.is_ordered
        order = f", {ORDER_TITLES[order_of(run)]}" if is_ordered else ""
        how = f"batches of {task['batch_size']}{longest}{order}"
        line = lines.setdefault(f"{of}, {how}, {processor}, {device}, threads: {threads}", {})
        value = record["rows"]["train"] if run["axis"] == "rows" else run["value"]
        line[value] = _epoch_seconds(record), _account(record, "cache")
    return [
        _growth_line((*key[:2], key[2] + (f" ({of})" if len(lines) > 1 else "")), sorted(line.items()))
        for key, lines in sorted(found.items())
        for of, line in sorted(lines.items())
    ]


def _growth_line(
    key: tuple[str, str, str], points: Sequence[tuple[float, tuple[float, float]]]
) -> GrowthLine:
    train = tuple((value, seconds) for value, (seconds, _) in points)
    return GrowthLine(*key, train, tuple(cache for _, (_, cache) in points))


def task_title(run: Mapping[str, Any]) -> str:
    """What tables call the task of a record's run: its name, and the size of its part."""
    rows = run["task"].get("rows")
    return run["task"]["name"] + (f" ({rows:,} rows)" if rows else "")


def _group(model: str, task: str, variants: Mapping[_Settings, list[Mapping[str, Any]]]) -> SpeedGroup:
    plain = {key: _curves(records, with_caches=False) for key, records in variants.items()}
    cached = {key: _curves(records, with_caches=True) for key, records in variants.items()}
    wall = {key: _curves(records, with_caches=True, on_the_wall=True) for key, records in variants.items()}
    n_orders = collections.Counter(variant for variant, _ in {(key[0], key[3]) for key in variants})
    rows = [
        _row(key, records, n_orders[key[0]] > 1, plain, cached, wall) for key, records in variants.items()
    ]
    rows.sort(key=lambda row: (row.epoch_seconds is None, row.epoch_seconds or 0.0, row.variant))
    first = next(iter(variants.values()))[0]
    return SpeedGroup(model, task, first["metric"], tuple(rows))


def _row(
    key: _Settings,
    records: Sequence[Mapping[str, Any]],
    has_orders: bool,
    plain: Mapping[_Settings, dict[int, _Curve]],
    cached: Mapping[_Settings, dict[int, _Curve]],
    wall: Mapping[_Settings, dict[int, _Curve]],
) -> SpeedRow:
    done = [record for record in records if record["status"] == "done"]
    finals = [curve[-1][1] for curve in cached[key].values()]
    return SpeedRow(
        variant=key[0],
        title=VARIANTS[key[0]].title + (f", {ORDER_TITLES[key[3]]}" if has_orders else ""),
        lr=tuple(sorted({float(record["run"]["lr"]) for record in records})),
        epochs=tuple(sorted({_last_stage(record)["epochs"] for record in done})),
        curves=cached[key],
        n_failed=len(records) - len(done),
        epoch_seconds=_median(_epoch_seconds(record) for record in done),
        final=statistics.mean(finals) if finals else None,
        prepare_seconds=_median(_account(record, "prepare") for record in done),
        cache_seconds=_median(_account(record, "cache") for record in done),
        pairings=_against(key, plain),
        cached_pairings=_against(key, cached),
        wall_pairings=_against(key, wall),
    )


def _against(own: _Settings, curves: Mapping[_Settings, dict[int, _Curve]]) -> dict[str, Pairing]:
    found = dict[str, Pairing]()
    alike = {key: of_seed for key, of_seed in curves.items() if key[-1] == own[-1]}
    for ref in REFERENCES:
        base = largest((of_seed for key, of_seed in alike.items() if key[0] == ref), len)
        pairing = None if base is None else paired(curves[own], base)
        if pairing is not None:
            found[ref] = pairing
    return found


def _curves(
    records: Iterable[Mapping[str, Any]], with_caches: bool, on_the_wall: bool = False
) -> dict[int, _Curve]:
    return {
        record["run"]["seed"]: [
            (point[field] + (point[f"cache_{field}"] if with_caches else 0.0), point["score"])
            for field in ["seconds" if on_the_wall else seconds_field(record)]
            for point in record["points"]
        ]
        for record in records
        if record["status"] == "done" and record["points"]
    }


def _epoch_seconds(record: Mapping[str, Any]) -> float:
    last = _last_stage(record)
    return last[seconds_field(record)] / last["epochs"]


def _account(record: Mapping[str, Any], name: str) -> float:
    """The time of one of the clock's accounts."""
    field = "wall_seconds" if seconds_field(record) == "seconds" else "processor_seconds"
    return record[field][name]


def _last_stage(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The stage that trains what the method trains."""
    return list(record["stages"].values())[-1]


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
