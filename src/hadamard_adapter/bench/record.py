"""What a record of a run holds, by its purpose and status: a table of entries, each with what it must be."""

import datetime
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from hadamard_adapter.bench.spec import ORDERS
from hadamard_adapter.bench.speed import PURPOSES, VARIANTS
from hadamard_adapter.tasks import METRICS

__all__ = ["STATUSES", "first_wrong"]

STATUSES = ("done", "failed", "cancelled")

_LARGEST = 1e15
"""Of seconds, bytes and counts; the sum of a million such is still finite."""

_Check = Callable[[Any], bool]
"""Whether a value may stand at its place."""
_Entries = Mapping[str, _Check]
"""Names that lead to an entry, a dot between two -> its check."""


def _is(kind: type) -> _Check:
    return lambda value: isinstance(value, kind)


def _is_one_of(*names: str) -> _Check:
    return lambda value: isinstance(value, str) and value in names


def _is_number(value: Any) -> bool:
    """A finite number; JSON as Python reads it has NaN, Infinity and integers of any length too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_amount(value: Any) -> bool:
    """Of seconds, bytes or parts of a hundred: a number that is not negative."""
    return _is_number(value) and 0 <= value <= _LARGEST


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_amount(value)


def _is_list_of(check: _Check) -> _Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_mapping_of(check: _Check) -> _Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _or_nothing(check: _Check) -> _Check:
    """Null, or an entry that is not there, passes too."""
    return lambda value: value is None or check(value)


def _holds(entries: _Entries) -> _Check:
    return lambda value: isinstance(value, dict) and _first_wrong(value, entries) is None


def _is_time(value: Any) -> bool:
    """A date and time as ISO 8601 writes it."""
    try:
        datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True


def _are_numbers(value: Any) -> bool:
    """Numbers in one text, a space between two."""
    try:
        return all(math.isfinite(float(word)) for word in value.split())
    except (AttributeError, ValueError):
        return False


def _above_zero(check: _Check) -> _Check:
    """What is divided by."""
    return lambda value: check(value) and value > 0


_OWN = ("seconds", "processor_seconds")
_STAGE: _Entries = {
    **{name: _above_zero(_is_count) for name in ("epochs", "steps")},
    **{name: _above_zero(_is_amount) for name in _OWN},
}
_POINT: _Entries = {
    **{"stage": _is(str), "score": _is_number, "step": _is_count, "epoch": _is_amount},
    **{name: _above_zero(_is_amount) for name in _OWN},
    **{f"cache_{name}": _is_amount for name in _OWN},
}


def _are_layers(value: Any) -> bool:
    """Kind of offset -> a number for each layer."""
    return _is_mapping_of(_is_list_of(_is_number))(value) and len({*map(len, value.values())}) <= 1


def _not_empty(check: _Check) -> _Check:
    return lambda value: bool(value) and check(value)


_EVERY: _Entries = {
    **{"status": _is_one_of(*STATUSES), "run.purpose": _is_one_of("search", "score", *PURPOSES)},
    **{name: _is(str) for name in ("identity", "title", "run.model", "run.task.name")},
    **{"run.lr": _is_number, "run.seed": _is_count},
    **{f"run.task.{name}": _or_nothing(_is_count) for name in ("rows", "held_out", "epochs")},
    **{
        "run.task.search_epochs": _or_nothing(_is_list_of(_is_count)),
        "run.task.metric": _or_nothing(_is(str)),
    },
}
_DONE: _Entries = {
    "metric": _is_one_of(*METRICS),
    **{"rows": _or_nothing(_is(dict)), "rows.dev": _or_nothing(_is_count)},
    "peak_memory_mb": _or_nothing(_is_amount),
}
_TRAINING: _Entries = {
    **{
        "run.method": _is(str),
        "run.select": _is_one_of("held-out", "dev"),
        "run.bf16": _is(bool),
        "run.dropout": _is(bool),
    },
    "run.order": _or_nothing(_is_one_of(*ORDERS)),
    **{name: _or_nothing(_is(dict)) for name in ("settings", "machine", "versions")},
    **{"machine.processor": _or_nothing(_is(str)), "machine.threads": _or_nothing(_is_count)},
}
_TRAINING_DONE: _Entries = {
    **{"score": _is_number, "best.dev_loss": _is_number, "seconds": _is_amount},
    **{name: _or_nothing(_is_amount) for name in ("work", "share_percent", "peak_gpu_memory_mb")},
    "is_resumed": _or_nothing(_is(bool)),
    **{name: _or_nothing(_is_count) for name in ("trained_parameters", "head_parameters")},
}
_SCORE_DONE: _Entries = {
    **{"predictions": _are_numbers, "dev_fingerprint": _is(str), "is_collapsed": _is(bool)},
    "layers": _or_nothing(_are_layers),
}
_SPEED: _Entries = {
    **{"run.variant": _is_one_of(*VARIANTS), "run.axis": _is_one_of("", "rows", "length", "layers")},
    **{"run.value": _is_count, "run.task.batch_size": _is_count, "run.steps": _or_nothing(_is_count)},
    **{"run.rate_from": _or_nothing(_is(str)), "run.points": _or_nothing(_is_count)},
}
_SPEED_DONE: _Entries = {
    **{"rows.train": _is_count, "rows.dev": _is_count, "row_passes": _is_amount, "total_seconds": _is_amount},
    **{"machine.processor": _is(str), "machine.device": _is(str), "machine.threads": _is_count},
    **{"machine.load_average": _is_list_of(_is_number), "started_at": _is_time},
}
_MEMORY_DONE: _Entries = {
    "peak_bytes": _or_nothing(_is_count),  # a kernel may not tell
    **{"saved_bytes": _is_count, "result_bytes": _is_count},
}
_GROWTH_DONE: _Entries = {name: _above_zero(_is_count) for name in ("run.value", "rows.train")}
_CLOCKS = ("wall_seconds", "processor_seconds")
_TIMED_DONE: _Entries = {
    "stages": _not_empty(_is_mapping_of(_holds(_STAGE))),
    **{f"{clock}.{part}": _is_amount for clock in _CLOCKS for part in ("prepare", "cache", "train")},
    "points": _is_list_of(_holds(_POINT)),
}
_CURVE_DONE: _Entries = {"points": _not_empty(_TIMED_DONE["points"])}


def first_wrong(record: Mapping[str, Any]) -> str | None:
    """The first entry that a record should have and has not, or that is not what it should be.

    Args:
        record: of a run, as read.

    Returns:
        The names that lead to the entry, a dot between two; None where all is well.
    """
    if (wrong := _first_wrong(record, _EVERY)) is not None:
        return wrong
    purpose, is_done = record["run"]["purpose"], record["status"] == "done"
    is_training = purpose in ("search", "score")
    entries = {**(_TRAINING if is_training else _SPEED)}
    if not is_done:
        return _first_wrong(record, {**entries, "error": _is(str)})
    entries |= {**_DONE, **(_TRAINING_DONE if is_training else _SPEED_DONE)}
    if purpose == "score":
        entries |= _SCORE_DONE
    elif not is_training:
        entries |= _MEMORY_DONE if purpose == "memory" else _TIMED_DONE
        entries |= {"growth": _GROWTH_DONE, "curve": _CURVE_DONE}.get(purpose, {})
    wrong = _first_wrong(record, entries)
    if wrong is None and purpose == "score":
        n_rows, n_predictions = (record.get("rows") or {}).get("dev"), len(record["predictions"].split())
        wrong = "predictions" if n_rows and n_predictions % n_rows else None  # several a row where labels are
    return wrong


def _first_wrong(record: Mapping[str, Any], entries: _Entries) -> str | None:
    """The first name whose value may not stand there; one that is not there is None."""
    for name, check in entries.items():
        value: Any = record
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not check(value):
            return name
    return None
