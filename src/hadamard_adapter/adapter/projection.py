"""The layer around a projection: its output, or its input, is scaled and shifted."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hadamard_adapter.adapter.config import HadamardConfig
from hadamard_adapter.adapter.layers import HadamardLayer
from hadamard_adapter.adapter.merge import fold
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.functional import hadamard

__all__ = ["PROJECTIONS", "HadamardProjection"]

PROJECTIONS: dict[type, tuple[int, int]] = {
    nn.Linear: (0, 0),
    Conv1D: (1, 0),
    nn.Conv2d: (0, 2),
    nn.Conv3d: (0, 3),
}
"""Which axis of the weight counts outputs, and how many axes of the activations follow the features."""


class HadamardProjection(HadamardLayer):
    """A projection whose output (or input) is scaled and shifted.

        position "output":  y = (1 + scale) ⊙ (W x + c) + shift      scale, shift: (o,)
        position "input":   y = W ((1 + scale) ⊙ x + shift) + c      scale, shift: (i,)

    Several active adapters add their offsets.

    Source: Chen et al., CIKM 2023 (arXiv 2407.11033).
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
        base, shape = self.get_base_layer(), self.own_weight.shape
        self.out_axis, self.n_trailing = next(v for k, v in PROJECTIONS.items() if isinstance(base, k))
        self.out_features, self.in_features = shape[self.out_axis], shape[1 - self.out_axis]
        self.update_layer(adapter_name, config, has_shift)

    def update_layer(self, adapter_name: str, config: HadamardConfig, has_shift: bool) -> None:
        """Adds an adapter to this layer, at the identity unless `config.init_weights` is False."""
        if config.position == "input" and self.n_trailing:
            raise SettingsError(
                'position: expected "output" for a convolution (its padding is not shifted), received "input"'
            )
        self.position[adapter_name] = config.position
        axis = self.out_axis if config.position == "output" else 1 - self.out_axis
        like = self.own_weight.transpose(0, axis).flatten(1)[:, 0]
        if config.train_scale:
            self._add(self.hadamard_scale, adapter_name, like, config.init_weights)
        if has_shift:
            self._add(self.hadamard_shift, adapter_name, like, config.init_weights)
        self._added(adapter_name, config)

    def _offsets(
        self, names: Sequence[str], position: str
    ) -> tuple[Float[Tensor, " d"] | None, Float[Tensor, " d"] | None]:
        here = [name for name in names if self.position.get(name) == position]
        if not here:  # the usual case at one of the two positions, in every forward pass
            return None, None
        return self._sum(self.hadamard_scale, here), self._sum(self.hadamard_shift, here)

    def _adapt(
        self,
        x: Float[Tensor, "*shape"],
        scale: Float[Tensor, "*rows d"] | None,
        shift: Float[Tensor, "*rows d"] | None,
    ) -> Float[Tensor, "*shape"]:
        if self.n_trailing:
            ones = (1,) * self.n_trailing
            scale, shift = (None if v is None else v.view(*v.shape, *ones) for v in (scale, shift))
        return hadamard(x, scale, shift)

    def _forward_active(self, x: Float[Tensor, "b ..."], *args: Any, **kwargs: Any) -> Float[Tensor, "b ..."]:
        x = self._adapt(x, *self._offsets(self.active_adapters, "input"))
        y = self.base_layer(x, *args, **kwargs)
        return self._adapt(y, *self._offsets(self.active_adapters, "output"))

    def _forward_mixed(
        self, x: Float[Tensor, "b ..."], names: list[str], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "b ..."]:
        x = self._adapt(x, *self._row_offsets(names, "input", x))
        y = self.base_layer(x, *args, **kwargs)
        return self._adapt(y, *self._row_offsets(names, "output", y))

    def _row_offsets(
        self, names: list[str], position: str, like: Float[Tensor, "b ..."]
    ) -> tuple[Float[Tensor, "b *ones d"] | None, Float[Tensor, "b *ones d"] | None]:
        return (
            self._gather(self.hadamard_scale, names, position, like),
            self._gather(self.hadamard_shift, names, position, like),
        )

    def _gather(
        self, dictionary: nn.ParameterDict, names: list[str], position: str, like: Float[Tensor, "b ..."]
    ) -> Float[Tensor, "b *ones d"] | None:
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
        """Returns {"weight": W', "bias": c'} (see `fold`); no bias of zeros where the base has none."""
        offsets = (*self._offsets(adapter_names, "input"), *self._offsets(adapter_names, "output"))
        offsets = [None if offset is None else offset.detach() for offset in offsets]
        own_bias = self.unmerged("bias")
        weight, bias = fold(self.own_weight, own_bias, *offsets, out_axis=self.out_axis)
        is_needed = own_bias is not None or (bias is not None and bool(bias.any()))
        return {"weight": weight, "bias": bias if is_needed else None}

    def has_lost_shift(self, adapter_names: Sequence[str]) -> bool:
        """Whether these adapters shift a projection that has no bias to carry it."""
        shifts = [self.hadamard_shift[name] for name in adapter_names if name in self.hadamard_shift]
        return self.unmerged("bias") is None and any(bool(shift.any()) for shift in shifts)

    @property
    def gained_bias(self) -> bool:
        """Whether merging gave the projection a bias that it did not have."""
        return self.merged and self.unmerged("bias") is None and getattr(self, "bias", None) is not None
