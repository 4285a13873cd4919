"""What is frozen stays frozen, whatever PEFT switches: one mixin for adapter layers and heads."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

__all__ = ["FreezeMixin"]


class FreezeMixin:
    """Keeps adapters frozen through set_adapter, set_requires_grad, and disabling and enabling.

    PEFT unfreezes an adapter (and a head) when it is made active and when `disable_adapter()` is left. Here a
    frozen adapter stays frozen, and enabling gives every tensor the state that it had before disabling.
    """

    adapter_layer_names: tuple[str, ...]

    def freeze_adapter(self, adapter_name: str, is_frozen: bool) -> None:
        """Freezes an adapter's tensors in this layer for good, or lifts that (without unfreezing them)."""
        self.__dict__.setdefault("_frozen", set())
        self._frozen.add(adapter_name) if is_frozen else self._frozen.discard(adapter_name)
        self._refreeze()

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Makes adapters active, and trainable unless frozen."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self.__dict__.pop("_mask", None)
        self._refreeze()

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Makes adapters trainable (unless frozen) or not."""
        super().set_requires_grad(adapter_names, requires_grad)
        self._refreeze()

    def enable_adapters(self, enabled: bool) -> None:
        """Enables or disables the layer; enabling restores what was trainable before."""
        if not enabled:
            self.__dict__.setdefault("_mask", {k: p.requires_grad for k, _, p in self._adapter_tensors()})
            super().enable_adapters(False)
            return
        mask = self.__dict__.get("_mask")
        super().enable_adapters(True)
        for key, _, parameter in self._adapter_tensors() if mask else ():
            parameter.requires_grad_(mask.get(key, parameter.requires_grad))
        self.__dict__.pop("_mask", None)

    def _adapter_tensors(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        for layer_name in self.adapter_layer_names:
            for adapter_name, value in getattr(self, layer_name).items():
                inner: Any = [("", value)] if isinstance(value, nn.Parameter) else value.named_parameters()
                for name, parameter in inner:
                    yield f"{layer_name}.{adapter_name}.{name}", adapter_name, parameter

    def _refreeze(self) -> None:
        frozen = self.__dict__.get("_frozen", ())
        for _, adapter_name, parameter in self._adapter_tensors() if frozen else ():
            if adapter_name in frozen:
                parameter.requires_grad_(False)
