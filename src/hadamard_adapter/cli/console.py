"""What the user sees: messages and progress on standard error, data on standard output."""

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from hadamard_adapter.tuning.titles import STAGE_TITLES

__all__ = ["StageBars", "cut_line", "data_console", "message_console", "plain_table"]

_SECONDS_BETWEEN_LINES = 10.0
_WIDE = 100_000
"""Columns, more than any table has."""


def message_console(quiet: bool) -> Console:
    """Standard error: colours only on a terminal (and never with NO_COLOR), lines never broken."""
    return Console(stderr=True, quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True)


def data_console() -> Console:
    """Standard output; as wide as it takes where it is no terminal, so that no cell of a table is cut."""
    width = None if sys.stdout.isatty() else _WIDE
    return Console(highlight=False, markup=False, emoji=False, width=width)


def plain_table(columns: Sequence[str], n_left: int = 1) -> Table:
    """A table without lines, to which rows are added: the first columns flush left, the others right.

    Args:
        columns: their names.
        n_left: number of the columns of words.

    Example:
        >>> table = plain_table(["id", "bytes"])
        >>> table.add_row("books", "4,608")
        >>> data_console().print(table)
        id    bytes
        books 4,608
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < n_left else "right", overflow="fold")
    return table


class StageBars:
    """The `Progress` of a tuning run: a bar per stage on a terminal, a line now and then elsewhere.

    Use it as a context manager, so that the terminal is restored when the run fails.

    Example:
        >>> with StageBars(message_console(quiet=True)) as bars:
        ...     bars.start("head", n_steps=10, step=0)
        ...     bars.step(1, 0.69)
        ...     bars.end()
    """

    def __init__(self, console: Console) -> None:
        """Show progress on `console`."""
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal or console.quiet,
            redirect_stdout=False,  # data stay on standard output while a bar is on the terminal
        )
        self.task = TaskID(0)
        self.name = ""
        self.n_steps = 0
        self.score = ""
        self.next_line_s = 0.0

    def __enter__(self) -> "StageBars":
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def start(self, stage: str, n_steps: int, step: int) -> None:
        """Open the bar of a stage, at `step` where it is resumed."""
        self.name, self.n_steps, self.score = STAGE_TITLES.get(stage, stage), n_steps, ""
        self.next_line_s = time.monotonic() + _SECONDS_BETWEEN_LINES
        self.bars.start()
        self.task = self.bars.add_task(self.name, total=n_steps, completed=step, note="")

    def step(self, step: int, loss: float | None) -> None:
        """Move the bar and show the loss."""
        note = self.score if loss is None else f"loss {loss:.3f}{self.score}"
        self.bars.update(self.task, completed=step, note=note)
        if self.bars.disable and time.monotonic() >= self.next_line_s:
            self.next_line_s = time.monotonic() + _SECONDS_BETWEEN_LINES
            self.console.print(f"{self.name}: {step}/{self.n_steps} {note}")

    def epoch(self, epoch: int, scores: dict[str, float]) -> None:
        """Show the score that chooses the epoch beside the loss, or all scores in a line."""
        chosen_by = next(iter(scores.values()))
        self.score = f"  dev {chosen_by:.3f}"
        if self.bars.disable:
            shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
            self.console.print(f"{self.name}: epoch {epoch}, dev {shown}")

    def end(self) -> None:
        """Leave the bar as it stands."""


def cut_line(n_cut: int, n_rows: int, max_length: int) -> str:
    """What to say of rows that were too long.

    Example:
        >>> cut_line(2, 10, 128)
        '2 of 10 rows are longer than 128 tokens; their ends were cut off'
    """
    return f"{n_cut} of {n_rows} rows are longer than {max_length} tokens; their ends were cut off"
