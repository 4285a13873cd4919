"""A stage of the recipe: what it is given, what it tells while it runs, what it comes to."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from hadamard_adapter.tasks import METRICS, Task

__all__ = [
    "Collate",
    "Outcome",
    "Progress",
    "Row",
    "Stage",
    "Watcher",
    "best_epoch",
    "chosen_by",
    "is_over",
    "read_curve",
]

Row: TypeAlias = dict[str, Any]
"""Model inputs of one row as lists, not padded, and its "labels"."""

Collate: TypeAlias = Callable[[list[Row]], dict[str, torch.Tensor]]
"""Makes a padded batch of rows."""


@runtime_checkable
class Progress(Protocol):
    """What a display of the run's progress must offer; `tune` calls it, a terminal or a notebook shows it."""

    def start(self, stage: str, n_steps: int, step: int) -> None:
        """A stage ("head", "adapter", "both") begins at `step` of `n_steps` (above 0 when it is resumed).

        "cache" is the pass of frozen layers over the rows before a stage; its steps are rows.
        """
        ...

    def step(self, step: int, loss: float | None) -> None:
        """Step `step` is done, its training loss was `loss`."""
        ...

    def epoch(self, epoch: int, scores: dict[str, float]) -> None:
        """Epoch `epoch` (from 1 on) is done, with its scores on dev."""
        ...

    def end(self) -> None:
        """The stage is over."""
        ...


@runtime_checkable
class Watcher(Progress, Protocol):
    """A `Progress` that also meets the Trainer of each stage, to add callbacks of its own."""

    def watch(self, trainer: Any) -> None:
        """The stage's Trainer is ready and has not begun."""
        ...


@dataclass(frozen=True)
class Stage:
    """What one stage trains, on what, and for how long."""

    name: str
    """"head", "adapter" or "both"; also the name of its folder."""
    epochs: int
    """Passes over the training rows."""
    batch_size: int
    """Rows in a step, per process."""
    rates: dict[str, float]
    """Learning rate of each group: scale, shift, norm, head."""
    train: list[Row]
    """Training rows: model inputs and "labels"."""
    dev: list[Row]
    """Rows that choose the epoch."""
    collate: Collate
    """Makes a padded batch of rows."""
    class_weights: Float[torch.Tensor, " l"] | None = None
    """Weight of each class, or None."""
    micro_batch_tokens: int | None = None
    """Tokens, padding included, that are computed at once with gradients; without them twice as many."""
    is_in_parts: bool = False
    """Whether batches are computed in parts of like length; the gradient is that of the whole."""
    head: tuple[str, ...] | None = None
    """Full names of the head's modules in the base model; None: all that is no offset and no norm."""


@dataclass(frozen=True)
class Outcome:
    """What a stage came to."""

    curve: list[dict[str, Any]]
    """One entry per epoch: epoch, step, loss (training), dev_loss, scores."""
    best: dict[str, Any]
    """The entry of the epoch that was chosen on dev."""
    checkpoint: Path
    """The checkpoint of that epoch."""
    seconds: float
    """Time spent in the stage, over all processes that were killed and resumed."""


def chosen_by(stage: Stage, task: Task) -> str | None:
    """The metric that chooses a stage's epoch; None: the dev loss.

    A correlation does not see offset and scale of a head, and a stage 2 that freezes it cannot mend them; so
    the loss chooses in stage 1 of a regression.
    """
    return None if stage.name == "head" and task.problem_type == "regression" else task.metrics[0]


def best_epoch(curve: list[dict[str, Any]], metric: str | None) -> dict[str, Any]:
    """The entry with the best score; among equals the lowest dev loss, then the earliest.

    Args:
        curve: of a stage, one entry or more.
        metric: name of a score; None: the dev loss alone counts.

    Example:
        >>> curve = [{"epoch": 1, "dev_loss": 0.5, "scores": {"accuracy": 0.8}},
        ...          {"epoch": 2, "dev_loss": 0.4, "scores": {"accuracy": 0.8}}]
        >>> best_epoch(curve, "accuracy")["epoch"]
        2
    """
    sign = 1 if metric is None else METRICS[metric].sign

    def rank(entry: dict[str, Any]) -> tuple[float, float, int]:
        score = 0.0 if metric is None else sign * entry["scores"][metric]
        return _finite(score), -entry["dev_loss"], -entry["epoch"]

    return max(curve, key=rank)


def read_curve(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry per evaluated epoch of the Trainer's log: its scores and the mean loss of its steps."""
    curve: list[dict[str, Any]] = []
    total, last_step = 0.0, 0
    for entry in history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - last_step)
            last_step = entry["step"]
        elif "eval_loss" in entry:
            first = curve[-1]["step"] if curve else 0
            scores = {name.removeprefix("eval_"): value for name, value in entry.items() if _is_score(name)}
            curve.append(
                {
                    "epoch": len(curve) + 1,
                    "step": entry["step"],
                    "loss": total / max(1, entry["step"] - first),
                    "dev_loss": entry["eval_loss"],
                    "scores": scores,
                }
            )
            total = 0.0
    return curve


def is_over(curve: list[dict[str, Any]], epochs: int, metric: str | None, patience: int) -> bool:
    """Whether a stage has had its last epoch, or `patience` epochs (if above 0) without a better one."""
    if not curve:
        return False
    since_best = curve[-1]["epoch"] - best_epoch(curve, metric)["epoch"]
    return curve[-1]["epoch"] >= epochs or (patience > 0 and since_best >= patience)


def _is_score(name: str) -> bool:
    timing = ("eval_loss", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    return name.startswith("eval_") and name not in timing


def _finite(value: float) -> float:
    return value if np.isfinite(value) else -np.inf
