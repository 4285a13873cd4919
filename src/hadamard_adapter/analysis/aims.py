"""What the measurement of speed aims at, `tune`'s time and memory over others', and where it is met."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from hadamard_adapter.analysis.speed import Footprint, Pairing, SpeedGroup, SpeedRow

__all__ = ["AimOfMemory", "AimOfTime", "read_aims", "read_aims_of_memory"]

GOALS = (
    ("lora", 1 / 3, "a third of the time"),
    ("full", 1 / 4, "a quarter of the time"),
    ("lora-grouped", 1.0, "less time"),
    ("lora-grouped-float32", 1.0, "less time"),
)
"""The time over a reference's is to be this or less, on two tasks of three."""
AIMING = ("tune", "tune-last-step")
"""Variants that the aims are of: `tune` as it is, and with the schedule that the references have."""
GOAL_OF_MEMORY = 0.5
"""Of `tune`'s step over LoRA's, beyond the loaded model."""


@dataclass(frozen=True)
class AimOfTime:
    """A variant's time over a reference's, on every task where the variant has a curve."""

    model: str
    """Its folder's name."""
    variant: str
    """Whose time it is."""
    reference: str
    """Whose time, and whose final score, it is held against."""
    words: str
    """The aim."""
    ratios: dict[str, Pairing | None]
    """Task -> the variant against the reference, caches counted; None where the reference has no curve."""
    met: dict[str, bool]
    """Task -> whether the ratio is within the aim, over all seeds."""


@dataclass(frozen=True)
class AimOfMemory:
    """Memory of `tune`'s step over that of LoRA's on the Trainer, beyond the loaded model."""

    model: str
    """Its folder's name."""
    shape: tuple[int, int]
    """Rows and tokens of the step."""
    ratio: float
    """Of the peaks."""
    is_met: bool
    """Whether it is within the aim."""


def read_aims(groups: Sequence[SpeedGroup]) -> list[AimOfTime]:
    """The aims of time of each model; none that the variant or the reference has no curve for.

    Args:
        groups: of a model one after the other.
    """
    found: list[AimOfTime] = []
    for model, of_model in itertools.groupby(groups, key=lambda group: group.model):
        tasks = list(of_model)
        for variant, (reference, limit, words) in itertools.product(AIMING, GOALS):
            ours = {g.task: most for g in tasks if (most := _of_most_seeds(g, variant)) is not None}
            if not ours or not any(_of_most_seeds(group, reference) for group in tasks):
                continue
            ratios = {task: row.cached_pairings.get(reference) for task, row in ours.items()}
            n_seeds = {task: len(row.curves) + row.n_failed for task, row in ours.items()}
            met = {task: _is_met(one, limit, n_seeds[task]) for task, one in ratios.items()}
            found.append(AimOfTime(model, variant, reference, words, ratios, met))
    return found


def read_aims_of_memory(footprints: Sequence[Footprint]) -> list[AimOfMemory]:
    """The aims of memory of each model and shape of a step that both were measured with.

    Args:
        footprints: of any variants.
    """
    peaks = {(one.model, one.shape, one.variant): one.peak_bytes for one in footprints}
    found: list[AimOfMemory] = []
    for model, shape in dict.fromkeys((model, shape) for model, shape, _ in peaks):
        own, lora = (peaks.get((model, shape, variant)) for variant in ("tune", "lora"))
        if own is not None and lora:
            found.append(AimOfMemory(model, shape, own / lora, own <= GOAL_OF_MEMORY * lora))
    return found


def _is_met(found: Pairing | None, limit: float, n_seeds: int) -> bool:
    """Whether the ratio is within the limit, over all seeds: none failed, and the reference has a score."""
    return found is not None and found.ratio is not None and found.ratio <= limit and found.n == n_seeds


def _of_most_seeds(group: SpeedGroup, variant: str) -> SpeedRow | None:
    """Of a variant's rows; among equals that of most epochs."""
    rows = [row for row in group.rows if row.variant == variant]
    return max(rows, key=lambda row: (len(row.curves), row.epochs), default=None)
