"""The recipe: the head first, then the adapter, from a table of rows to a folder that is complete."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hadamard_adapter.tuning.settings import TuneSettings

__all__ = ["Progress", "TuneResult", "say_on_stderr", "tune"]


class Progress(Protocol):
    """What a display of the run's progress must offer; `tune` calls it, a terminal or a notebook shows it."""

    def start(self, stage: str, n_steps: int, step: int) -> None:
        """A stage ("head", "adapter", "both") begins at `step` of `n_steps` (above 0 when it is resumed)."""
        ...

    def step(self, step: int, loss: float | None) -> None:
        """Step `step` is done; `loss` is the latest mean training loss, None before the first."""
        ...

    def epoch(self, epoch: int, scores: dict[str, float]) -> None:
        """Epoch `epoch` (from 1 on) is done, with its scores on dev."""
        ...

    def end(self) -> None:
        """The stage is over."""
        ...


@dataclass(frozen=True)
class TuneResult:
    """What a tuning run leaves."""

    output: Path
    """The folder of the adapter."""
    metrics: dict[str, Any]
    """Content of its metrics.json."""
    run: dict[str, Any]
    """Content of its run.json."""


def say_on_stderr(line: str) -> None:
    """Write one line for the user on standard error."""
    print(line, file=sys.stderr, flush=True)


def tune(
    settings: TuneSettings, say: Callable[[str], None] = say_on_stderr, progress: Progress | None = None
) -> TuneResult:
    """Tune a head and a Hadamard adapter."""
    raise NotImplementedError
