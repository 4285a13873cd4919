"""Labels belong to the adapter: names, number and problem type switch with it."""

from typing import Any

from torch import nn

from hadamard_adapter.adapter.config import HadamardConfig

__all__ = ["adapter_labels", "labels_of", "remember_labels", "switch_labels"]

CLASSIFIERS_HAVE = ("num_labels", "classification_head")  # the second one: BART, T5


def labels_of(model: nn.Module) -> dict[str, Any] | None:
    """Returns the labels that a classification model has now; None for other models."""
    config: Any = getattr(model, "config", None)
    is_classifier = any(hasattr(model, name) for name in CLASSIFIERS_HAVE)
    if not is_classifier or getattr(config, "id2label", None) is None:
        return None
    return {"id2label": dict(config.id2label), "problem_type": getattr(config, "problem_type", None)}


def adapter_labels(config: HadamardConfig) -> dict[str, Any]:
    """Returns the labels that an adapter's config holds, in the form of `labels_of`."""
    return {"id2label": config.id2label, "problem_type": config.problem_type}


def remember_labels(config: HadamardConfig, labels: dict[str, Any] | None) -> None:
    """Fills in, in place, the labels that a new adapter's config leaves open, from the base model's."""
    if labels is None:
        return
    if config.id2label is None:
        config.id2label = labels["id2label"]
    if config.problem_type is None:
        config.problem_type = labels["problem_type"]


def switch_labels(labels: dict[str, Any] | None, model: nn.Module) -> None:
    """Gives the model these labels; None leaves it as it is."""
    if labels is None or not labels["id2label"] or labels_of(model) is None:
        return
    config: Any = model.config
    config.id2label = dict(labels["id2label"])
    config.label2id = {label: index for index, label in labels["id2label"].items()}
    config.problem_type = labels["problem_type"]
    if hasattr(model, "num_labels"):
        vars(model)["num_labels"] = len(labels["id2label"])
