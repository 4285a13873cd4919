"""Frozen linear layers through oneDNN, where that is faster than PyTorch's own way.

On x86, PyTorch hands a product of float32 matrices to MKL, which uses AVX-512 on Intel's processors alone.
oneDNN, which PyTorch carries too, uses it on all, and reads a weight that was laid out for it once. Which of
the two is faster is measured on the layer at hand, not concluded from the name of the processor.

The operators are those that torch.compile puts into a frozen graph: pytorch@v2.4.0
torch/_inductor/mkldnn_lowerings.py. PyTorch does not document them, so they are looked for, and compared with
the plain layer, before they are used.
"""

import time
from collections.abc import Callable, Collection

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from hadamard_adapter.offset_name import is_in

__all__ = ["OneDnnLinear", "is_faster", "pack_linears"]

N_TOKENS = 256
"""Rows of the products that are compared; the weight is laid out for so many, and serves any number."""
N_TRIALS = 5
GAIN = 0.9
"""Share of the plain layer's time below which oneDNN is taken."""


class OneDnnLinear(nn.Module):
    """y = W x + c without gradients, in float32 on a processor; W is laid out for oneDNN.

    Args:
        layer: whose weight is copied; its bias is shared.

    Raises:
        AttributeError: this PyTorch was built without oneDNN.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> bool(torch.allclose(OneDnnLinear(layer)(torch.ones(1, 3)), layer(torch.ones(1, 3))))
        True
    """

    def __init__(self, layer: nn.Linear) -> None:
        """Lay out the weight."""
        super().__init__()
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), N_TOKENS)

    @property
    def weight(self) -> Float32[Tensor, "o i"]:
        """W as a plain tensor, unpacked each time."""
        return self._packed.to_dense()

    @torch.no_grad()
    def forward(self, x: Float32[Tensor, "... i"]) -> Float32[Tensor, "... o"]:
        """Apply the layer."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")


def is_faster(layer: nn.Linear) -> bool:
    """Whether oneDNN computes a layer faster, by a tenth at least; False where it cannot, or errs."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise") or not torch.backends.mkldnn.is_available():
        return False
    packed, x = OneDnnLinear(layer), torch.linspace(-1, 1, N_TOKENS * layer.in_features)
    x = x.view(N_TOKENS, layer.in_features)
    with torch.inference_mode():
        if not torch.allclose(packed(x), layer(x), atol=1e-4, rtol=1e-4):
            return False
        times = [[_seconds(each, x) for each in (layer, packed)] for _ in range(N_TRIALS)]
    plain, ours = map(min, zip(*times, strict=True))
    return ours < GAIN * plain


def pack_linears(model: nn.Module, but: Collection[str] = ()) -> int:
    """Replace the linear layers of a frozen model by `OneDnnLinear`, if the largest of them is faster so.

    What another dtype than float32 has, another device than a processor, or a gradient, stays as it is. A
    model that was packed stays on its device.

    Args:
        model: changed in place.
        but: paths of modules that stay with all that is in them.

    Returns:
        Number of layers that were replaced.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4))
        >>> pack_linears(model, but=["0"])
        0
    """
    layers = {
        path: module
        for path, module in model.named_modules()
        if type(module) is nn.Linear and _can_be_packed(module) and not is_in(path, *but)
    }
    if not layers or not is_faster(max(layers.values(), key=lambda layer: layer.weight.numel())):
        return 0
    for path, layer in layers.items():
        model.set_submodule(path, OneDnnLinear(layer))
    return len(layers)


def _can_be_packed(layer: nn.Linear) -> bool:
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and not weight.requires_grad


def _seconds(call: Callable[[Float[Tensor, "b i"]], object], x: Float[Tensor, "b i"]) -> float:
    started = time.perf_counter()
    call(x)
    return time.perf_counter() - started
