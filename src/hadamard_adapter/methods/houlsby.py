"""Houlsby et al.'s bottleneck adapters, behind attention and behind the feed-forward block of each layer."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard_adapter.adapter.families import find_sites
from hadamard_adapter.methods.plain import train_only

__all__ = ["WIDTH", "houlsby"]

WIDTH = 64
"""Width of the bottleneck; the middle one of the paper's 8, 64 and 256."""


class _Bottleneck(nn.Module):
    """y + U gelu(D y + c) + e behind a projection y = W x; U and e are zero at the start.

    Args:
        projection: what the bottleneck stands behind.
        hidden: length of y.

    Source: Houlsby et al., 2019, arXiv 1902.00751, figure 2.
    """

    def __init__(self, projection: nn.Module, hidden: int) -> None:
        super().__init__()
        self.projection = projection
        self.down = nn.Linear(hidden, WIDTH)
        self.up = nn.Linear(WIDTH, hidden)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b d"]:
        y = self.projection(x)
        return y + self.up(torch.nn.functional.gelu(self.down(y)))


def houlsby(base: Any, head: tuple[str, ...]) -> Any:
    """Two bottlenecks a layer, and the layer's norms."""
    trained: set[str] = set()
    for site in find_sites(base, ["attention", "ffn"]):
        parent, _, child = site.projection.rpartition(".")
        adapter = _Bottleneck(base.get_submodule(site.projection), base.config.hidden_size)
        setattr(base.get_submodule(parent), child, adapter)
        kinds = (f"{part}.{kind}" for part in ("down", "up") for kind in ("weight", "bias"))
        trained |= {f"{site.projection}.{kind}" for kind in kinds}
        trained |= {f"{site.norm}.weight", f"{site.norm}.bias"} if site.norm else set()
    return train_only(base, head, trained)
