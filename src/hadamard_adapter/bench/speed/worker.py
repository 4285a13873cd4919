"""One timed run in a process of its own: `python -m hadamard_adapter.bench.speed.worker JOB.json`.

A job is a JSON file with the run and the folder of results. Exit codes: 0 the record is written, 3 another
process is at this run, 2 an error that the user can mend (in one line on standard error). A run is never
continued: what a killed one left is thrown away, since half a time says nothing.
"""

import contextlib
import datetime
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hadamard_adapter.bench.results import Results
from hadamard_adapter.bench.speed.clock import Clock
from hadamard_adapter.bench.speed.memory import footprint
from hadamard_adapter.bench.speed.run import (
    SpeedRun,
    data_of,
    identified,
    name_of,
    passes_of,
    settings_of,
)
from hadamard_adapter.bench.speed.variants import VARIANTS
from hadamard_adapter.bench.worker import main
from hadamard_adapter.errors import DataError, HadamardError, SettingsError, is_out_of_memory
from hadamard_adapter.files import remove
from hadamard_adapter.tuning.models import pick_device
from hadamard_adapter.tuning.report import peak_memory_mb, processor_name, versions
from hadamard_adapter.tuning.resume import is_out_of_space

__all__ = ["measure"]


def measure(run: SpeedRun, results: Results) -> bool:
    """Do one run and write its record; whether it was done here or before, not by another process just now.

    Raises:
        DataError, SettingsError: the rows or the model cannot be read.
    """
    return results.do_once(name_of(run), lambda work: _record(run, work))


def _begin_and_measure(run: dict[str, Any], results: Results) -> bool:
    timed = SpeedRun.from_json(run)
    VARIANTS[timed.variant].path.begin()
    return measure(timed, results)


def _record(run: SpeedRun, work: Path) -> dict[str, Any]:
    for entry in work.iterdir():  # of a run that was killed
        if entry.name != "lock":
            remove(entry)
    loaded = versions()  # the code may be another one at the end
    started = time.perf_counter()
    started_at = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    data = data_of(run)
    device = pick_device(settings_of(run).device).type
    with _load() as load:
        try:
            found: dict[str, Any] = {"status": "done", **_found(run, work)}
        except (DataError, SettingsError):
            raise
        except (HadamardError, RuntimeError) as error:
            is_told = isinstance(error, HadamardError) or is_out_of_memory(error)
            if not is_told or is_out_of_space(error, work):  # no word on the variant: it is run again
                raise
            found = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    return {
        **identified(run),
        "started_at": started_at,
        **found,
        "metric": data.task.metrics[0],
        "rows": {"train": len(data.train), "dev": len(data.dev)},
        "row_passes": passes_of(run),
        "total_seconds": round(time.perf_counter() - started, 2),
        "peak_memory_mb": peak_memory_mb(),
        "machine": {
            "device": device,
            "processor": processor_name(device),
            "threads": torch.get_num_threads(),
            "load_average": load,
        },
        "versions": loaded,
    }


def _found(run: SpeedRun, work: Path) -> dict[str, Any]:
    data = data_of(run)
    if run.purpose == "memory":
        return footprint(run, data.task)
    row, clock = VARIANTS[run.variant], Clock(data.task.metrics[0], run.points, n_steps=run.steps)
    row.path.train(row.method, settings_of(run), data, work, clock)
    clock.mark("prepare")
    return clock.read()


@contextlib.contextmanager
def _load() -> Iterator[list[float]]:
    """Receives the machine's load before and after, by which a disturbed run can be told."""
    found: list[float] = []
    for_this = getattr(os, "getloadavg", None)
    if for_this is not None:
        found.append(round(for_this()[0], 2))
    yield found
    if for_this is not None:
        found.append(round(for_this()[0], 2))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], _begin_and_measure))
