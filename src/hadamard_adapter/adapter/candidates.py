"""Proposes projections and norms to adapt in a model that has no row in the table of families."""

from collections import Counter
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

__all__ = ["Candidate", "candidates"]

_NORMS_PER_LAYER = 2  # a transformer layer normalises at least twice; a branch inside one (T5) once


@dataclass(frozen=True)
class Candidate:
    """One module inside the layers of a stack that looks like a projection or a norm to adapt."""

    kind: str
    """"projection" or "norm"."""
    layers: str
    """Full path of the list of layers."""
    path: str
    """Path inside one layer: what to pass in `target_modules` or `norm_modules`."""
    layer_indices: tuple[int, ...]
    """The layers that have it, from 0."""


def candidates(model: nn.Module) -> list[Candidate]:
    """Returns what may be worth adapting, by structure alone: a proposal to look at, not a rule.

    A layer is an entry of the deepest list of modules whose entries hold two norms of the hidden width. In
    each block of a layer (attention, feed-forward) the last linear map onto the hidden width is a projection;
    every norm of that width is a norm.

    Args:
        model: any model; its `config.hidden_size` is used if it has one, else the commonest width of a norm.

    Returns:
        Projections before norms, stack by stack; empty where no list of layers is found.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2))
        >>> [found.path for found in candidates(model) if found.kind == "projection"]
        ['attention.output.dense', 'output.dense']
    """
    width = _hidden_width(model)
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and any(len(_norms(layer, width)) >= _NORMS_PER_LAYER for layer in module)
    }
    return [
        candidate
        for path, layers in lists.items()
        if not any(other.startswith(f"{path}.") for other in lists)
        for candidate in _in_layers(path, layers, width)
    ]


def _in_layers(path: str, layers: nn.ModuleList, width: int | None) -> list[Candidate]:
    found: dict[tuple[str, str], list[int]] = {}
    for layer_index, layer in enumerate(layers):
        for name in _projections(layer, width):
            found.setdefault(("projection", name), []).append(layer_index)
        for name in _norms(layer, width):
            found.setdefault(("norm", name), []).append(layer_index)
    ordered = sorted(found.items(), key=lambda item: item[0][0] != "projection")
    return [Candidate(kind, path, name, tuple(indices)) for (kind, name), indices in ordered]


def _hidden_width(model: nn.Module) -> int | None:
    width = getattr(getattr(model, "config", None), "hidden_size", None)
    if isinstance(width, int):
        return width
    counts = Counter(_norm_width(module) for module in model.modules())
    del counts[None]
    return counts.most_common(1)[0][0] if counts else None


def _norm_width(module: nn.Module) -> int | None:
    """The width of a module that looks like a norm: it has a vector as weight and nothing inside."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return None if weight is None or weight.ndim != 1 or any(module.children()) else weight.shape[0]


def _norms(layer: nn.Module, width: int | None) -> list[str]:
    return [name for name, module in layer.named_modules() if width and _norm_width(module) == width]


def _projections(layer: nn.Module, width: int | None) -> list[str]:
    """The last linear map onto the hidden width in each block; a list of blocks counts as its entries."""
    blocks: list[tuple[str, nn.Module]] = []
    for name, child in layer.named_children():
        if isinstance(child, nn.ModuleList):
            blocks += [(f"{name}.{index}", entry) for index, entry in enumerate(child)]
        else:
            blocks.append((name, child))
    found: list[str] = []
    for block_name, block in blocks:
        inside = [name for name, module in block.named_modules() if width and _out_width(module) == width]
        if inside:
            found.append(".".join(filter(None, (block_name, inside[-1]))))
    return found


def _out_width(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.nf if isinstance(module, Conv1D) else None
