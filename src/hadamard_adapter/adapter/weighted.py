"""Adapters add linearly: a new adapter whose offsets are the weighted sum of others'."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner

from hadamard_adapter.adapter.head_wrapper import HeadWrapper
from hadamard_adapter.adapter.layers import HadamardLayer
from hadamard_adapter.errors import AdapterError

__all__ = ["add_weighted"]

_OF_HEAD = ("modules_to_save", "head_modules", "identity_modules", "freeze_head", "id2label", "problem_type")
"""Fields of the config that go with the head; all others go with the offsets."""


@torch.no_grad()
def add_weighted(
    tuner: BaseTuner, adapters: Sequence[str], weights: Sequence[float], adapter_name: str, head: str | None
) -> None:
    """Adds `adapter_name` to the tuner, with offsets δ = Σ weightᵢ δᵢ (offsets are linear, so this is exact).

    Args:
        tuner: A HadamardModel that has all of `adapters`.
        adapters: Names of the adapters to add up; they must adapt at the same position.
        weights: One weight an adapter.
        adapter_name: Name of the new adapter.
        head: Whose head the new adapter gets. None: the mean of the heads, weighted by weight / Σ weight,
            where all have the same labels and heads of the same layers.

    Raises:
        AdapterError: A name is unknown or taken, the adapters are not at the same places, or `head` is None
            and labels or layers of heads differ or the weights add up to 0.
    """
    _check(tuner, adapters, weights, adapter_name, head)
    config: Any = copy.deepcopy(tuner.peft_config[adapters[0]])
    of_head = tuner.peft_config[head or adapters[0]]
    for field in _OF_HEAD:
        setattr(config, field, copy.deepcopy(getattr(of_head, field)))
        (config.filled_in or {}).pop(field, None)  # of the head, not open again
    tuner.peft_config[adapter_name] = config
    try:
        tuner.inject_adapter(tuner.model, adapter_name)
    except Exception:
        del tuner.peft_config[adapter_name]
        raise
    for module in tuner.model.modules():
        if isinstance(module, HadamardLayer):
            _sum_offsets(module, adapters, weights, adapter_name)
        elif isinstance(module, HeadWrapper) and adapter_name in module.modules_to_save:
            _mean_heads(module, adapters, weights, adapter_name, head)


def _in_order(value: Any) -> str:
    """A setting as text, in which the order of a list's names does not count."""
    return str(sorted(value) if isinstance(value, (list, tuple, set)) else value)


def _check(
    tuner: BaseTuner, adapters: Sequence[str], weights: Sequence[float], adapter_name: str, head: str | None
) -> None:
    if len(adapters) != len(weights) or not adapters:
        raise AdapterError(f"expected one weight an adapter, received {len(adapters)} and {len(weights)}")
    missing = [name for name in (*adapters, *([head] if head else [])) if name not in tuner.peft_config]
    if missing:
        raise AdapterError(f"no adapter named {missing}; there are {sorted(tuner.peft_config)}")
    if adapter_name in tuner.peft_config:
        raise AdapterError(f"there is already an adapter named {adapter_name!r}; choose another name")
    configs: list[Any] = [tuner.peft_config[name] for name in adapters]
    for field in ("position", "target_modules", "norm_modules", "train_scale", "train_shift"):
        if len({_in_order(getattr(config, field)) for config in configs}) > 1:
            raise AdapterError(
                f"adapters differ in {field}, so their offsets do not add; received {list(adapters)}"
            )
    for path, layer in tuner.model.named_modules():
        for kind in layer.adapter_layer_names if isinstance(layer, HadamardLayer) else ():
            there = [name for name in adapters if name in getattr(layer, kind)]
            if 0 < len(there) < len(set(adapters)):
                raise AdapterError(
                    f"expected adapters of the same places, received {list(adapters)}; at {path!r} {there} "
                    "alone has offsets: tune them for the same sites and layers"
                )
    if head is None and abs(sum(weights)) <= 1e-6 * sum(map(abs, weights)):  # but for rounding
        raise AdapterError(
            f"weights {list(weights)} add up to 0, so heads have no mean: head={adapters[0]!r}"
        )
    heads = [module for module in tuner.model.modules() if isinstance(module, HeadWrapper)]
    layers = [[name in one.modules_to_save for one in heads] for name in adapters]
    identities = [config.identity_modules for config in configs]
    if head is None and any(one != each[0] for each in (layers, identities) for one in each):
        raise AdapterError(
            f"adapters {list(adapters)} have heads of different layers; name one of them: "
            f"head={adapters[0]!r}"
        )
    if head is None and len({str(config.id2label) for config in configs}) > 1:
        raise AdapterError(
            f"adapters {list(adapters)} have different labels; name one of them: head={adapters[0]!r}"
        )


def _sum_offsets(layer: HadamardLayer, adapters: Sequence[str], weights: Sequence[float], new: str) -> None:
    for dictionary in (getattr(layer, name) for name in layer.adapter_layer_names):
        terms = [
            w * dictionary[name] for name, w in zip(adapters, weights, strict=True) if name in dictionary
        ]
        if terms:
            dictionary[new].copy_(torch.stack(terms).sum(0))


def _mean_heads(
    wrapper: HeadWrapper, adapters: Sequence[str], weights: Sequence[float], new: str, head: str | None
) -> None:
    pairs = [(head, 1.0)] if head else list(zip(adapters, weights, strict=True))
    copies = [(wrapper.modules_to_save[name], w) for name, w in pairs if name in wrapper.modules_to_save]
    if not copies:
        return
    mean = copy.deepcopy(copies[0][0]).requires_grad_(False)
    total = sum(weight for _, weight in copies)
    for name, parameter in mean.named_parameters():
        terms = [copied.get_parameter(name) * (weight / total) for copied, weight in copies]
        parameter.copy_(torch.stack(terms).sum(0))
    wrapper.modules_to_save[new] = mean
