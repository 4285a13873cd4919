"""A head of one linear layer inside a stock class: the layers before the output layer are the identity.

Most classes of transformers put a dense layer between the first token h and the output layer,

    logits = V a(W h + c) + d        a: tanh (RoBERTa, MPNet), GELU (ELECTRA, DeBERTa), ReLU (DistilBERT)

With W = I and c = 0 what is left to train and to keep is V and d: logits = V a(h) + d. W takes no bytes in a
file, since every reader makes it again, and an export carries it, so the stock class computes the same.
"""

from collections.abc import Sequence

import torch
from torch import nn

from hadamard_adapter.errors import SettingsError

__all__ = ["inner_layers", "make_identity"]


def inner_layers(head: Sequence[tuple[str, nn.Module]]) -> list[str]:
    """Names of a head's layers before its output layer, which is its last linear layer.

    Args:
        head: name and module of everything in the head, in the model's order.

    Example:
        >>> inner_layers([("dense", nn.Linear(2, 2)), ("act", nn.Tanh()), ("out", nn.Linear(2, 3))])
        ['dense']
    """
    layers = [(name, m) for name, m in head if next(m.parameters(recurse=False), None) is not None]
    linears = [name for name, module in layers if isinstance(module, nn.Linear)]
    return [name for name, _ in layers if name not in linears[-1:]]


@torch.no_grad()
def make_identity(module: nn.Module, name: str) -> None:
    """Turns a layer into the identity, in place: W = I and c = 0, or a norm's γ = 1 and β = 0.

    Raises:
        SettingsError: It is neither a square linear layer nor a layer norm.
    """
    if isinstance(module, nn.Linear) and module.in_features == module.out_features:
        nn.init.eye_(module.weight)
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        module.weight.fill_(1)
    else:
        raise SettingsError(
            f"identity_modules: expected square linear layers and layer norms before the output layer, "
            f"received {name!r}, {module}; train the head whole (head full)"
        )
    if getattr(module, "bias", None) is not None:
        module.bias.zero_()
