"""The two layers of the adapter: a projection with scale and shift, a norm with offsets of its weight and bias."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hadamard_adapter.adapter.config import HadamardConfig
from hadamard_adapter.adapter.freeze import FreezeMixin
from hadamard_adapter.adapter.merge import fold
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.functional import hadamard

__all__ = ["HadamardLayer", "HadamardNorm", "HadamardProjection", "is_norm", "rows_of", "wrap_module"]

# Which axis of the weight counts outputs, and how many axes of the activations follow the features.
PROJECTIONS: dict[type, tuple[int, int]] = {
    nn.Linear: (0, 0),
    Conv1D: (1, 0),
    nn.Conv2d: (0, 2),
    nn.Conv3d: (0, 3),
}
INIT_STD = 0.1


class HadamardLayer(FreezeMixin, BaseTunerLayer):
    """What the two layers share: adapters by name, merging from a kept copy, mixed batches.

    Merging several adapters is one fold of the sum of their offsets into the untouched copy, and unmerging
    puts the copy back, so that the base weights are the same bits as before.
    """

    base_layer: nn.Module

    def _start(self, base_layer: nn.Module, adapter_name: str) -> None:
        self.base_layer = base_layer
        self.merged_adapters = []
        self._disable_adapters = False
        self._active_adapter = [adapter_name]
        self._kept: dict[str, Tensor | None] = {}

    def _add(self, dictionary: nn.ParameterDict, adapter_name: str, like: Tensor, init_weights: bool) -> None:
        size = (like.numel(),)
        value = torch.zeros(size) if init_weights else torch.randn(size) * INIT_STD
        if value.device.type != "meta" and like.device.type != "meta":
            value = value.to(like.device)
        dictionary[adapter_name] = nn.Parameter(value.float())

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Moves an adapter's offsets beside the base weights; PEFT would round them to the base's dtype too."""
        like = self.unmerged("weight")
        for dictionary in (getattr(self, name) for name in self.adapter_layer_names):
            value = dictionary[adapter_name] if adapter_name in dictionary else None
            if value is not None and "meta" not in (value.device.type, like.device.type):
                dictionary[adapter_name] = value.to(device or like.device)

    def _sum(self, dictionary: nn.ParameterDict, names: Sequence[str]) -> Tensor | None:
        present = [dictionary[name] for name in names if name in dictionary]
        if len(present) < 2:
            return present[0] if present else None
        return torch.stack([value.float() for value in present]).sum(0)

    def folded(self, adapter_names: Sequence[str]) -> dict[str, Tensor | None]:
        """Returns the base layer's tensors with the given adapters folded into the unmerged ones."""
        raise NotImplementedError

    def unmerged(self, name: str) -> Tensor | None:
        """Returns the base layer's own tensor of that name, as it is without any merged adapter."""
        if name in self._kept:
            return self._kept[name]
        value = getattr(self.get_base_layer(), name, None)
        return None if value is None else value.data

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Folds the adapters into the base layer.

        Args:
            safe_merge: Whether to refuse a result that is not finite, leaving the layer as it was.
            adapter_names: The adapters to merge; None: the active ones.

        Raises:
            ValueError: With safe_merge, if a merged tensor is not finite.
        """
        names = [
            n for n in check_adapters_to_merge(self, adapter_names) if n in self._get_available_adapters()
        ]
        if not names:
            return
        tensors = self.folded([*self.merged_adapters, *names])
        if safe_merge and not all(t is None or torch.isfinite(t).all() for t in tensors.values()):
            raise ValueError(
                f"NaNs detected in the merged weights. The adapter {', '.join(names)} seems to be broken"
            )
        base = self.get_base_layer()
        for name, tensor in tensors.items():
            self._kept.setdefault(name, self.unmerged(name))
            if tensor is None:
                continue
            if getattr(base, name, None) is None:
                setattr(base, name, nn.Parameter(tensor, requires_grad=False))
            else:
                getattr(base, name).data = tensor
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Puts the base layer's own tensors back, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        base = self.get_base_layer()
        for name, tensor in self._kept.items():
            if tensor is None:
                setattr(base, name, None)
            else:
                getattr(base, name).data = tensor
        self._kept = {}
        self.merged_adapters.clear()

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """Returns the base layer's output with the active adapters, or with one adapter a row.

        Args:
            x: The input, of shape (b, s, d) or (k·b, d) with rows in order.
            adapter_names: One adapter's name a row ("__base__" for none), or None.

        Raises:
            ValueError: `adapter_names` does not fit the input, or the adapters are merged.
        """
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        if adapter_names is not None:
            if self.merged:
                raise ValueError(
                    "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` "
                    "first."
                )
            return self._forward_mixed(x, rows_of(x, adapter_names), *args, **kwargs)
        if self.merged:
            return self.base_layer(x, *args, **kwargs)
        return self._forward_active(x, *args, **kwargs)

    def _forward_active(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError

    def _forward_mixed(self, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError


class HadamardProjection(HadamardLayer, nn.Module):
    """A projection whose output (or input) is scaled and shifted.

        position "output":  y = (1 + scale) ⊙ (W x + c) + shift      scale, shift: (o,)
        position "input":   y = W ((1 + scale) ⊙ x + shift) + c      scale, shift: (i,)

    Several active adapters add their offsets.

    Source: Chen et al., CIKM 2023, section 3.2.
    """

    adapter_layer_names = ("hadamard_scale", "hadamard_shift")
    other_param_names = ("position",)

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: HadamardConfig, has_shift: bool
    ) -> None:
        super().__init__()
        self._start(base_layer, adapter_name)
        self.hadamard_scale = nn.ParameterDict()
        self.hadamard_shift = nn.ParameterDict()
        self.position: dict[str, str] = {}
        base = self.get_base_layer()
        self.out_axis, self.n_trailing = next(v for k, v in PROJECTIONS.items() if isinstance(base, k))
        self.out_features, self.in_features = (
            base.weight.shape[self.out_axis],
            base.weight.shape[1 - self.out_axis],
        )
        self.update_layer(adapter_name, config, has_shift)

    def update_layer(self, adapter_name: str, config: HadamardConfig, has_shift: bool) -> None:
        """Adds an adapter to this layer, at the identity unless `config.init_weights` is False."""
        if config.position == "input" and self.n_trailing:
            raise SettingsError(
                'position: expected "output" for a convolution (its padding is not shifted), received "input"'
            )
        self.position[adapter_name] = config.position
        axis = self.out_axis if config.position == "output" else 1 - self.out_axis
        like = self.get_base_layer().weight.transpose(0, axis).flatten(1)[:, 0]
        if config.train_scale:
            self._add(self.hadamard_scale, adapter_name, like, config.init_weights)
        if has_shift:
            self._add(self.hadamard_shift, adapter_name, like, config.init_weights)
        self.freeze_adapter(adapter_name, config.freeze_adapter)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _offsets(self, names: Sequence[str], position: str) -> tuple[Tensor | None, Tensor | None]:
        here = [name for name in names if self.position.get(name) == position]
        return self._sum(self.hadamard_scale, here), self._sum(self.hadamard_shift, here)

    def _adapt(self, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        if self.n_trailing:
            ones = (1,) * self.n_trailing
            scale, shift = (None if v is None else v.view(*v.shape, *ones) for v in (scale, shift))
        return hadamard(x, scale, shift)

    def _forward_active(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = self._adapt(x, *self._offsets(self.active_adapters, "input"))
        y = self.base_layer(x, *args, **kwargs)
        return self._adapt(y, *self._offsets(self.active_adapters, "output"))

    def _forward_mixed(self, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        x = self._adapt(x, *self._row_offsets(names, "input", x))
        y = self.base_layer(x, *args, **kwargs)
        return self._adapt(y, *self._row_offsets(names, "output", y))

    def _row_offsets(
        self, names: list[str], position: str, like: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        return tuple(
            self._gather(at, names, position, like) for at in (self.hadamard_scale, self.hadamard_shift)
        )

    def _gather(
        self, dictionary: nn.ParameterDict, names: list[str], position: str, like: Tensor
    ) -> Tensor | None:
        unique = sorted(set(names))
        here = {n: dictionary[n] for n in unique if n in dictionary and self.position.get(n) == position}
        if not here:
            return None
        zero = torch.zeros_like(next(iter(here.values())))
        table = torch.stack([here.get(name, zero).float() for name in unique])
        index = torch.tensor([unique.index(name) for name in names], device=table.device)
        n_between = like.ndim - 2 - self.n_trailing
        return table[index].view(len(names), *(1,) * n_between, table.shape[1])

    def folded(self, adapter_names: Sequence[str]) -> dict[str, Tensor | None]:
        """Returns {"weight": W', "bias": c'} (see `hadamard_adapter.adapter.merge.fold`)."""
        offsets = (*self._offsets(adapter_names, "input"), *self._offsets(adapter_names, "output"))
        offsets = [None if offset is None else offset.detach() for offset in offsets]
        weight, bias = fold(self.unmerged("weight"), self.unmerged("bias"), *offsets, out_axis=self.out_axis)
        return {"weight": weight, "bias": bias}

    def has_lost_shift(self, adapter_names: Sequence[str]) -> bool:
        """Whether these adapters shift a projection that has no bias to carry it."""
        shifts = [self.hadamard_shift[name] for name in adapter_names if name in self.hadamard_shift]
        return self.unmerged("bias") is None and any(bool(shift.any()) for shift in shifts)

    @property
    def gained_bias(self) -> bool:
        """Whether merging gave the projection a bias that it did not have."""
        return self.merged and self.unmerged("bias") is None and self.get_base_layer().bias is not None

    def __repr__(self) -> str:
        return "hadamard." + super().__repr__()


class HadamardNorm(HadamardLayer, nn.Module):
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
        self.in_features = self.out_features = self.get_base_layer().weight.numel()
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: HadamardConfig) -> None:
        """Adds an adapter to this norm, at the identity unless `config.init_weights` is False."""
        base = self.get_base_layer()
        self._add(self.hadamard_norm_weight, adapter_name, base.weight, config.init_weights)
        if getattr(base, "bias", None) is not None:
            self._add(self.hadamard_norm_bias, adapter_name, base.bias, config.init_weights)
        self.freeze_adapter(adapter_name, config.freeze_adapter)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _tensors(self, names: Sequence[str]) -> dict[str, Tensor]:
        offsets = {
            "weight": self._sum(self.hadamard_norm_weight, names),
            "bias": self._sum(self.hadamard_norm_bias, names),
        }
        base = {name: self.unmerged(name) for name in offsets}
        return {
            name: base[name].to(torch.promote_types(base[name].dtype, torch.float32)) + offset
            for name, offset in offsets.items()
            if offset is not None
        }

    def _call(self, x: Tensor, names: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        tensors = self._tensors(names)
        if not tensors:
            return self.base_layer(x, *args, **kwargs)
        base = self.base_layer
        if type(base) is nn.LayerNorm:
            bias = tensors.get("bias", base.bias)
            wide = tensors["weight"].dtype
            y = nn.functional.layer_norm(x.to(wide), base.normalized_shape, tensors["weight"], bias, base.eps)
            return y.to(x.dtype)
        wide = torch.promote_types(x.dtype, tensors["weight"].dtype)
        return torch.func.functional_call(base, tensors, (x.to(wide), *args), kwargs).to(x.dtype)

    def _forward_active(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._call(x, self.active_adapters, *args, **kwargs)

    def _forward_mixed(self, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        def call(part: Tensor, name: str) -> Tensor:
            return self._call(part, [] if name == "__base__" else [name], *args, **kwargs)

        return by_group(x, names, call)

    def folded(self, adapter_names: Sequence[str]) -> dict[str, Tensor | None]:
        """Returns {"weight": γ', "bias": β'} (β' only where there is a β)."""
        dtype = self.unmerged("weight").dtype
        return {name: tensor.detach().to(dtype) for name, tensor in self._tensors(adapter_names).items()}

    def __repr__(self) -> str:
        return "hadamard." + super().__repr__()


def by_group(x: Tensor, names: list[str], call: Callable[[Tensor, str], Tensor]) -> Tensor:
    """Returns call(rows, name) for the rows of each name, back in the order of the rows.

    Outputs of different width (heads with different numbers of labels) are padded with -inf on the right.
    """
    groups = {name: [i for i, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
    parts = [call(x[rows], name) for name, rows in groups.items()]
    width = max(part.shape[-1] for part in parts)
    parts = [nn.functional.pad(p, (0, width - p.shape[-1]), value=float("-inf")) for p in parts]
    order = torch.tensor([row for rows in groups.values() for row in rows], device=x.device)
    joined = torch.cat(parts)
    return torch.empty_like(joined).index_copy_(0, order, joined)


def rows_of(x: Tensor, adapter_names: list[str]) -> list[str]:
    """Returns one adapter name for each row of x: beams and flattened tokens repeat their text's name.

    Raises:
        ValueError: The number of rows is no multiple of the number of names.
    """
    times, rest = divmod(x.shape[0], len(adapter_names))
    if rest or not times:
        raise ValueError(
            "Length of `adapter_names` should be the same as the number of inputs, but got "
            f"{len(adapter_names)} and {x.shape[0]} respectively."
        )
    return [name for name in adapter_names for _ in range(times)] if times > 1 else list(adapter_names)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm by its shape: a weight with one axis."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1


def wrap_module(target: nn.Module, name: str, adapter_name: str, config: HadamardConfig, has_shift: bool):
    """Returns the adapter layer around `target`.

    Raises:
        SettingsError: The module is of a kind that cannot be adapted.
    """
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    weight = getattr(base, "weight", None)
    if isinstance(weight, Tensor) and not weight.is_floating_point():
        raise SettingsError(
            f"{name}: expected floating point weights, received {weight.dtype}; quantised bases are not supported "
            "yet, load the model without quantisation"
        )
    if is_norm(base):
        return HadamardNorm(target, adapter_name, config)
    if isinstance(base, tuple(PROJECTIONS)):
        return HadamardProjection(target, adapter_name, config, has_shift)
    known = ", ".join(kind.__name__ for kind in PROJECTIONS)
    raise SettingsError(
        f"{name}: expected one of {known} or a norm (a module with a weight of one axis), received "
        f"{type(base).__name__}; choose other target_modules"
    )
