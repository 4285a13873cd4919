"""All runs of a spec, in an order that the results decide."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from hadamard_adapter.bench.executors import Executor, Started
from hadamard_adapter.bench.plan import due
from hadamard_adapter.bench.results import Results
from hadamard_adapter.bench.run import Run, identified, name_of
from hadamard_adapter.bench.spec import Spec
from hadamard_adapter.bench.worker import BUSY, DONE, MENDABLE
from hadamard_adapter.errors import SettingsError

__all__ = ["Board", "Outcome", "run_all", "settle"]

_POLL_S = 0.2
_LOOK_S = 2.0
"""Between two looks at all records, which cost ten milliseconds a thousand."""
_BUSY_S = 5.0
"""Until a run that another process had is looked at again."""
_LATE_S = 60.0
"""That a record may come after its worker has ended: the folder of a shared disk is a while behind."""


@runtime_checkable
class Board(Protocol):
    """What a display of a bench must offer."""

    def show(self, running: list[Run], records: dict[str, dict[str, Any]]) -> None:
        """What runs now, and what is over; called several times a second."""
        ...


@dataclass
class Outcome:
    """How a bench ended."""

    n_done: int = 0
    """Runs done here, now."""
    failed: dict[str, str] = field(default_factory=lambda: dict[str, str]())
    """Name of a run that failed now -> its error."""
    lost: dict[str, str] = field(default_factory=lambda: dict[str, str]())
    """Name of a run whose worker went away -> how; the same command runs it again."""


def run_all(
    spec: Spec,
    results: Results,
    executor: Executor,
    board: Board,
    say: Callable[[str], None],
    purpose: str = "all",
) -> Outcome:
    """Do all runs of a spec that are not finished.

    A search decides which runs follow, so what is due is asked again after every run. A run that another
    process has is waited for. A run whose worker died is written down as cancelled and not tried again now.

    Args:
        spec: what to run.
        results: what ran, of any spec; receives the records.
        executor: where to run.
        board: shown what runs.
        say: receives a line when a run ends.
        purpose: search, score: only the runs of this purpose that are due.

    Raises:
        SettingsError, DataError: rows or a model cannot be read, or the disk of a worker's folder is full.
        TrainingError: the disk is full, where runs are done in this process.
    """
    outcome, running, busy_until = Outcome(), dict[str, tuple[Run, Started, int]](), dict[str, float]()
    ended_at = dict[str, float]()
    try:
        while True:
            records = results.records()
            left = {name_of(run): run for run in due(spec, records) if purpose in ("all", run.purpose)}
            left = {name: run for name, run in left.items() if name not in outcome.lost}
            if not left and not running:
                return outcome
            now = time.monotonic()
            for name, run in left.items():
                free = set(range(executor.n_slots)) - {slot for _, _, slot in running.values()}
                if not free:
                    break
                if name not in running and busy_until.get(name, 0) <= now:
                    board.show([*(other for other, _, _ in running.values()), run], records)
                    running[name] = run, executor.start(run, results, min(free)), min(free)
            board.show([run for run, _, _ in running.values()], records)
            ended = {name: code for name, (_, it, _) in running.items() if (code := it.poll()) is not None}
            for name, code in list(ended.items()):
                is_here = code != DONE or results.is_finished(name)
                if not is_here and time.monotonic() < ended_at.setdefault(name, time.monotonic()) + _LATE_S:
                    del ended[name]
            for name, code in ended.items():
                run, started, _ = running.pop(name)
                if code == BUSY:
                    busy_until[name] = time.monotonic() + _BUSY_S
                else:
                    words, about = started.last_words(), identified(run)
                    settle(name, code, words, results, outcome, say, _in_short, about)
            if not ended:
                _wait([started for _, started, _ in running.values()])
    finally:
        for _, started, _ in running.values():
            started.stop()
        for name, (run, _, _) in running.items():
            if name not in ended_at:  # whose record is there, though it is not to be seen yet
                results.cancel(name, identified(run), "interrupted")


def _wait(running: Sequence[Started]) -> None:
    """Until a run may have ended; now and then anyway, for runs of other processes and for the board."""
    until = time.monotonic() + _LOOK_S
    time.sleep(_POLL_S)
    while time.monotonic() < until and all(started.poll() is None for started in running):
        time.sleep(_POLL_S)


def settle(
    name: str,
    code: int,
    last_words: str,
    results: Results,
    outcome: Outcome,
    say: Callable[[str], None],
    in_short: Callable[[dict[str, Any]], str],
    about: dict[str, Any],
) -> None:
    """Write into an outcome what became of a run whose worker is gone, and say it.

    A lost one is cancelled, unless its worker says that its record is there.

    Args:
        name: of the run.
        code: exit code of its worker, negative for a signal.
        last_words: the last line that it wrote.
        results: what ran; without a record there, the run is lost.
        outcome: receives it.
        say: receives a line.
        in_short: what a record that is done comes to.
        about: the run, its identity and title, for the record of one that is cancelled.

    Raises:
        SettingsError: the worker found an error that the user can mend.
    """
    record = results.records().get(name, {})
    if record.get("status") == "done":
        outcome.n_done += 1
        say(f"{name}: {in_short(record)}")
    elif record.get("status") == "failed":
        outcome.failed[name] = record["error"]
        say(f"{name}: failed: {record['error']}")
    elif code == MENDABLE:
        silent = f"the worker of {name} could not write why it ended; expected room on its disk"
        raise SettingsError(last_words.removeprefix("error: ") or silent)
    else:
        how = f"its process died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
        how = "its record is not to be seen, though its process wrote it" if code == DONE else how
        outcome.lost[name] = f"{how} {last_words}".strip()
        say(f"{name}: {outcome.lost[name]}")
        if code != DONE:
            results.cancel(name, about, outcome.lost[name])


def _in_short(record: dict[str, Any]) -> str:
    return f"{record['metric']} {record['score']:.4f} in {record['seconds']:.0f} s"
