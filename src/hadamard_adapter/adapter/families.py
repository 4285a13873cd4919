"""Finds the sites of a model: the projections that the table names, with the norms that follow.

The table itself, with the rule for the norms, is in family_table.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig

from ..errors import SettingsError
from .candidates import Candidate, candidates
from .family_table import FAMILIES, Family, Site, Stack

__all__ = [
    "FAMILIES",
    "SITE_NAMES",
    "Candidate",
    "Family",
    "Site",
    "SiteModules",
    "Stack",
    "candidates",
    "family_of",
    "find_sites",
    "layer_stacks",
    "refuse_shared",
    "shift_can_merge",
]

SITE_NAMES = ("attention", "ffn")


@dataclass(frozen=True)
class SiteModules:
    """One site of one layer of a given model, as full module paths."""

    site: str
    """"attention" or "ffn"."""
    stack: str
    """Full path of the list of layers."""
    layer_index: int
    """Position in that list, from 0."""
    projection: str
    """Full path of the projection."""
    norm: str | None
    """Full path of the norm that follows, or None."""
    bias_switch: str | None
    """Attribute of the config that gives the projection a bias, or None."""


def family_of(config: PretrainedConfig) -> Family:
    """Returns the row of a model: the first one of its `model_type` whose `when` holds.

    Args:
        config: configuration of the model.

    Raises:
        SettingsError: the table has no row for this `model_type`, or none for these values of the config.

    Example:
        >>> from transformers import BertConfig
        >>> family_of(BertConfig()).stacks[0].attention.projection
        'attention.output.dense'
    """
    model_type = getattr(config, "model_type", None)
    rows = FAMILIES.get(model_type or "", ())
    for row in rows:
        if all(getattr(config, name, None) == value for name, value in row.when):
            return row
    if rows:
        needed = "; ".join(", ".join(f"{name}={value!r}" for name, value in row.when) for row in rows)
        raise SettingsError(
            f"no family for model_type {model_type!r} with this config; rows need one of: {needed}"
        )
    raise SettingsError(
        f"no family for model_type {model_type!r}; known: {', '.join(sorted(FAMILIES))}. "
        'Name the projections yourself, e.g. HadamardConfig(target_modules=["attention.output.dense"], '
        'norm_modules=["attention.output.LayerNorm"]); `hadamard inspect MODEL` proposes candidates'
    )


def find_sites(
    model: nn.Module, sites: Sequence[str], layers_to_transform: Sequence[int] | None = None
) -> tuple[SiteModules, ...]:
    """Returns the modules of the wanted sites, in the order of stacks, layers and `sites`.

    Args:
        model: a transformers model, with or without a head, or a module around one; it needs `config`.
        sites: names out of "attention" and "ffn".
        layers_to_transform: positions from 0; None means all. In an encoder-decoder they count in each stack,
            and a shorter stack takes those that it has.

    Returns:
        One entry per layer and site. `norm` is None where no norm with a weight follows.

    Raises:
        SettingsError: an unknown site, a model without a row, a layer that does not exist, layers named
            although they share their weights, or a model that is not laid out as its row says.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2))
        >>> find_sites(model, ["attention"])[1].projection
        'encoder.layer.1.attention.output.dense'
    """
    for name in sites:
        if name not in SITE_NAMES:
            raise SettingsError(f"expected sites out of {list(SITE_NAMES)}, received {name!r}")
    config = getattr(model, "config", None)
    if config is None:
        raise SettingsError(
            f"expected a model with a config, received {type(model).__name__}; pass target_modules=[...], "
            "the names of its projections"
        )
    family = family_of(config)
    refuse_shared(config.model_type, layers_to_transform)
    modules = dict(model.named_modules())
    stacks = _stacks_of(modules, family, config.model_type)
    lengths = [len(modules[path]) for path, _ in stacks]  # type: ignore[arg-type]
    chosen = _chosen_layers(layers_to_transform, max(lengths))
    return tuple(
        _site_modules(modules, name, stack, path, layer_index, length)
        for (path, stack), length in zip(stacks, lengths, strict=True)
        for layer_index in range(length)
        if layer_index in chosen
        for name in sites
    )


def refuse_shared(model_type: str, layers: Sequence[int] | int | None) -> None:
    """Refuses layers that were named although they share their weights.

    Raises:
        SettingsError: the model is of such a family, and `layers` is not None.
    """
    if layers is not None and any(row.is_shared for row in FAMILIES.get(model_type, ())):
        raise SettingsError(
            f"the layers of {model_type!r} share their weights: expected layers_to_transform=None, received "
            f"{layers!r}"
        )


def layer_stacks(model: nn.Module) -> list[nn.ModuleList]:
    """Returns the model's lists of layers, in the order of its family's row.

    Raises:
        SettingsError: a model without a row, or without such a list.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> [len(stack) for stack in layer_stacks(BertModel(BertConfig(hidden_size=12)))]
        [12]
    """
    config = getattr(model, "config", None)
    modules = dict(model.named_modules())
    paths = _stacks_of(modules, family_of(config), config.model_type)  # type: ignore[arg-type, union-attr]
    return [modules[path] for path, _ in paths]  # type: ignore[misc]


def shift_can_merge(model: nn.Module, projection_path: str, bias_switch: str | None) -> bool:
    """Tells whether a merged shift survives saving: the projection has a bias, or the config can give it one.

    Args:
        model: the model that holds the projection, before injection.
        projection_path: full path of the projection.
        bias_switch: attribute of the config, as in `SiteModules`.

    Raises:
        AttributeError: the model has no module of that path.

    Example:
        >>> from transformers import LlamaConfig, LlamaModel
        >>> config = LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = LlamaModel(config)
        >>> shift_can_merge(model, "layers.0.self_attn.o_proj", "attention_bias")
        True
    """
    if getattr(model.get_submodule(projection_path), "bias", None) is not None:
        return True
    return bias_switch is not None and getattr(getattr(model, "config", None), bias_switch, None) is False


def _stacks_of(modules: dict[str, nn.Module], family: Family, model_type: str) -> list[tuple[str, Stack]]:
    """The family's stacks that this model has, with their full paths."""
    stacks = [(path, stack) for stack in family.stacks for path in _stack_paths(modules, stack)]
    if not stacks:
        wanted = ", ".join(stack.layers for stack in family.stacks)
        raise SettingsError(
            f"no list of layers named {wanted} in this {model_type!r} model; pass target_modules=[...]"
        )
    return stacks


def _stack_paths(modules: dict[str, nn.Module], stack: Stack) -> list[str]:
    """Full paths of the lists of layers that end in the stack's path."""
    return [
        path
        for path, module in modules.items()
        if isinstance(module, nn.ModuleList) and f".{path}".endswith(f".{stack.layers}")
    ]


def _chosen_layers(layers_to_transform: Sequence[int] | None, n_layers: int) -> frozenset[int]:
    if layers_to_transform is None:
        return frozenset(range(n_layers))
    for layer_index in layers_to_transform:
        if not 0 <= layer_index < n_layers:
            raise SettingsError(
                f"expected layers_to_transform within 0..{n_layers - 1} (the model has {n_layers} layers), "
                f"received {layer_index!r}"
            )
    return frozenset(layers_to_transform)


def _site_modules(
    modules: dict[str, nn.Module], name: str, stack: Stack, path: str, layer_index: int, n_layers: int
) -> SiteModules:
    site: Site = getattr(stack, name)
    projection = f"{path}.{layer_index}.{site.projection}"
    if projection not in modules:
        raise SettingsError(f"no module {projection!r} in this model; pass target_modules=[...]")
    norm = _norm_path(modules, site, stack, path, layer_index, n_layers)
    return SiteModules(name, path, layer_index, projection, norm, site.bias_switch)


def _norm_path(
    modules: dict[str, nn.Module], site: Site, stack: Stack, path: str, layer_index: int, n_layers: int
) -> str | None:
    """Full path of the norm that follows; None where there is none, or none with a weight (Identity)."""
    if site.norm_in_next_layer and layer_index == n_layers - 1:
        norm = None if stack.final_norm is None else path.removesuffix(stack.layers) + stack.final_norm
    elif site.norm is None:
        norm = None
    else:
        norm = f"{path}.{layer_index + site.norm_in_next_layer}.{site.norm}"
        if norm not in modules:
            raise SettingsError(
                f"no norm {norm!r} in this model; pass target_modules=[...] and norm_modules=[...]"
            )
    return norm if norm in modules and getattr(modules[norm], "weight", None) is not None else None
