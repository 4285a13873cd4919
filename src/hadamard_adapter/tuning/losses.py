"""The losses that tasks are trained with, one a kind of problem."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from hadamard_adapter.tasks import Task

__all__ = ["loss_of", "mean_loss", "row_losses"]


def loss_of(problem_type: str, class_weights: Float[Tensor, " l"] | None) -> Callable[..., Tensor]:
    """The mean loss over the labels of a step, however it is cut into batches.

    With logits z (b, l) in float32, labels y and class weights w (l), or 1:

        single label    L_i = -w[y_i] log softmax(z_i)[y_i]                            y, L (b)
        multi-label     L_ij = -y_ij log σ(z_ij) - (1 - y_ij) log(1 - σ(z_ij))         y, L (b, l)
        regression      L_i = (z_i - y_i)²                                             y, L (b), z (b, 1)
        loss            Σ L / n, a scalar

    n is the number of labels of the whole step where gradients are wanted, else of the batch; it counts
    labels, whatever their weights. transformers leaves the division to a loss function of one's own, so a
    batch's share of the step's mean is its sum over n. Equal global batches give equal gradients.

    Args:
        problem_type: of the task.
        class_weights: of a single-label task, or None.

    Returns:
        A function of outputs (with "logits"), labels and n, as the Trainer's `compute_loss_func`.

    Example:
        >>> loss = loss_of("regression", None)
        >>> loss({"logits": torch.tensor([[1.0], [3.0]])}, torch.tensor([0.0, 0.0]), 4)
        tensor(2.5000)
    """

    def loss(
        outputs: Any, labels: Shaped[Tensor, "b ..."], num_items_in_batch: Any = None
    ) -> Float[Tensor, ""]:
        losses = row_losses(problem_type, outputs["logits"].float(), labels)
        if class_weights is not None:
            losses = losses * class_weights.to(losses.device)[labels]
        if num_items_in_batch is None or not torch.is_grad_enabled():
            return losses.mean()
        return losses.sum() / num_items_in_batch

    return loss


def mean_loss(task: Task, logits: Float[np.ndarray, "b l"], labels: Sequence[Any]) -> float:
    """Mean loss of logits that are there already, without class weights, in float64.

    Example:
        >>> mean_loss(Task("x", "regression", (), ("rmse",)), np.array([[1.0], [3.0]]), [0, 0])
        5.0
    """
    given = torch.from_numpy(np.asarray(logits, dtype=np.float64))
    return float(row_losses(task.problem_type, given, torch.tensor(np.asarray(labels))).mean())


def row_losses(
    problem_type: str, logits: Float[Tensor, "b l"], labels: Shaped[Tensor, "b ..."]
) -> Float[Tensor, "b ..."]:
    """L of `loss_of` without class weights: a row's (b), in multi-label classification a label's (b, l)."""
    if problem_type == "regression":
        return functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype), reduction="none")
    if problem_type == "multi_label_classification":
        binary = functional.binary_cross_entropy_with_logits
        return binary(logits, labels.to(logits.dtype), reduction="none")
    return functional.cross_entropy(logits, labels.long(), reduction="none")
