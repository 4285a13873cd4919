"""The runs of a spec of speed that are missing, one after the other, each in a fresh process."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hadamard_adapter.bench.results import Results
from hadamard_adapter.bench.schedule import Outcome, settle
from hadamard_adapter.bench.speed.plan import missing
from hadamard_adapter.bench.speed.run import SpeedRun, identified, name_of
from hadamard_adapter.bench.worker import BUSY, last_line, write_job

__all__ = ["Start", "in_a_process", "run_missing"]

Start = Callable[[SpeedRun, Results], tuple[int, str]]
"""Does a run and returns a worker's exit code, and the last line that it wrote."""


def in_a_process(run: SpeedRun, results: Results) -> tuple[int, str]:
    """Do a run in a fresh process, which ends with this one.

    It has one thread, unless OMP_NUM_THREADS says another number: several wait for each other in processor
    time, and beside other work most of it is waiting.
    """
    job = write_job(name_of(run), run, results)
    log = job.with_suffix(".log")
    with log.open("wb") as file:
        command = [sys.executable, "-m", "hadamard_adapter.bench.speed.worker", str(job)]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment
        )
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            results.cancel(name_of(run), identified(run), "interrupted")
            raise
    return code, last_line(log)


def run_missing(
    runs: Sequence[SpeedRun], results: Results, say: Callable[[str], None], start: Start = in_a_process
) -> Outcome:
    """Do the runs that have no record, never two at a time, since they would take time from each other.

    A run whose process died is written down as cancelled, and the same command does it again from its start.

    Args:
        runs: in the order in which they are done.
        results: what ran; receives the records.
        say: receives a line when a run begins and when it ends.
        start: does a run.

    Raises:
        SettingsError, DataError: rows or a model cannot be read.
    """
    outcome, left = Outcome(), missing(runs, results.records())
    for number, run in enumerate(left, start=1):
        name = name_of(run)
        if results.is_finished(name):  # by another bench on this folder
            continue
        say(f"run {number} of {len(left)}: {name}")
        code, last_words = start(run, results)
        if code == BUSY and not results.is_finished(name):
            outcome.lost[name] = "another process has it"
            say(f"{name}: {outcome.lost[name]}")
            continue
        settle(name, code, last_words, results, outcome, say, _in_short, identified(run))
    return outcome


def _in_short(record: dict[str, Any]) -> str:
    """What a run came to, in a line."""
    if record.get("points"):
        last = record["points"][-1]
        return f"{record['metric']} {last['score']:.4f} after {last['seconds']:.1f} s of training"
    return f"done in {record['total_seconds']:.0f} s"
