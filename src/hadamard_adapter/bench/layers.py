"""How far each layer's adapter went from the identity: the root mean square of its offsets."""

from collections.abc import Mapping

from torch import Tensor

from hadamard_adapter.offset_name import offset_name

__all__ = ["offsets_by_layer"]


def offsets_by_layer(tensors: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Kind of offset and module -> sqrt(mean(offset²)) by layer, from the lowest adapted one on.

    A layer without this kind has 0: the norm that follows a layer may be the next one's.

    Args:
        tensors: of an adapter's file, by name.

    Example:
        >>> import torch
        >>> name = "base_model.model.bert.encoder.layer.{}.output.dense.hadamard_scale"
        >>> offsets_by_layer({name.format(0): torch.tensor([3.0, 4.0]), name.format(1): torch.zeros(2)})
        {'scale output.dense': [3.5355, 0.0]}
    """
    found: dict[str, dict[int, float]] = {}
    for name, tensor in tensors.items():
        parts = offset_name(name)
        if parts is not None and parts.layer is not None:
            value = float(tensor.float().square().mean().sqrt())
            found.setdefault(f"{parts.kind} {parts.path}", {})[parts.layer] = round(value, 4)
    layers = sorted({layer for values in found.values() for layer in values})
    return {kind: [values.get(layer, 0.0) for layer in layers] for kind, values in sorted(found.items())}
