"""What is frozen stays frozen, whatever PEFT switches: one mixin for adapter layers and heads."""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer as _Switched
else:
    _Switched = object

__all__ = ["FreezeMixin"]


class FreezeMixin(_Switched):
    """Keeps adapters frozen through set_adapter, set_requires_grad, and disabling and enabling.

    PEFT unfreezes an adapter (and a head) when it is made active and when `disable_adapter()` is left. Here a
    frozen adapter stays frozen, and enabling gives every tensor the state that it had before disabling.
    """

    adapter_layer_names: tuple[str, ...]
    _frozen: frozenset[str] = frozenset()
    _mask: dict[str, bool] | None = None

    def set_frozen(self, adapter_names: Collection[str]) -> None:
        """Freezes these adapters' tensors for good; all others are free, but not unfrozen by this."""
        self._frozen = frozenset(adapter_names)
        self._refreeze()

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Makes adapters active, and trainable unless frozen."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self._mask = None
        self._refreeze()

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Makes adapters trainable (unless frozen) or not."""
        super().set_requires_grad(adapter_names, requires_grad)
        self._refreeze()

    def enable_adapters(self, enabled: bool) -> None:
        """Enables or disables the layer; enabling restores what was trainable before."""
        if enabled != self.disable_adapters:
            return
        if not enabled:
            mask = {key: parameter.requires_grad for key, _, parameter in self._adapter_tensors()}
            super().enable_adapters(False)
            self._mask = mask
            return
        mask = self._mask
        super().enable_adapters(True)
        for key, _, parameter in self._adapter_tensors():
            parameter.requires_grad_((mask or {}).get(key, parameter.requires_grad))
        self._mask = None

    def _adapter_tensors(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        for layer_name in self.adapter_layer_names:
            for adapter_name, value in getattr(self, layer_name).items():
                inner: Any = [("", value)] if isinstance(value, nn.Parameter) else value.named_parameters()
                for name, parameter in inner:
                    yield f"{layer_name}.{adapter_name}.{name}", adapter_name, parameter

    def _refreeze(self) -> None:
        for _, adapter_name, parameter in self._adapter_tensors() if self._frozen else ():
            if adapter_name in self._frozen:
                parameter.requires_grad_(False)
