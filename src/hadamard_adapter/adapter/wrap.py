"""Chooses the layer that adapts a module, or says why none can."""

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from hadamard_adapter.adapter.config import HadamardConfig
from hadamard_adapter.adapter.norm import HadamardNorm, is_norm
from hadamard_adapter.adapter.projection import PROJECTIONS, HadamardProjection
from hadamard_adapter.errors import SettingsError

__all__ = ["wrap_module"]


def wrap_module(
    target: nn.Module, name: str, adapter_name: str, config: HadamardConfig, has_shift: bool
) -> HadamardNorm | HadamardProjection:
    """Returns the adapter layer around `target`.

    Raises:
        SettingsError: The module is of a kind that cannot be adapted.
    """
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    weight = getattr(base, "weight", None)
    if isinstance(weight, Tensor) and not weight.is_floating_point():
        raise SettingsError(
            f"{name}: expected floating point weights, received {weight.dtype}; quantised bases are not "
            "supported yet, load the model without quantisation"
        )
    if is_norm(base):
        return HadamardNorm(target, adapter_name, config)
    if isinstance(base, tuple(PROJECTIONS)):
        return HadamardProjection(target, adapter_name, config, has_shift)
    known = ", ".join(_full_name(kind) for kind in PROJECTIONS)
    raise SettingsError(
        f"{name}: expected one of {known} or a norm (a module with a weight of one axis), received "
        f"{_full_name(type(base))}; choose other target_modules"
    )


def _full_name(kind: type) -> str:
    """With the module, since a quantised layer's class may be called Linear too."""
    return f"{kind.__module__}.{kind.__qualname__}"
