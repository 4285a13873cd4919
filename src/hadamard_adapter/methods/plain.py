"""Methods that train a part of the model as it is: all, the head, the biases, the norms of attention."""

from typing import Any

from torch import nn

from hadamard_adapter.adapter.families import find_sites

__all__ = ["attention_norms", "biases", "everything", "head_only", "train_only"]


def everything(base: Any, head: tuple[str, ...]) -> Any:
    """Full fine-tuning.

    Source: Devlin et al., 2019, arXiv 1810.04805, section 4.
    """
    return base.requires_grad_(True)


def head_only(base: Any, head: tuple[str, ...]) -> Any:
    """The head on the frozen model: stage 1 of Chen et al., 2023, arXiv 2407.11033, alone."""
    return train_only(base, head, set())


def biases(base: Any, head: tuple[str, ...]) -> Any:
    """BitFit: every bias, those of the norms too.

    Source: Ben Zaken et al., 2022, arXiv 2106.10199, section 3.
    """
    return train_only(base, head, {name for name, _ in base.named_parameters() if name.endswith(".bias")})


def attention_norms(base: Any, head: tuple[str, ...]) -> Any:
    """Weight and bias of the norm behind attention, in each layer.

    Source: ours, what is left of the adapter of Chen et al., 2023, arXiv 2407.11033, without w and b.
    """
    norms = [site.norm for site in find_sites(base, ["attention"]) if site.norm]
    return train_only(base, head, {f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")})


def train_only(base: nn.Module, head: tuple[str, ...], names: set[str]) -> nn.Module:
    """The model with these parameters and the head training, and nothing else; changed in place.

    Args:
        base: a model with a head.
        head: full names of the head's modules.
        names: full names of parameters.
    """
    base.requires_grad_(False)
    for name, parameter in base.named_parameters():
        if name in names:
            parameter.requires_grad_(True)
    for name in head:
        base.get_submodule(name).requires_grad_(True)
    return base
