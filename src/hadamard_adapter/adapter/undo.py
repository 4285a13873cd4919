"""An injection that fails leaves the model as it was: all or nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from hadamard_adapter.adapter.head_wrapper import HeadWrapper
from hadamard_adapter.adapter.layers import HadamardLayer

__all__ = ["all_or_nothing"]


@contextmanager
def all_or_nothing(model: nn.Module, adapter_name: str) -> Iterator[None]:
    """Context in which an adapter is injected; an exception takes out what was put in, and goes on.

    Args:
        model: The base model, with or without other adapters.
        adapter_name: The adapter being injected; where the model has one of this name, that one stays.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    before = {id(module) for module in model.modules() if _holds(module, adapter_name)}
    try:
        yield
    except Exception:
        _remove(model, adapter_name, before)
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
        raise


def _holds(module: nn.Module, adapter_name: str) -> bool:
    if isinstance(module, HadamardLayer):
        return module.has_offsets(adapter_name)
    return isinstance(module, HeadWrapper) and adapter_name in module.modules_to_save


def _remove(model: nn.Module, adapter_name: str, kept: set[int]) -> None:
    ours = {name: m for name, m in model.named_modules() if isinstance(m, (HadamardLayer, HeadWrapper))}
    for name, module in ours.items():
        if id(module) in kept:
            continue
        if isinstance(module, HadamardLayer):
            module.delete_adapter(adapter_name)
        else:
            module.delete_adapter(adapter_name, list(module.active_adapters))
        if not any(len(getattr(module, kind)) for kind in module.adapter_layer_names):
            parent, _, child = name.rpartition(".")
            inner = module.base_layer if isinstance(module, HadamardLayer) else module.original_module
            setattr(model.get_submodule(parent), child, inner)
