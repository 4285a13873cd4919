"""Names: what is in a module; an offset, base_model.model.STACK.LAYER.PATH.hadamard_KIND, taken apart."""

import re
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

__all__ = ["KINDS", "PREFIX", "OffsetName", "is_in", "is_offset", "offset_name", "split"]

Value = TypeVar("Value")

KINDS = ("scale", "shift", "norm_weight", "norm_bias")
"""Of offsets, in the order in which tables show them."""

PREFIX = "base_model.model."
"""What PEFT puts before the name of each of the model's tensors."""

_LAYER = re.compile(r"(?P<stack>.+?)\.(?P<layer>\d+)\.(?P<path>.+)")


class OffsetName(NamedTuple):
    """Where an offset stands in its model, and what it is."""

    stack: str
    """Path of the list of layers; of the module itself where it stands in none."""
    layer: int | None
    """Position in that list, from 0; None where the module stands in none (a model's last norm)."""
    path: str
    """Path of the module inside its layer."""
    kind: str
    """A word of KINDS."""

    @property
    def module(self) -> str:
        """Path of the module in the model."""
        return self.path if self.layer is None else f"{self.stack}.{self.layer}.{self.path}"


def offset_name(name: str) -> OffsetName | None:
    """The parts of a tensor's name, PEFT's prefix and the adapter's name left out; None: no offset.

    Example:
        >>> offset_name("base_model.model.bert.encoder.layer.3.output.dense.hadamard_scale")
        OffsetName(stack='bert.encoder.layer', layer=3, path='output.dense', kind='scale')
        >>> offset_name("base_model.model.model.final_norm.hadamard_norm_weight.default").layer
        >>> offset_name("base_model.model.classifier.bias")
    """
    module, _, rest = name.removeprefix(PREFIX).rpartition(".hadamard_")
    kind = rest.partition(".")[0]
    if not module or kind not in KINDS:
        return None
    found = _LAYER.fullmatch(module)
    if found is None:
        return OffsetName(module, None, module, kind)
    return OffsetName(found["stack"], int(found["layer"]), found["path"], kind)


def is_offset(name: str) -> bool:
    """Whether a tensor is an offset, in a layer or outside (a model's last norm), and not the head's.

    Example:
        >>> is_offset("base_model.model.model.final_norm.hadamard_norm_weight"), is_offset("classifier.bias")
        (True, False)
        >>> is_offset("base_model.model.hadamard_head.weight")
        False
    """
    return offset_name(name) is not None


def is_in(name: str, *modules: str) -> bool:
    """Whether a name is that of one of the modules or of something in it; "" is the root.

    Example:
        >>> is_in("h.1.attn", "h.1"), is_in("h.1", "h.1"), is_in("h.10.attn", "h.1", "score")
        (True, True, False)
    """
    return any(not module or f"{name}.".startswith(f"{module}.") for module in modules)


def split(tensors: Mapping[str, Value]) -> tuple[dict[str, Value], dict[str, Value]]:
    """The offsets among an adapter's named tensors, and the others, which are its head; both in their order.

    Example:
        >>> split({"h.0.attn.hadamard_scale": 1, "score.weight": 2})
        ({'h.0.attn.hadamard_scale': 1}, {'score.weight': 2})
    """
    offsets = {name: value for name, value in tensors.items() if is_offset(name)}
    return offsets, {name: value for name, value in tensors.items() if name not in offsets}
