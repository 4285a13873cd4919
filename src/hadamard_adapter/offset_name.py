"""The name of an offset in a file, base_model.model.STACK.LAYER.PATH.hadamard_KIND, taken apart."""

import re
from typing import NamedTuple

__all__ = ["KINDS", "OffsetName", "offset_name"]

KINDS = ("scale", "shift", "norm_weight", "norm_bias")
"""Of offsets, in the order in which tables show them."""

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


def offset_name(name: str) -> OffsetName | None:
    """The parts of a tensor's name, PEFT's prefix and the adapter's name left out; None: no offset.

    Example:
        >>> offset_name("base_model.model.bert.encoder.layer.3.output.dense.hadamard_scale")
        OffsetName(stack='bert.encoder.layer', layer=3, path='output.dense', kind='scale')
        >>> offset_name("base_model.model.model.final_norm.hadamard_norm_weight.default").layer
        >>> offset_name("base_model.model.classifier.bias")
    """
    module, _, rest = name.removeprefix("base_model.model.").rpartition(".hadamard_")
    kind = rest.partition(".")[0]
    if not module or kind not in KINDS:
        return None
    found = _LAYER.fullmatch(module)
    if found is None:
        return OffsetName(module, None, module, kind)
    return OffsetName(found["stack"], int(found["layer"]), found["path"], kind)
