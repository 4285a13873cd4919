"""The board of a bench: a table of what is done, running and to come; elsewhere than on a terminal a line."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from hadamard_adapter.bench.plan import cells_of, state_of, total_seconds
from hadamard_adapter.bench.run import Run
from hadamard_adapter.bench.spec import Spec, model_name
from hadamard_adapter.tasks.reading import plural

__all__ = ["BenchBoard", "duration"]

_SECONDS_BETWEEN_LOOKS = 1.0


class BenchBoard:
    """A live table, a row for each model, task and method; use it as a context manager."""

    def __init__(self, spec: Spec, console: Console, n_slots: int, purpose: str) -> None:
        """Show a spec that `n_slots` runs at a time work off; runs of another purpose are not to come."""
        self.spec, self.n_slots, self.purpose = spec, n_slots, purpose
        self.console, self.n_records = console, -1
        self.is_shown = console.is_terminal and not console.quiet
        self.live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
        self.next_look_s = 0.0

    def __enter__(self) -> "BenchBoard":
        if self.is_shown:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_shown:
            self.live.stop()

    def show(self, running: list[Run], records: Mapping[str, Mapping[str, Any]]) -> None:
        """Draw the table again, once a second at most; without a terminal, a line whenever a run is over."""
        if self.is_shown and time.monotonic() >= self.next_look_s:
            self.next_look_s = time.monotonic() + _SECONDS_BETWEEN_LOOKS
            self.live.update(self._table(running, records), refresh=True)
        elif not self.is_shown and not self.console.quiet and len(records) != self.n_records:
            self.n_records = len(records)
            cells = cells_of(self.spec)
            left = [run for cell in cells for run in state_of(cell, records).left(self.purpose)]
            if left:  # a run whose record is there may still be among those that run, until its process ends
                n_running = sum(run in running for run in left)
                runs = plural(len(left) - n_running, "run")
                self.console.print(f"{n_running} running, {runs} to come; {self._time_left(left, records)}")

    def _table(self, running: list[Run], records: Mapping[str, Mapping[str, Any]]) -> Table:
        table = Table("model, task, method", "done", "running", "to come", "lr", title=self.spec.title)
        to_come = list[Run]()
        for cell in cells_of(self.spec):
            state = state_of(cell, records)
            left = state.left(self.purpose)
            n_running = sum(run in running for run in left)
            to_come += left
            table.add_row(
                f"{model_name(cell.model)} {cell.task.name} {cell.method}",
                str(len(state.finished)),
                str(n_running or ""),
                str(len(left) - n_running or ""),
                "searched" if state.lr is None else f"{state.lr:g}",
            )
        table.caption = self._time_left(to_come, records)
        return table

    def _time_left(self, to_come: list[Run], records: Mapping[str, Mapping[str, Any]]) -> str:
        seconds, n_unknown = total_seconds(to_come, records)
        more = f" and {plural(n_unknown, 'run')} of unknown length" if n_unknown else ""
        return f"time left: about {duration(seconds / self.n_slots)}{more}"


def duration(seconds: float) -> str:
    """Seconds as a reader says them.

    Example:
        >>> duration(40), duration(754), duration(9000)
        ('40 s', '13 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
