"""The outputs of a head's copy: as many as the adapter that the copy belongs to has labels."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from hadamard_adapter.errors import SettingsError

__all__ = ["fit_outputs", "fit_to_loaded"]


def fit_outputs(model: nn.Module, copies: Mapping[str, nn.Module], n_labels: int) -> None:
    """Gives an adapter's copies of the head `n_labels` outputs, in place.

    Which layer that is, and how it starts, tells a twin of the model that is made for so many labels: the
    tensors that are larger or smaller there are taken from it. All others stay the base model's.

    Args:
        model: The base model.
        copies: The copies by the full names of the modules that they were copied from.
        n_labels: The adapter's number of labels, unlike the base model's.

    Raises:
        SettingsError: The output layer cannot be told: the model is not one of transformers', or its head is
            not the one that its class makes.
    """
    fresh = _fresh_modules(model, list(copies), n_labels)
    outputs = {
        (name, key): parameter
        for name, module in fresh.items()
        for key, parameter in module.named_parameters()
        if parameter.shape[:1] == (n_labels,)
    }
    own = {(name, key): p for name, module in copies.items() for key, p in module.named_parameters()}
    if not outputs or any(at not in own or own[at].shape[1:] != p.shape[1:] for at, p in outputs.items()):
        raise SettingsError(
            f"id2label: expected as many labels as the base model has, received {n_labels}, and which layer "
            f"of the head of this {type(model).__name__} gives the outputs cannot be told (its modules are "
            f"{list(copies)}); make the base model with num_labels={n_labels}"
        )
    for (name, key), parameter in outputs.items():
        if own[name, key].shape != parameter.shape:
            _replace(copies[name], key, parameter)


def fit_to_loaded(wrapper: Any, state_dict: dict[str, Shaped[Tensor, "..."]], prefix: str, *_: Any) -> None:
    """Makes a copy's tensors as large as those being loaded, if these have as many outputs as it has labels.

    So an adapter with labels of its own loads onto a head of the caller's own, of which `fit_outputs` cannot
    tell the output layer. All other differences of size are left to PyTorch, which refuses them. This is a
    hook before loading, for PEFT's wrapper of copies by adapter.
    """
    for name, module in wrapper.modules_to_save.items():
        for key, parameter in list(module.named_parameters()):
            new = state_dict.get(f"{prefix}modules_to_save.{name}.{key}")
            sizes = (wrapper.n_labels.get(name), *parameter.shape[1:])
            if new is not None and new.shape != parameter.shape and new.shape == sizes:
                _replace(module, key, torch.empty(new.shape))


def _fresh_modules(model: nn.Module, names: list[str], n_labels: int) -> dict[str, nn.Module]:
    """These modules of a twin of the model with `n_labels` labels, as its class initialises them.

    The rest of the twin is on the meta device, where it takes neither memory nor time.
    """
    if not isinstance(model, PreTrainedModel):
        return {}
    config = copy.deepcopy(model.config)
    config.num_labels = n_labels
    with torch.device("meta"):
        twin: Any = type(model)(config)
    modules = {name: module for name, module in twin.named_modules() if name in names}
    for module in modules.values():
        module.to_empty(device="cpu").apply(twin._init_weights)
    twin._init_weights(twin)  # some classes initialise their head themselves, after its modules
    return modules


def _replace(module: nn.Module, key: str, new: Shaped[Tensor, "..."]) -> None:
    """Puts a tensor of another size in a parameter's place, with its type, device and whether it trains."""
    owner_name, _, attribute = key.rpartition(".")
    owner = module.get_submodule(owner_name)
    old = owner.get_parameter(attribute)
    value = new.detach().to(dtype=old.dtype, device=old.device)
    setattr(owner, attribute, nn.Parameter(value, requires_grad=old.requires_grad))
    for counter in ("out_features", "nf"):
        if hasattr(owner, counter):
            setattr(owner, counter, new.shape[0])
