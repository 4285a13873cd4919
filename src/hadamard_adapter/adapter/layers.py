"""What the adapter's layers share: adapters by name, merging from a kept copy, mixed batches."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from hadamard_adapter.adapter.config import HadamardConfig
from hadamard_adapter.adapter.freeze import FreezeMixin
from hadamard_adapter.adapter.heads import beside
from hadamard_adapter.adapter.labels import LabelSwitch
from hadamard_adapter.adapter.rows import rows_of

__all__ = ["HadamardLayer"]

INIT_STD = 0.1


class HadamardLayer(FreezeMixin, BaseTunerLayer, nn.Module):
    """What the two layers share: adapters by name, merging from a kept copy, mixed batches.

    Merging several adapters is one fold of the sum of their offsets into the untouched copy, and unmerging
    puts the copy back, so that the base weights are the same bits as before.
    """

    base_layer: nn.Module
    linked_heads: Sequence[FreezeMixin] = ()
    """Heads that are disabled and enabled with this layer: transformers' enable_adapters() forgets them."""

    labels: LabelSwitch | None = None
    """On the model's first layer: transformers' own methods switch layers alone."""

    def _start(self, base_layer: nn.Module, adapter_name: str) -> None:
        self.base_layer = base_layer
        self.merged_adapters = []
        self._disable_adapters = False
        self._active_adapter = [adapter_name]
        self._kept: dict[str, Tensor | None] = {}

    def _add(
        self,
        dictionary: nn.ParameterDict,
        adapter_name: str,
        like: Float[Tensor, " d"],
        init_weights: bool,
    ) -> None:
        size = (like.numel(),)
        value = torch.zeros(size) if init_weights else torch.randn(size) * INIT_STD
        if value.device.type != "meta" and like.device.type != "meta":
            value = value.to(like.device)
        dictionary[adapter_name] = nn.Parameter(value.float())

    def _added(self, adapter_name: str, config: HadamardConfig) -> None:
        """Freezes or trains an adapter whose offsets were just added, as its config says."""
        self.set_frozen(self._frozen - {adapter_name} | ({adapter_name} if config.freeze_adapter else set()))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Moves an adapter's offsets beside the base weights; PEFT would round them to its dtype too."""
        like = self.own_weight
        for dictionary in (getattr(self, name) for name in self.adapter_layer_names):
            value = dictionary.get(adapter_name)
            if value is not None and "meta" not in (value.device.type, like.device.type):
                dictionary[adapter_name] = value.to(device or like.device)

    def _sum(self, dictionary: nn.ParameterDict, names: Sequence[str]) -> Float[Tensor, " d"] | None:
        present = [dictionary[name] for name in names if name in dictionary]
        if len(present) < 2:
            return present[0] if present else None
        return torch.stack([value.float() for value in present]).sum(0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Moves the kept copies along with the parameters, so that unmerging after `.to()` fits."""
        self._kept = {name: None if kept is None else fn(kept) for name, kept in self._kept.items()}
        return super()._apply(fn, recurse)

    def has_offsets(self, adapter_name: str) -> bool:
        """Tells whether the adapter trains anything here."""
        return any(adapter_name in getattr(self, kind) for kind in self.adapter_layer_names)

    def folded(self, adapter_names: Sequence[str]) -> dict[str, Tensor | None]:
        """Returns the base layer's tensors with the given adapters folded into the unmerged ones."""
        raise NotImplementedError

    def unmerged(self, name: str) -> Tensor | None:
        """Returns the base layer's own tensor of that name, as it is without any merged adapter."""
        if name in self._kept:
            return self._kept[name]
        value = getattr(self.get_base_layer(), name, None)
        return None if value is None else value.detach()  # torch.export takes `.data` for a constant

    def restore(self, adapter_names: Sequence[str]) -> None:
        """Makes exactly these adapters the merged ones, in this order; the bits depend on nothing else."""
        if self.merged:
            self.unmerge()
        if adapter_names:
            self.merge(adapter_names=list(adapter_names))

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Makes adapters active, with the labels of the first."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self.show_labels()

    def enable_adapters(self, enabled: bool) -> None:
        """Enables or disables the layer, the heads that are linked to it, and the adapters' labels."""
        super().enable_adapters(enabled)
        for head in self.linked_heads:
            head.enable_adapters(enabled)
        self.show_labels()

    def delete_adapter(self, adapter_name: str) -> None:
        """Deletes an adapter here, with its labels; if it was active, another one becomes so."""
        if self.labels is not None:
            self.labels.configs.pop(adapter_name, None)
        super().delete_adapter(adapter_name)
        self.show_labels()

    def show_labels(self) -> None:
        """Has the model show the labels of what is active here; of other layers than the first: nothing."""
        if self.labels is not None:
            self.labels.show([] if self.disable_adapters else self.active_adapters)

    @property
    def own_weight(self) -> Tensor:
        """The base layer's weight without any merged adapter."""
        weight = self.unmerged("weight")
        assert weight is not None, "projections and norms have a weight"
        return weight

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
                setattr(base, name, beside(base.get_parameter("weight"), tensor))
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

    def forward(
        self, x: Float[Tensor, "b ..."], *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> Float[Tensor, "b ..."]:
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
                    "Cannot pass `adapter_names` when there are merged adapters, please call "
                    "`unmerge_adapter` first."
                )
            return self._forward_mixed(x, rows_of(x, adapter_names), *args, **kwargs)
        if self.merged:
            return self.base_layer(x, *args, **kwargs)
        return self._forward_active(x, *args, **kwargs)

    def __repr__(self) -> str:
        return "hadamard." + super().__repr__()

    def _forward_active(self, x: Float[Tensor, "b ..."], *args: Any, **kwargs: Any) -> Float[Tensor, "b ..."]:
        raise NotImplementedError

    def _forward_mixed(
        self, x: Float[Tensor, "b ..."], names: list[str], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "b ..."]:
        raise NotImplementedError
