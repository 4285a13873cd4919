"""Curves in paced seconds: the steps of one run, each as long as short runs in turn have found it.

What a run learns depends on its steps, not on how fast the machine was while it ran. So the score is taken
from one run, which may stand beside other work, and the time of its steps from another measurement: the same
variant on some rows of the same task, alone on the machine, all variants in turn, several rounds.

    seconds of a point = sum over earlier stages s (steps of s x pace of s) + steps of its stage x its pace
    pace of a stage    = median over rounds of (seconds of training / steps)
    seconds of caches  = rows of the curve x median over rounds of (seconds of caches / rows)
"""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Key", "Pace", "paced", "read_paces"]

Record = Mapping[str, Any]
Key = tuple[str, str, str]
"""Model, task and variant."""


@dataclass(frozen=True)
class Pace:
    """What a variant takes on a model and task: medians over rounds."""

    n: int
    """Rounds."""
    step_seconds: dict[str, float]
    """Stage -> seconds of training a step."""
    cache_seconds: float
    """Of the passes over frozen layers, a row."""
    prepare_seconds: float
    """Of loading, tokenising the short runs' rows and making the model."""
    spread: float
    """Of the last stage's seconds a step: largest over smallest of the rounds."""


def read_paces(records: Iterable[Record]) -> dict[Key, Pace]:
    """The pace of every model, task and variant that was measured."""
    found: dict[Key, list[Record]] = {}
    for record in records:
        if record["run"]["purpose"] == "pace" and record["status"] == "done":
            found.setdefault(_key(record), []).append(record)
    return {key: _pace(rounds) for key, rounds in found.items()}


def paced(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The curves that have a pace, with paced seconds beside those of their own run.

    Args:
        records: of runs of speed, curves and paces among them.

    Example:
        >>> run = {"model": "m", "task": {"name": "t"}, "variant": "v"}
        >>> short = {"run": {**run, "purpose": "pace"}, "status": "done", "rows": {"train": 64, "dev": 0},
        ...          "wall_seconds": {"cache": 0.0, "prepare": 3.0},
        ...          "stages": {"both": {"steps": 2, "seconds": 1.0}}}
        >>> curve = {"run": {**run, "purpose": "curve"}, "status": "done", "rows": {"train": 128, "dev": 0},
        ...          "wall_seconds": {"cache": 0.0}, "stages": {"both": {"steps": 4, "seconds": 77.0}},
        ...          "points": [{"stage": "both", "step": 3, "cache_seconds": 0.0}]}
        >>> paced([short, curve])[0]["points"][0]["paced_seconds"]
        1.5
    """
    records = list(records)
    paces = read_paces(records)
    return [
        _at_pace(record, pace)
        for record in records
        if record["run"]["purpose"] == "curve"
        and record["status"] == "done"
        and (pace := paces.get(_key(record))) is not None
        and pace.step_seconds.keys() >= record["stages"].keys()
    ]


def _key(record: Record) -> Key:
    run = record["run"]
    return run["model"], run["task"]["name"], run["variant"]


def _pace(rounds: list[Record]) -> Pace:
    steps = [
        {name: stage["seconds"] / stage["steps"] for name, stage in record["stages"].items()}
        for record in rounds
    ]
    last = [list(found.values())[-1] for found in steps]
    return Pace(
        n=len(rounds),
        step_seconds={name: statistics.median(found[name] for found in steps) for name in steps[0]},
        cache_seconds=statistics.median(r["wall_seconds"]["cache"] / _n_rows(r) for r in rounds),
        prepare_seconds=statistics.median(r["wall_seconds"]["prepare"] for r in rounds),
        spread=max(last) / min(last),
    )


def _at_pace(record: Record, pace: Pace) -> dict[str, Any]:
    starts, seconds = dict[str, float](), 0.0
    for name, stage in record["stages"].items():
        starts[name] = seconds
        seconds += stage["steps"] * pace.step_seconds[name]
    own_cache = record["wall_seconds"]["cache"]
    cache = pace.cache_seconds * _n_rows(record)
    points = [
        {
            **point,
            "paced_seconds": starts[point["stage"]] + point["step"] * pace.step_seconds[point["stage"]],
            "cache_paced_seconds": cache * point["cache_seconds"] / own_cache if own_cache else 0.0,
        }
        for point in record["points"]
    ]
    stages = {
        name: {**stage, "paced_seconds": stage["steps"] * pace.step_seconds[name]}
        for name, stage in record["stages"].items()
    }
    own = {"prepare": pace.prepare_seconds, "cache": cache}
    return {**record, "points": points, "stages": stages, "paced_seconds": own}


def _n_rows(record: Record) -> int:
    return record["rows"]["train"] + record["rows"]["dev"]
