"""What each gain brings to a step: two variants that differ in nothing else, with it and without.

Time of a step = seconds of training of a stage / its steps. Pairs are short runs of one round, one after the
other, on the first steps of the whole task; where there are none, the same seed's curves, which may be days
apart.
"""

import datetime
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hadamard_adapter.bench.spec import ORDER_TITLES, order_of
from hadamard_adapter.bench.speed.variants import GAINS, VARIANTS, Gain

__all__ = ["SHARED", "GainRow", "Source", "gains_of", "machine_of", "seconds_field"]

Record = Mapping[str, Any]
Source = Literal["curve", "pace"]
"""The purpose of the runs that were paired."""
SHARED = ("batch_size", "head_epochs", "max_length")
"""Settings of a task that two runs share where one is held against the other."""
_SIDE_BY_SIDE = 3600.0
"""Seconds between two short runs of a round, at most, for their ratio to count: a machine's days differ."""


@dataclass(frozen=True)
class GainRow:
    """A gain on a model and task: seconds a step, with it and without."""

    model: str
    """Its folder's name."""
    task: str
    """Its name."""
    gain: Gain
    """Which one."""
    on: float
    """Median over pairs."""
    off: float
    """Likewise."""
    ratio: float
    """Median of off over on."""
    low: float
    """Smallest of these ratios."""
    high: float
    """Largest of these ratios."""
    n: int
    """Pairs."""
    source: Source
    """Of the pairs."""


def gains_of(records: Iterable[Record]) -> list[GainRow]:
    """Every gain of the table on every model and task where it was measured on and off.

    Args:
        records: of runs of speed, of any kind.

    Example:
        >>> run = {"model": "m", "task": {"name": "t"}, "purpose": "curve", "seed": 0}
        >>> rest = {"status": "done", "started_at": "2026-01-01T00:00:00+00:00",
        ...         "machine": {"device": "cpu", "threads": 1}}
        >>> on = {"run": {**run, "variant": "tune"}, **rest,
        ...       "stages": {"adapter": {"steps": 2, "processor_seconds": 2.0}}}
        >>> off = {"run": {**run, "variant": "tune-float32"}, **rest,
        ...        "stages": {"adapter": {"steps": 2, "processor_seconds": 5.0}}}
        >>> (found,) = gains_of([on, off])
        >>> found.gain.title, found.ratio
        ('frozen weights in bfloat16', 2.5)
    """
    by_variant = _by_variant(records)
    rows = (
        _row(model, task, gain, *(by_variant.get((model, task, name), {}) for name in (gain.on, gain.off)))
        for model, task in sorted({key[:2] for key in by_variant})
        for gain in GAINS
    )
    return [row for row in rows if row is not None]


def seconds_field(record: Record) -> str:
    """Which time of a record counts: of one thread its own, without other work; else the wall's.

    The processor time of several threads is their sum, waiting for each other included.

    Example:
        >>> seconds_field({"machine": {"device": "cpu", "threads": 2}})
        'seconds'
    """
    machine = record["machine"]
    is_own = machine["device"] == "cpu" and machine["threads"] == 1
    return "processor_seconds" if is_own else "seconds"


def machine_of(record: Record) -> tuple[Any, Any, Any]:
    """Processor, device and number of threads; times of one machine are not held against another's.

    Example:
        >>> machine_of({"machine": {"device": "cpu", "processor": "AMD EPYC", "threads": 1}})
        ('AMD EPYC', 'cpu', 1)
    """
    machine = record.get("machine") or {}
    return machine.get("processor"), machine.get("device"), machine.get("threads")


_Runs = dict[tuple[Source, str, int], Record]
"""(purpose, what both runs of a pair share, seed or number of the round) -> run."""


def _by_variant(records: Iterable[Record]) -> dict[tuple[str, str, str], _Runs]:
    """Of several runs that are alike, the newest counts, as in the curves."""
    found: dict[tuple[str, str, str], _Runs] = {}
    done = [r for r in records if r["status"] == "done" and r["run"]["purpose"] in ("curve", "pace")]
    for record in sorted(done, key=_at):
        run = record["run"]
        runs = found.setdefault((run["model"], run["task"]["name"], run["variant"]), {})
        number = run["seed"] if run["purpose"] == "curve" else run["value"]
        has_order = VARIANTS[run["variant"]].path.is_ordered
        for order in [order_of(run)] if has_order else ORDER_TITLES:  # the Trainer's own stands beside each
            shared = json.dumps([order, *(run["task"].get(name) for name in ("rows", *SHARED))])
            runs[run["purpose"], shared, number] = record
    return found


def _row(model: str, task: str, gain: Gain, on: _Runs, off: _Runs) -> GainRow | None:
    """The gain by the runs of one purpose that tell it best; None where none of them make a pair."""
    alike: dict[tuple[Source, str], list[tuple[Record, Record]]] = {}
    for key in sorted(on.keys() & off.keys()):
        pair = on[key], off[key]
        is_apart = key[0] == "pace" and abs(_at(pair[0]) - _at(pair[1])) > _SIDE_BY_SIDE
        if machine_of(pair[0]) == machine_of(pair[1]) and not is_apart:
            alike.setdefault(key[:2], []).append(pair)
    if not alike:
        return None
    (source, _), both = max(alike.items(), key=lambda item: (item[0][0] == "pace", len(item[1])))
    pairs = [(_step_seconds(with_it, gain), _step_seconds(without, gain)) for with_it, without in both]
    ratios = [without / with_it for with_it, without in pairs]
    return GainRow(
        model=model,
        task=task,
        gain=gain,
        on=statistics.median(with_it for with_it, _ in pairs),
        off=statistics.median(without for _, without in pairs),
        ratio=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        n=len(pairs),
        source=source,
    )


def _step_seconds(record: Record, gain: Gain) -> float:
    stages = record["stages"]
    stage = stages["head"] if gain.stage == "head" else list(stages.values())[-1]
    return stage[seconds_field(record)] / stage["steps"]


def _at(record: Record) -> float:
    """When a run began, in seconds since 1970."""
    return datetime.datetime.fromisoformat(record["started_at"]).timestamp()
