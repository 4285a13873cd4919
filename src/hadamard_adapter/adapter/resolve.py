"""Turns what a config leaves open into names of a given model's modules, once, before injection."""

import copy
import re
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hadamard_adapter.adapter.config import HadamardConfig
from hadamard_adapter.adapter.families import (
    SITE_NAMES,
    SiteModules,
    find_sites,
    refuse_shared,
    shift_can_merge,
)
from hadamard_adapter.adapter.heads import beside, find_head, named_in, outermost, own_modules
from hadamard_adapter.adapter.identity import inner_layers
from hadamard_adapter.adapter.norm import is_norm
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.offset_name import is_in

__all__ = ["bias_switches", "check_names", "matches", "resolve", "turn_on_biases"]

ALL_LINEAR = "all-linear"  # PEFT's shorthand
TASKS_WITH_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


def resolve(config: HadamardConfig, model: nn.Module) -> None:
    """Fills in, in place as PEFT's tuners do, what `config` leaves open.

    Projections and norms become one regular expression over full names, the shift the names of the
    projections that get one, the head its modules. A resolved config (one that was saved) is left as it is.

    Raises:
        SettingsError: The model's family is unknown and `target_modules` is None, or the layers named do not
            exist, or a setting cannot apply to this model.
    """
    if config.is_resolved:
        return
    if config.target_modules is None:
        layers = config.layers_to_transform
        sites = find_sites(model, config.sites, [layers] if isinstance(layers, int) else layers)
        config.target_modules = _pattern([site.projection for site in sites])
        if config.norm_modules is None:
            config.norm_modules = _pattern([site.norm for site in sites if site.norm])
    else:
        _check_layers(config, model)
        if str(config.target_modules).lower() == ALL_LINEAR:  # as PEFT spells it
            config.target_modules = _pattern(_linear_modules(model))
    config.norm_modules = [] if config.norm_modules is None else config.norm_modules
    config.train_shift = _resolved_shift(config, model)
    if config.head_modules is None:
        has_task = config.task_type in TASKS_WITH_HEAD
        config.head_modules = list(find_head(model, config.modules_to_save or (), has_task))
    elif config.modules_to_save:
        asked = named_in(model, config.modules_to_save)
        config.head_modules = list(outermost([*config.head_modules, *asked]))
    if config.identity_modules is True:
        own = [(name.replace(".original_module", ""), module) for name, module in own_modules(model)]
        inside = [(name, m) for name, m in own if is_in(name, *config.head_modules)]
        config.identity_modules = inner_layers(inside)


def matches(config: HadamardConfig, key: str, names: Sequence[str] | str | None) -> object:
    """Tells whether a module's full name is among `names`, by PEFT's rules; falsy if not.

    Source: huggingface/peft src/peft/tuners/tuners_utils.py, check_target_module_exists.
    """
    if not names:
        return False
    heads = [re.escape(name) for name in (*(config.head_modules or ()), *(config.modules_to_save or ()))]
    asked = SimpleNamespace(
        target_modules=names,
        target_parameters=None,
        exclude_modules=config.exclude_modules,
        modules_to_save=heads,
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
    )
    return check_target_module_exists(asked, key)


def check_names(config: HadamardConfig, model: nn.Module) -> None:
    """Refuses `target_modules` of which no module is there, and an entry of `norm_modules` that names none.

    Raises:
        SettingsError: There is one; it may be misspelt.
    """
    asked = copy.copy(config)
    asked.exclude_modules = None  # what is excluded exists all the same
    names = [name for name, _ in model.named_modules() if name]
    targets = config.target_modules
    if targets and not any(matches(asked, name, targets) for name in names):
        raise SettingsError(
            f"target_modules: expected names of projections in the layers to adapt, received {targets!r}, "
            "which no module has; `hadamard inspect MODEL` shows the names"
        )
    entries = [config.norm_modules] if isinstance(config.norm_modules, str) else config.norm_modules or ()
    for entry in entries:
        wanted = entry if isinstance(config.norm_modules, str) else [entry]
        if entry and not any(matches(asked, name, wanted) for name in names):
            raise SettingsError(
                f"norm_modules: expected names of norms in the layers to adapt, received {entry!r}, which "
                "no module has; `hadamard inspect MODEL` shows the names"
            )


def bias_switches(model: nn.Module) -> dict[str, str]:
    """Returns, by full name of a projection without a bias, the config attribute that gives it one."""
    try:
        sites: Sequence[SiteModules] = find_sites(model, SITE_NAMES)
    except SettingsError:
        return {}
    return {
        site.projection: site.bias_switch
        for site in sites
        if site.bias_switch and getattr(model.config, site.bias_switch, None) is False
    }


def turn_on_biases(model: nn.Module, switches: set[str]) -> None:
    """Sets the config's bias switches, and adds zeros for every bias that the model now should have.

    So a merged shift survives `save_pretrained` and a plain `from_pretrained`. Modules of another kind or
    size that the user has put in place of the model's own get none.
    """
    if not switches:
        return
    inner: Any = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), model)
    config = copy.deepcopy(inner.config)
    for switch in switches:
        setattr(config, switch, True)
    with torch.device("meta"):
        twin = type(inner)(config)
    there = dict(inner.named_modules())
    for name, parameter in twin.named_parameters():
        owner_name, _, attribute = name.rpartition(".")
        if attribute != "bias":
            continue
        owner: Any = there.get(owner_name)
        owner = owner.get_base_layer() if isinstance(owner, BaseTunerLayer) else owner
        own = twin.get_submodule(owner_name)
        weight, like = (getattr(module, "weight", None) for module in (owner, own))
        if not isinstance(owner, type(own)) or weight is None or like is None:
            continue
        if weight.shape == like.shape and getattr(owner, "bias", None) is None:
            zeros = torch.zeros(parameter.shape, dtype=weight.dtype, device=weight.device)
            owner.bias = beside(weight, zeros)
    for switch in switches:
        setattr(model.config, switch, True)
        setattr(inner.config, switch, True)


def _linear_modules(model: nn.Module) -> list[str]:
    """All linear projections but the language model's head; `matches` leaves out other heads."""
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    found = []
    for name, module in own_modules(model):
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(base, (nn.Linear, Conv1D)) and module is not output:
            found.append(name.replace(".base_layer", ""))
    return list(dict.fromkeys(found))


def _check_layers(config: HadamardConfig, model: nn.Module) -> None:
    """Refuses layers that the caller's own `target_modules` cannot be restricted to."""
    if config.layers_to_transform is None:
        return
    if isinstance(config.target_modules, str):
        raise SettingsError(
            "layers_to_transform: cannot be used together with target_modules as a regular expression "
            f"({config.target_modules!r}); name the layers in the expression"
        )
    model_type = getattr(getattr(model, "config", None), "model_type", None) or ""
    refuse_shared(model_type, config.layers_to_transform)


def _resolved_shift(config: HadamardConfig, model: nn.Module) -> bool | str | list[str]:
    """True or False where it is the same for all projections, else the names of those that get a shift."""
    if config.train_shift is False or not isinstance(config.train_shift, (bool, type(None))):
        return config.train_shift
    projections = [name for name, module in model.named_modules() if _is_projection(config, name, module)]
    switches = bias_switches(model)
    carried = [name for name in projections if shift_can_merge(model, name, switches.get(name))]
    if config.train_shift is True:
        if len(carried) < len(projections):
            warnings.warn(
                f"train_shift=True: {len(projections) - len(carried)} of {len(projections)} projections have "
                "no bias and the config has no switch for one, so this adapter cannot be merged",
                stacklevel=2,
            )
        return True
    if len(carried) in (0, len(projections)):
        return bool(carried)
    return carried


def _is_projection(config: HadamardConfig, name: str, module: nn.Module) -> bool:
    if not name or not matches(config, name, config.target_modules):
        return False
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return hasattr(base, "weight") and not is_norm(base)


def _pattern(names: Sequence[str]) -> str | list[str]:
    """One regular expression for all names; those that differ only in the layer's index share a part."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for name in names:
        layer = re.search(r"(?<=\.)\d+(?=\.)", name)
        head, tail = (name[: layer.start()], name[layer.end() :]) if layer else (name, "")
        kinds.setdefault((head, tail), []).append(layer.group() if layer else "")
    parts = []
    for (head, tail), indices in kinds.items():
        numbers = "|".join(dict.fromkeys(indices))
        parts.append(re.escape(head) + (f"({numbers})" if numbers else "") + re.escape(tail))
    return "|".join(parts) or []
