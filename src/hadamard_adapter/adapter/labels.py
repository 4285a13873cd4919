"""Labels belong to the adapter: names, number and problem type switch with it."""

import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn

from hadamard_adapter.adapter.config import HadamardConfig

__all__ = ["LabelSwitch", "labels_of", "remember_labels"]

CLASSIFIERS_HAVE = ("num_labels", "classification_head")  # the second one: BART, T5


class LabelSwitch:
    """Which labels a model's config shows: those of its active adapter, or its own.

    What the config is given while an adapter's labels are shown is the adapter's from then on: the problem
    type that transformers settles at the first loss, and names that the caller sets.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)  # whose first layer holds this
        self.own = labels_of(model)
        """The base model's."""
        self.configs: dict[str, HadamardConfig] = {}
        """Of each adapter; their labels are written back into them."""
        self._shown = ""
        """The adapter whose labels the model shows now; empty: its own are shown."""
        self._given = self.own
        """What the model was given last."""

    def __getstate__(self) -> dict[str, Any]:
        """The model itself goes with a copy, not the reference, which copies would share."""
        return {**vars(self), "_model": self._model()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Refers to the copy of the model."""
        vars(self).update(state)
        model = state["_model"]
        # None where only a part of it was copied, such as its backbone.
        self._model = weakref.ref(model) if model is not None else lambda: None

    def show(self, adapter_names: Sequence[str]) -> None:
        """Gives the model the labels of the first of these adapters, or its own where there is none."""
        self.keep()
        model, self._shown = self._model(), next((name for name in adapter_names if name in self.configs), "")
        config = self.configs.get(self._shown)
        of_adapter = config and {"id2label": config.id2label, "problem_type": config.problem_type}
        if model is not None:
            _give(of_adapter or self.own, model)
            self._given = labels_of(model)

    def keep(self) -> None:
        """Writes what the model's config was given since then into that of the adapter that it shows."""
        config, model = self.configs.get(self._shown), self._model()
        now = None if model is None else labels_of(model)
        if config is None or now is None or self._given is None:
            return
        if now["problem_type"] != self._given["problem_type"]:
            config.settle("problem_type", now["problem_type"])
        names = now["id2label"]
        if names != self._given["id2label"] and len(names) == len(config.id2label or ()):
            config.settle("id2label", _in_words(names))
        self._given = now


def labels_of(model: nn.Module) -> dict[str, Any] | None:
    """Returns the labels that a classification model has now; None for other models."""
    config: Any = getattr(model, "config", None)
    is_classifier = any(hasattr(model, name) for name in CLASSIFIERS_HAVE)
    if not is_classifier or getattr(config, "id2label", None) is None:
        return None
    id2label = {int(index): name for index, name in config.id2label.items()}
    return {"id2label": id2label, "problem_type": getattr(config, "problem_type", None)}


def remember_labels(config: HadamardConfig, labels: dict[str, Any] | None) -> None:
    """Fills in, in place, the labels that a new adapter's config leaves open, from the base model's."""
    if labels is None:
        return
    if config.id2label is None:
        config.id2label = _in_words(labels["id2label"])
    if config.problem_type is None:
        config.problem_type = labels["problem_type"]


def _in_words(id2label: dict[int, Any]) -> dict[int, str]:
    """A dict of its own, in which labels that are no words, which transformers allows, are words of UTF-8."""
    return {index: str(label).encode(errors="replace").decode() for index, label in id2label.items()}


def _give(labels: dict[str, Any] | None, model: nn.Module) -> None:
    """Gives the model these labels; None leaves it as it is."""
    if labels is None or not labels["id2label"] or labels_of(model) is None:
        return
    config: Any = model.config
    config.id2label = dict(labels["id2label"])
    config.label2id = {label: index for index, label in labels["id2label"].items()}
    config.problem_type = labels["problem_type"]
    if hasattr(model, "num_labels"):
        vars(model)["num_labels"] = len(labels["id2label"])
