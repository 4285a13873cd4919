"""Mixed batches: for one forward pass, every row of the batch runs with its own adapter, norm and head."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from hadamard_adapter.adapter.heads import HeadWrapper
from hadamard_adapter.adapter.layers import HadamardLayer

__all__ = ["mixed_batch"]


@contextmanager
def mixed_batch(model: nn.Module, adapter_names: Sequence[str], known: Sequence[str]) -> Iterator[None]:
    """Context in which the model's rows run with `adapter_names`, one a row; no hook outlives it.

    Args:
        model: The base model with adapters injected.
        adapter_names: One adapter a row of the batch; "__base__" for the base model with its own head.
        known: The adapters that exist.

    Raises:
        ValueError: The model is training, a name is unknown, or labels are passed (a loss over rows with
            different label sets means nothing).

    Source: huggingface/peft src/peft/tuners/road/model.py, _enable_peft_forward_hooks.
    """
    if model.training:
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
    unknown = sorted({name for name in adapter_names if name != "__base__"} - set(known))
    if unknown:
        raise ValueError(
            f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}; there are {sorted(known)}"
        )
    handles = [model.register_forward_pre_hook(_refuse_labels, with_kwargs=True)]
    try:
        for module in model.modules():
            if isinstance(module, (HadamardLayer, HeadWrapper)):
                add_names = partial(_add_names, adapter_names=list(adapter_names))
                handles.append(module.register_forward_pre_hook(add_names, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_names(module: nn.Module, args: tuple, kwargs: dict[str, Any], adapter_names: list[str]) -> tuple:
    return args, {**kwargs, "adapter_names": adapter_names}


def _refuse_labels(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    if kwargs.get("labels") is not None:
        raise ValueError(
            "labels cannot be passed with `adapter_names`: rows of a mixed batch may have different label sets; "
            "compute the loss of each task from its own rows of the logits"
        )
