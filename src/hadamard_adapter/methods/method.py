"""What a row of the table of methods holds, and the sizes of a model that its formula counts with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from hadamard_adapter.adapter.families import layer_stacks
from hadamard_adapter.adapter.heads import find_head
from hadamard_adapter.adapter.norm import is_norm
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.offset_name import PREFIX, is_in
from hadamard_adapter.tasks import Examples, Task
from hadamard_adapter.tuning.workbench import poolers_of

__all__ = ["Fit", "Logits", "Make", "Method", "Settings", "Shape", "head_of", "shape_of", "trained_counts"]

Make = Callable[[Any, tuple[str, ...]], Any]
"""Base model and full names of its head's modules -> the model to train, its masks set."""

Logits = Callable[[list[str], list[str] | None], np.ndarray]
"""Texts and pairs -> logits (b, l), or numbers (b, 1)."""

Fit = Callable[[Task, Examples, float], tuple[Logits, int]]
"""Task, rows with labels, value of `lr` -> what gives logits, and the number of fitted coefficients."""

Settings = Callable[[Any], dict[str, Any]]
"""Config of the base model -> what differs from the defaults of `TuneSettings`."""


@dataclass(frozen=True)
class Shape:
    """Sizes of an encoder, as the formulae count with them."""

    n_layers: int
    """Number of layers, L."""
    hidden: int
    """Length of a hidden state, d."""
    ffn: int
    """Width of the feed-forward block, f."""
    outside_norms: int
    """Lengths of the norms outside the layers, n: d of the embeddings, in DeBERTa-v3 another d."""
    outside_biases: int
    """Lengths of the biases outside the layers and the head, m: those of the norms, and in small ELECTRAs of
    the projection of the embeddings."""
    n_backbone: int
    """Number of parameters beside the head."""


@dataclass(frozen=True)
class Method:
    """One row: how to make the trained model, at which learning rate, and how much of it trains."""

    title: str
    """Name in tables."""
    make: Make
    """Makes the model to train."""
    count: Callable[[Shape], int]
    """Number of parameters that train beside the head."""
    lr: float
    """Published learning rate, within the published range where there are several; without a model its C."""
    grid: tuple[float, ...]
    """Learning rates that a search begins with, rising; holds `lr`."""
    source: str
    """Paper, and whose implementation."""
    settings: Settings | None = None
    """Of `tune`, for variants of the Hadamard adapter; None: one stage."""
    head_lr: float | None = None
    """Rate of the head where the method's own would be too high for it; None: the method's."""
    fit: Fit | None = None
    """For a method without a pre-trained model, which is fitted at once instead."""


def head_of(base: nn.Module) -> tuple[str, ...]:
    """The full names of the modules that every method trains as the head, a pooler among them.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> head_of(BertForSequenceClassification(BertConfig(num_hidden_layers=1, vocab_size=10)))
        ('bert.pooler', 'classifier')
    """
    return find_head(base, poolers_of(base), has_task=True)


def shape_of(base: nn.Module) -> Shape:
    """The sizes of an encoder with a head.

    Raises:
        SettingsError: its layers stand in two stacks, or the width of its feed-forward blocks is not known.
    """
    config: Any = base.config
    stacks = layer_stacks(base)
    widths = [getattr(config, name, None) for name in ("intermediate_size", "hidden_dim", "n_inner")]
    ffn = next((width for width in widths if isinstance(width, int)), None)
    if len(stacks) != 1 or ffn is None:
        raise SettingsError(
            f"expected an encoder of one stack of layers whose config names the width of its feed-forward "
            f"blocks, received model_type {config.model_type!r}, whose parameters no formula here counts; "
            "choose another model"
        )
    (layers,) = stacks
    sizes = {name: parameter.numel() for name, parameter in base.named_parameters()}
    head = head_of(base)
    sizes = {name: size for name, size in sizes.items() if not is_in(name, *head)}
    in_layers = {id(parameter) for parameter in layers.parameters()}
    outside = {name for name, p in base.named_parameters() if id(p) not in in_layers} & sizes.keys()
    norms = [f"{name}.weight" for name, module in base.named_modules() if is_norm(module)]
    return Shape(
        n_layers=len(layers),
        hidden=config.hidden_size,
        ffn=ffn,
        outside_norms=sum(sizes[name] for name in norms if name in outside),
        outside_biases=sum(sizes[name] for name in outside if name.endswith(".bias")),
        n_backbone=sum(sizes.values()),
    )


def trained_counts(model: nn.Module, head: tuple[str, ...]) -> tuple[int, int]:
    """Numbers of the parameters that train: beside the head, and of the head.

    Args:
        model: what a method made.
        head: of its base model, as `head_of` names it.
    """
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    n_head = sum(size for name, size in sizes.items() if is_in(name.removeprefix(PREFIX), *head))
    return sum(sizes.values()) - n_head, n_head
