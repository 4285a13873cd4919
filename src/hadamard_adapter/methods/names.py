"""Names of the modules that methods change: attention's inputs, and norms."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from hadamard_adapter.adapter.families import find_sites
from hadamard_adapter.adapter.norm import is_norm
from hadamard_adapter.errors import SettingsError

__all__ = ["inputs_of_attention", "norms_behind", "norms_in"]

_BERT = ("attention.self.query", "attention.self.key", "attention.self.value")

_QKV: dict[str, tuple[str, str, str]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "mpnet": ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    "deberta-v2": ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
}
"""By `config.model_type`: paths of the projections to queries, keys and values inside a layer."""


def inputs_of_attention(base: Any, kinds: str) -> list[str]:
    """Full names of the projections to queries ("q"), keys ("k") and values ("v"), layer by layer.

    Args:
        base: a transformers model.
        kinds: letters out of "qkv".

    Raises:
        SettingsError: it is not known how the model's family names them.
    """
    paths = _QKV.get(base.config.model_type)
    if paths is None:
        raise SettingsError(
            f"model type {base.config.model_type!r}: expected one of {', '.join(sorted(_QKV))}, whose "
            "projections to queries, keys and values are known; leave this method out"
        )
    sites = find_sites(base, ["attention"])
    layers = [f"{site.stack}.{site.layer_index}" for site in sites]
    return [f"{layer}.{paths['qkv'.index(kind)]}" for layer in layers for kind in kinds]


def norms_behind(config: Any, sites: list[str]) -> tuple[str, ...]:
    """Names of the norms that follow the sites, as a model without a head has them.

    Args:
        config: of the base model.
        sites: names out of "attention" and "ffn".

    Example:
        >>> from transformers import BertConfig
        >>> norms_behind(BertConfig(num_hidden_layers=1), ["ffn"])
        ('encoder.layer.0.output.LayerNorm',)
    """
    with torch.device("meta"):
        skeleton = AutoModel.from_config(config)
    return tuple(site.norm for site in find_sites(skeleton, sites) if site.norm)


def norms_in(base: nn.Module) -> list[str]:
    """Full names of all norms with a weight."""
    return [name for name, module in base.named_modules() if is_norm(module)]
