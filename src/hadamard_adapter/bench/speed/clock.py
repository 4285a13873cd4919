"""Where the time of a training goes, and the score it has bought: a `Progress` that is a stopwatch.

Every stretch between two marks belongs to one account, so that nothing is counted twice and nothing is lost:

    prepare    loading, tokenising, making model and Trainer, what lies between two stages
    cache      the pass over the rows whose result is read back in every epoch
    train      batches, forward, backward, optimizer
    evaluate   scores on dev, the recipe's own at an epoch's end and those for the curve
    save       checkpoints

The curve's scores are computed by the Trainer between two steps, with the random state put back afterwards:
what is trained is the same with the clock and without it.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from transformers import TrainerCallback

__all__ = ["ACCOUNTS", "Clock", "Now", "is_due", "steps_of_whole_groups", "wall_and_processor"]

ACCOUNTS = ("prepare", "cache", "train", "evaluate", "save")

Now = Callable[[], Float64[np.ndarray, " 2"]]
"""Seconds on the wall and of this process's processor time, from anywhere on."""


def wall_and_processor() -> Float64[np.ndarray, " 2"]:
    """Seconds now; what else runs on the machine is in the first, not in the second."""
    return np.array([time.perf_counter(), time.process_time()])


def is_due(step: int, n_steps: int, n_points: int) -> bool:
    """Whether the curve has a point behind this step: `n_points` an epoch, the last at its end.

    Args:
        step: from 1 on, through all epochs.
        n_steps: of an epoch.
        n_points: of an epoch; where it has fewer steps, each is one.

    Example:
        >>> [step for step in range(1, 11) if is_due(step, n_steps=5, n_points=2)]
        [3, 5, 8, 10]
    """
    return step * n_points // n_steps > (step - 1) * n_points // n_steps


def steps_of_whole_groups(n_steps: int, wanted: int) -> int:
    """The number of steps nearest to `wanted` after which a sampler by length is through with whole groups.

    transformers' `get_length_grouped_indices` sorts within groups of min(rows / (4 x batch size), 50)
    batches, the longest first. So only whole groups have the padding, and the time, of a whole epoch.

    Args:
        n_steps: of an epoch, which is the most.
        wanted: about how many.

    Example:
        >>> steps_of_whole_groups(313, 50), steps_of_whole_groups(180, 50), steps_of_whole_groups(32, 50)
        (50, 45, 32)
    """
    group = max(1, min(n_steps // 4, 50))
    return min(n_steps, group * max(1, round(wanted / group)))


class Clock:
    """The `Progress` of one timed training; `watch` is told of the Trainer of each of its stages."""

    def __init__(
        self, metric: str, n_points: int = 10, now: Now = wall_and_processor, n_steps: int | None = None
    ) -> None:
        """Start the clock.

        Args:
            metric: the score of the curve.
            n_points: of the curve, an epoch; 0: no curve.
            now: reads wall and processor.
            n_steps: after about so many a stage is stopped, see `steps_of_whole_groups`; None: never.
        """
        self.metric, self.n_points, self.n_steps, self.now = metric, n_points, n_steps, now
        self.accounts = {name: np.zeros(2) for name in ACCOUNTS}
        self.stages: dict[str, dict[str, Any]] = {}
        self.points: list[dict[str, Any]] = []
        self.stage, self.is_caching, self.last = "both", False, now()

    def mark(self, account: str) -> None:
        """Put the time since the last mark on an account."""
        now = self.now()
        self.accounts[account] += now - self.last
        if account == "train":
            self.stages[self.stage]["seconds"] += now - self.last
        self.last = now

    def start(self, stage: str, n_steps: int, step: int) -> None:
        """A stage, or the pass "cache", begins."""
        self.mark("prepare")
        self.is_caching = stage == "cache"
        if not self.is_caching:
            self.stage = stage

    def step(self, step: int, loss: float | None) -> None:
        """A step is done; the Trainer's own event tells more."""

    def epoch(self, epoch: int, scores: dict[str, float]) -> None:
        """An epoch is done; the Trainer's own event tells more."""

    def end(self) -> None:
        """A stage, or the pass "cache", is over."""
        self.mark("cache" if self.is_caching else "prepare")
        self.is_caching = False

    def watch(self, trainer: Any) -> None:
        """Count the time of a Trainer that has not begun; its evaluation rows give the curve."""
        self.mark("prepare")
        trainer.add_callback(_Marks(self, trainer))

    def add_point(self, trainer: Any) -> None:
        """A point of the curve: dev scores, and the time that training has taken up to here."""
        with torch.random.fork_rng():
            found = trainer.predict(trainer.eval_dataset).metrics
        scores = {name.removeprefix("test_"): value for name, value in found.items()}
        train, cache = self.accounts["train"], self.accounts["cache"]
        self.points.append(
            {
                "stage": self.stage,
                "step": trainer.state.global_step,
                "epoch": round(trainer.state.epoch, 4),
                "seconds": round(float(train[0]), 4),
                "processor_seconds": round(float(train[1]), 4),
                "cache_seconds": round(float(cache[0]), 4),
                "cache_processor_seconds": round(float(cache[1]), 4),
                "score": scores[self.metric],
                "loss": scores["loss"],
            }
        )

    def read(self) -> dict[str, Any]:
        """What the clock has found, as JSON can hold it."""
        return {
            "points": self.points,
            "wall_seconds": {name: round(float(wall), 4) for name, (wall, _) in self.accounts.items()},
            "processor_seconds": {name: round(float(own), 4) for name, (_, own) in self.accounts.items()},
            "stages": {
                name: {
                    "epochs": stage["epochs"],
                    "steps": stage["steps"],
                    "seconds": round(float(stage["seconds"][0]), 4),
                    "processor_seconds": round(float(stage["seconds"][1]), 4),
                }
                for name, stage in self.stages.items()
            },
        }


class _Marks(TrainerCallback):
    """Marks the clock at a Trainer's events: the stretch before an event belongs to what the event ends.

    Not at `on_log`: an evaluation logs its scores before it is over.
    """

    def __init__(self, clock: Clock, trainer: Any) -> None:
        self.clock, self.trainer = clock, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        clock = self.clock
        clock.mark("prepare")
        entry = {"epochs": args.num_train_epochs, "steps": state.max_steps, "seconds": np.zeros(2)}
        clock.stages[clock.stage] = entry

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        clock = self.clock
        clock.mark("train")
        n_steps = state.max_steps // args.num_train_epochs
        if clock.n_points and is_due(state.global_step, n_steps, clock.n_points):
            clock.add_point(self.trainer)
            clock.mark("evaluate")
        if clock.n_steps and state.global_step >= steps_of_whole_groups(n_steps, clock.n_steps):
            clock.stages[clock.stage]["steps"] = state.global_step
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.mark("train")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.mark("evaluate")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.mark("save")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.mark("prepare")
