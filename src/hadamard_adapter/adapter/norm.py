"""The layer around a norm: offsets of its weight and of its bias."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard_adapter.adapter.config import HadamardConfig
from hadamard_adapter.adapter.layers import HadamardLayer
from hadamard_adapter.adapter.rows import by_group

__all__ = ["HadamardNorm", "is_norm"]


class HadamardNorm(HadamardLayer):
    """A norm whose weight and bias carry offsets: γ' = γ + δγ, β' = β + δβ (δβ only where there is a β).

    The norm's own code runs on the changed tensors, so LayerNorm, RMSNorm and Gemma's 1 + w need no names.
    A norm in half precision runs in float32 and is rounded once.
    """

    adapter_layer_names = ("hadamard_norm_weight", "hadamard_norm_bias")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: HadamardConfig) -> None:
        super().__init__()
        self._start(base_layer, adapter_name)
        self.hadamard_norm_weight = nn.ParameterDict()
        self.hadamard_norm_bias = nn.ParameterDict()
        self.in_features = self.out_features = self.own_weight.numel()
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: HadamardConfig) -> None:
        """Adds an adapter to this norm, at the identity unless `config.init_weights` is False."""
        bias = self.unmerged("bias")
        self._add(self.hadamard_norm_weight, adapter_name, self.own_weight, config.init_weights)
        if bias is not None:
            self._add(self.hadamard_norm_bias, adapter_name, bias, config.init_weights)
        self._added(adapter_name, config)

    def _tensors(self, names: Sequence[str]) -> dict[str, Float[Tensor, " d"]]:
        offsets = {
            "weight": self._sum(self.hadamard_norm_weight, names),
            "bias": self._sum(self.hadamard_norm_bias, names),
        }
        base = {name: self.unmerged(name) for name in offsets}
        return {
            name: own.to(torch.promote_types(own.dtype, torch.float32)) + offset
            for name, offset in offsets.items()
            if offset is not None and (own := base[name]) is not None
        }

    def _call(
        self, x: Float[Tensor, "*shape"], names: Sequence[str], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "*shape"]:
        tensors = self._tensors(names)
        if not tensors:
            return self.base_layer(x, *args, **kwargs)
        base = self.base_layer
        if type(base) is nn.LayerNorm and not (base._forward_hooks or base._forward_pre_hooks):
            bias = tensors.get("bias", base.bias)
            wide = tensors["weight"].dtype
            y = nn.functional.layer_norm(x.to(wide), base.normalized_shape, tensors["weight"], bias, base.eps)
            return y.to(x.dtype)
        wide = torch.promote_types(x.dtype, tensors["weight"].dtype)
        if torch.compiler.is_compiling():  # which cannot trace a copy
            return torch.func.functional_call(base, tensors, (x.to(wide), *args), kwargs).to(x.dtype)
        # functional_call swaps the module's own tensors meanwhile, which other threads would see and keep.
        twin = copy.copy(base)
        vars(twin)["_parameters"] = {**vars(base)["_parameters"], **tensors}
        vars(twin).pop("forward", None)  # one of the instance alone (device hooks) would compute with its own
        return twin(x.to(wide), *args, **kwargs).to(x.dtype)

    def _forward_active(
        self, x: Float[Tensor, "*shape"], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "*shape"]:
        return self._call(x, self.active_adapters, *args, **kwargs)

    def _forward_mixed(
        self, x: Float[Tensor, "*shape"], names: list[str], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "*shape"]:
        def call(part: Tensor, name: str) -> Tensor:
            return self._call(part, [] if name == "__base__" else [name], *args, **kwargs)

        return by_group(x, names, call)

    def folded(self, adapter_names: Sequence[str]) -> dict[str, Float[Tensor, " d"] | None]:
        """Returns {"weight": γ', "bias": β'} (β' only where there is a β)."""
        dtype = self.own_weight.dtype
        return {name: tensor.detach().to(dtype) for name, tensor in self._tensors(adapter_names).items()}


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm by its shape: a weight with one axis."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1
