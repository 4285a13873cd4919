"""Curves in paced seconds: the steps of one run, each as long as short runs in turn have found it.

What a run learns depends on its steps, not on how fast the machine was while it ran. So the score is taken
from one run, which may stand beside other work, and the time of its steps from another measurement: the same
variant on some rows of the same task, alone on the machine, all variants in turn, several rounds.

    seconds of a point = sum over earlier stages s (steps of s x pace of s) + steps of its stage x its pace
    pace of a stage    = median over rounds of (seconds of training / steps)
    seconds of caches  = rows of the curve x median over rounds of (seconds of caches / rows)
"""

import datetime
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hadamard_adapter.bench.speed.variants import GAINS, Gain

__all__ = ["SIDE_BY_SIDE", "GainPace", "Key", "Pace", "Round", "gains_of", "paced", "read_paces"]

Record = Mapping[str, Any]
Key = tuple[str, str, str]
"""Model, task and variant."""
SIDE_BY_SIDE = 3600.0
"""Seconds between two runs of a round, at most, for their ratio to count: a machine's days differ."""


@dataclass(frozen=True)
class Round:
    """One short run."""

    at: float
    """When it began, in seconds since 1970."""
    step_seconds: dict[str, float]
    """Stage -> seconds of training a step."""

    @property
    def last(self) -> float:
        """Seconds a step of the last stage."""
        return list(self.step_seconds.values())[-1]


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
    rounds: dict[int, Round]
    """Number of a round -> its run."""


@dataclass(frozen=True)
class GainPace:
    """A gain on a model and task: seconds a step, with it and without."""

    model: str
    """Its folder's name."""
    task: str
    """Its name."""
    gain: Gain
    """Which one."""
    on: float
    """Median over rounds."""
    off: float
    """Likewise."""
    ratio: float
    """Median of off over on, over rounds that have both side by side."""
    low: float
    """Smallest of these ratios."""
    high: float
    """Largest of these ratios."""
    n: int
    """Rounds."""


def read_paces(records: Iterable[Record]) -> dict[Key, Pace]:
    """The pace of every model, task and variant that was measured."""
    found: dict[Key, list[Record]] = {}
    for record in records:
        if record["run"]["purpose"] == "pace" and record["status"] == "done":
            found.setdefault(_key(record), []).append(record)
    return {key: _pace(rounds) for key, rounds in found.items()}


def gains_of(paces: Mapping[Key, Pace]) -> list[GainPace]:
    """Every gain of the table on every model and task where it was measured on and off, side by side.

    Example:
        >>> on = Pace(1, {"head": 1.0, "adapter": 2.0}, 0, 0, 1, {0: Round(0, {"head": 1.0, "adapter": 2.0})})
        >>> off = Pace(1, {"adapter": 5.0}, 0, 0, 1, {0: Round(60, {"adapter": 5.0})})
        >>> (found,) = gains_of({("m", "t", "tune"): on, ("m", "t", "tune-float32"): off})
        >>> found.gain.title, found.ratio
        ('frozen weights in bfloat16', 2.5)
    """
    found = list[GainPace]()
    for model, task in sorted({key[:2] for key in paces}):
        for gain in GAINS:
            on, off = paces.get((model, task, gain.on)), paces.get((model, task, gain.off))
            if on is None or off is None:
                continue
            pairs = [
                (_step(on.rounds[number], gain), _step(off.rounds[number], gain))
                for number in sorted(on.rounds.keys() & off.rounds.keys())
                if abs(on.rounds[number].at - off.rounds[number].at) <= SIDE_BY_SIDE
            ]
            if pairs:
                ratios = [without / with_it for with_it, without in pairs]
                found.append(
                    GainPace(
                        model=model,
                        task=task,
                        gain=gain,
                        on=statistics.median(with_it for with_it, _ in pairs),
                        off=statistics.median(without for _, without in pairs),
                        ratio=statistics.median(ratios),
                        low=min(ratios),
                        high=max(ratios),
                        n=len(pairs),
                    )
                )
    return found


def paced(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The curves that have a pace, with paced seconds beside those of their own run.

    Args:
        records: of runs of speed, curves and paces among them.

    Example:
        >>> run = {"model": "m", "task": {"name": "t"}, "variant": "v", "value": 0}
        >>> short = {"run": {**run, "purpose": "pace"}, "status": "done", "rows": {"train": 64, "dev": 0},
        ...          "started_at": "2026-01-01T00:00:00+00:00",
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
    rounds = list({record["run"]["value"]: record for record in rounds}.values())
    found = {record["run"]["value"]: _round(record) for record in rounds}
    steps, last = [one.step_seconds for one in found.values()], [one.last for one in found.values()]
    return Pace(
        n=len(found),
        step_seconds={name: statistics.median(one[name] for one in steps) for name in steps[0]},
        cache_seconds=statistics.median(r["wall_seconds"]["cache"] / _n_rows(r) for r in rounds),
        prepare_seconds=statistics.median(r["wall_seconds"]["prepare"] for r in rounds),
        spread=max(last) / min(last),
        rounds=found,
    )


def _round(record: Record) -> Round:
    steps = {name: stage["seconds"] / stage["steps"] for name, stage in record["stages"].items()}
    return Round(datetime.datetime.fromisoformat(record["started_at"]).timestamp(), steps)


def _step(run: Round, gain: Gain) -> float:
    return run.step_seconds["head"] if gain.stage == "head" else run.last


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
