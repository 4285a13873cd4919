"""A record with an odd entry is told by its file's name, or counts; no reader of it ends in an error."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench_help import committed
from hadamard_adapter.analysis.page import page
from hadamard_adapter.analysis.speed import is_speed
from hadamard_adapter.analysis.speed_texts import speed_files
from hadamard_adapter.analysis.table import read_groups
from hadamard_adapter.analysis.texts import csv_text, markdown
from hadamard_adapter.bench.plan import estimated, quality_of, total_seconds
from hadamard_adapter.bench.results import Results
from hadamard_adapter.bench.speed import PURPOSES
from hadamard_adapter.bench.speed import plan as speed_plan

ABSENT = object()
ODD = (ABSENT, None, "odd", float("nan"), float("inf"), -1, 0, 1.5, 10**400, True, [], {})


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each entry; of a list's members the first stands for all."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else list(enumerate(value))[:1]
        if isinstance(value, list)
        else ()
    )
    for key, entry in inner:
        if key not in ("settings", "versions"):
            yield (*path, key)
            yield from places(entry, (*path, key))


def changed(record: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    found = copy.deepcopy(record)
    place: Any = found
    for key in path[:-1]:
        place = place[key]
    if value is ABSENT:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return found


def read_all(folder: Path) -> dict[str, str]:
    """Whatever reads records; returns the problems that it told."""
    results = Results(folder)
    records = results.records()
    groups = read_groups(results)
    markdown(groups, []), csv_text(groups)
    speed = [record for record in records.values() if is_speed(record)]
    speed_files(speed)
    ran = [record for record in records.values() if not is_speed(record)]
    for record in ran:
        quality_of(record, 1)
    total_seconds([], records), speed_plan.total_seconds([], records)
    costs = [(record["work"], record["seconds"]) for record in ran if record.get("work") is not None]
    costs += [(record["row_passes"], record["total_seconds"]) for record in speed]
    assert (estimated(1000, [costs]) or 0) >= 0
    return results.problems


@pytest.mark.parametrize("purpose", ["search", "score", *PURPOSES])
def test_a_record_with_an_odd_entry_counts_or_is_told(purpose: str, tmp_path: Path) -> None:
    record, n_told = committed(purpose), 0
    (tmp_path / "runs").mkdir()
    path = tmp_path / "runs" / "odd.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    assert not read_all(tmp_path)
    ways = list(places(record))
    for way in ways:
        for odd in ODD:
            path.write_text(json.dumps(changed(record, way, odd)), encoding="utf-8")
            try:
                problems = read_all(tmp_path)
            except Exception as error:
                raise AssertionError(f"{way} = {odd!r}") from error
            assert problems.keys() <= {path.name}
            n_told += len(problems)
    assert n_told > 3 * len(ways), "most odd values are told"


def test_a_peak_that_the_kernel_does_not_tell_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    text = json.dumps({**committed("memory"), "peak_bytes": None})
    (tmp_path / "runs/mac.json").write_text(text, encoding="utf-8")
    assert not read_all(tmp_path) and len(Results(tmp_path).records()) == 1


@pytest.mark.parametrize("purpose", ["search", "score"])
def test_a_machine_may_be_missing_and_an_odd_one_is_told(purpose: str, tmp_path: Path) -> None:
    whole = {"processor": "a processor", "threads": 2}
    record = {name: entry for name, entry in committed(purpose).items() if name != "machine"}
    (tmp_path / "runs").mkdir()
    for machine, wrong in (
        (ABSENT, None),
        (whole, None),
        ({}, None),
        ("a processor", "machine"),
        ({**whole, "processor": 3}, "machine.processor"),
        ({**whole, "threads": "two"}, "machine.threads"),
    ):
        entry = {} if machine is ABSENT else {"machine": machine}
        (tmp_path / "runs/one.json").write_text(json.dumps({**record, **entry}), encoding="utf-8")
        told = {} if wrong is None else {"one.json": f"damaged ({wrong!r}); the run counts as missing"}
        assert read_all(tmp_path) == told, machine


def test_layers_of_unequal_numbers_are_told(tmp_path: Path) -> None:
    record = committed("score")
    (tmp_path / "runs").mkdir()
    kind = next(iter(record["layers"]))
    for layers, is_told in ((record["layers"], False), ({**record["layers"], kind: [0.5]}, True)):
        (tmp_path / "runs/odd.json").write_text(json.dumps({**record, "layers": layers}), encoding="utf-8")
        results = Results(tmp_path)
        page(read_groups(results), [])
        assert (results.problems == {"odd.json": "damaged ('layers'); the run counts as missing"}) is is_told
