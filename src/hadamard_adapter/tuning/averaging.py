"""AdamW that also keeps the mean of the weights over its last steps; what is evaluated and saved is the mean.

    θ̄_n = d_n θ̄_(n-1) + (1 - d_n) θ_n,   d_n = min(decay, (1 + n) / (4 + n)),   θ̄_1 = θ_1

An adapter is small and steps at a high rate, so from step to step it wanders around a good place; the mean is
nearer to it, and gets there earlier. Beside a step, the mean of so few numbers costs nothing.

Source: Polyak and Juditsky, 1992, "Acceleration of stochastic approximation by averaging"; the warm-up of d_n
as in TensorFlow's ExponentialMovingAverage, with 4 in place of 10; the update is PyTorch's
(torch/optim/swa_utils.py).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["AveragedAdamW", "adamw", "averaged", "decay_at", "swap"]

_KEY = "average"


def decay_at(step: int, decay: float) -> float:
    """The weight of the mean so far, at a step from 1 on: about the last third of the steps count at first.

    Example:
        >>> [round(decay_at(step, 0.99), 3) for step in (1, 10, 100, 1000)]
        [0.4, 0.786, 0.971, 0.99]
    """
    return min(decay, (1 + step) / (4 + step))


class AveragedAdamW(torch.optim.AdamW):
    """AdamW; each parameter's state holds its mean beside the moments, so that a checkpoint has it too."""

    def __init__(self, params: Any, decay: float, **options: Any) -> None:
        """Make the optimizer.

        Args:
            params: parameters, or groups of them.
            decay: d_n at most, from 0 to below 1.
            options: of AdamW.
        """
        super().__init__(params, **options)
        self.decay = decay

    def gather(self) -> None:
        """Read off the model what steps, before it is exchanged; here the parameters themselves step."""

    def spread(self) -> None:
        """Write what was exchanged into the model."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of AdamW, and what it changes in the mean."""
        loss = super().step(closure)
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in moved:
                if _KEY not in self.state[parameter]:
                    self.state[parameter][_KEY] = parameter.detach().clone()
            if moved:
                step = int(self.state[moved[0]]["step"])
                means = [self.state[parameter][_KEY] for parameter in moved]
                get_ema_multi_avg_fn(decay_at(step, self.decay))(means, moved, step)
        return loss


def adamw(params: Any, decay: float, **options: Any) -> torch.optim.AdamW:
    """AdamW that keeps the mean of the weights; PyTorch's own where `decay` is 0."""
    return AveragedAdamW(params, decay, **options) if decay else torch.optim.AdamW(params, **options)


@torch.no_grad()
def swap(optimizer: Any) -> None:
    """Exchange weights and means, in place; an optimizer that keeps none is left as it is."""
    inner = getattr(optimizer, "optimizer", optimizer)  # within what Accelerate puts around it
    if not isinstance(inner, AveragedAdamW) or not inner.state:
        return
    inner.gather()
    for parameter, state in inner.state.items():
        kept = parameter.detach().clone()
        parameter.copy_(state[_KEY])
        state[_KEY].copy_(kept)
    inner.spread()


@contextlib.contextmanager
def averaged(optimizer: Any) -> Iterator[None]:
    """Within it the weights are the means."""
    swap(optimizer)
    try:
        yield
    finally:
        swap(optimizer)
