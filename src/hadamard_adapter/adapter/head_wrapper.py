"""The head's modules, wrapped: one trained copy an adapter."""

# PEFT's wrapper of modules and its layers share method names with different arguments.
# pyright: reportIncompatibleMethodOverride=false

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from jaxtyping import Float, Shaped
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from hadamard_adapter.adapter.config import HadamardConfig
from hadamard_adapter.adapter.freeze import FreezeMixin
from hadamard_adapter.adapter.identity import make_identity
from hadamard_adapter.adapter.outputs import fit_to_loaded
from hadamard_adapter.adapter.rows import by_group, rows_of
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.offset_name import is_in

__all__ = ["CONTAINERS", "HeadWrapper", "wrap_head"]

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
T = TypeVar("T")


def wrap_head(
    model: nn.Module, name: str, adapter_name: str, config: HadamardConfig, is_active: bool
) -> None:
    """Gives a head module its own copy for an adapter, wrapping it on first use.

    Raises:
        SettingsError: The model has no module of that name, or one that cannot be copied and called.
    """
    target = dict(model.named_modules()).get(name) if name else None
    if target is None or isinstance(target, (*CONTAINERS, BaseTunerLayer)):
        what = "it does not have" if target is None else f"is a {type(target).__name__}"
        raise SettingsError(
            f"head_modules: expected full names of modules of this {type(model).__name__}, received "
            f"{name!r}, which {what}; leave head_modules at None to have the head found"
        )
    if isinstance(target, HeadWrapper):
        wrapper = target
        wrapper.update(adapter_name)
        if is_active:  # else the active one's head stays as it is, frozen or not
            wrapper.set_adapter(wrapper.active_adapter, inference_mode=config.inference_mode)
    else:
        parent, _, child = name.rpartition(".")
        wrapper = HeadWrapper(target, adapter_name)
        wrapper.set_adapter(adapter_name if is_active else [], inference_mode=config.inference_mode)
        setattr(model.get_submodule(parent), child, wrapper)
    wrapper.n_labels = {**wrapper.n_labels, adapter_name: len(config.id2label or ())}
    names = config.identity_modules if isinstance(config.identity_modules, list) else []
    wrapper.set_identity(adapter_name, name, [inner for inner in names if is_in(inner, name)])
    is_asked = any(name.endswith(end) for end in config.modules_to_save or ())
    wrapper.was_found = wrapper.was_found or not is_asked
    wrapper.is_task_head = wrapper.is_task_head or not is_asked or config.task_type is not None


class HeadWrapper(FreezeMixin, ModulesToSaveWrapper):
    """A head module with one trained copy an adapter.

    Beyond PEFT's wrapper: copies may have different numbers of labels, mixed batches run through any kind of
    module and pad the logits with -inf, and a frozen copy stays frozen.

    Source: huggingface/peft src/peft/utils/other.py, ModulesToSaveWrapper.
    """

    was_found: bool = False
    """Some adapter has this head without naming it in its modules_to_save, so the next adapter has it too."""

    is_task_head: bool = False
    """It was found, or comes with the task type: of several active adapters, the first one's is used."""

    n_labels: Mapping[str, int] = MappingProxyType({})
    """Adapter -> number of its labels; 0 where it has none of its own."""

    identity: Mapping[str, Sequence[str]] = MappingProxyType({})
    """Adapter -> names inside the module of the layers that are the identity: not trained, not saved."""

    def set_identity(self, adapter_name: str, path: str, names: Sequence[str]) -> None:
        """Makes layers of an adapter's copy the identity, once and for all.

        Args:
            adapter_name: The adapter; it has a copy.
            path: Full name of this module.
            names: Full names of the layers.
        """
        inner = [name.removeprefix(path).removeprefix(".") for name in names]
        for name, full in zip(inner, names, strict=True):
            make_identity(self.modules_to_save[adapter_name].get_submodule(name), full)
        self.identity = {**self.identity, adapter_name: inner}
        self._refreeze()

    def adapter_state_dict(self, adapter_name: str, state_dict: Any) -> dict[str, Tensor]:
        return self._without_identity(adapter_name, super().adapter_state_dict(adapter_name, state_dict))

    def adapter_state_dict_load_map(self, adapter_name: str) -> dict[str, str]:
        return self._without_identity(adapter_name, super().adapter_state_dict_load_map(adapter_name))

    def _without_identity(self, adapter_name: str, found: dict[str, T]) -> dict[str, T]:
        inner = self.identity.get(adapter_name, ())
        return {key: value for key, value in found.items() if not is_in(key, *inner)}

    def _refreeze(self) -> None:
        super()._refreeze()
        for adapter_name, inner in self.identity.items():
            if adapter_name in self.modules_to_save:
                for name in inner:
                    self.modules_to_save[adapter_name].get_submodule(name).requires_grad_(False)

    def init_modules(self, adapter_name: str, **kwargs: Any) -> None:
        super().init_modules(adapter_name, **kwargs)
        self.register_load_state_dict_pre_hook(fit_to_loaded)

    def update(self, adapter_name: str, **kwargs: Any) -> None:
        is_new = adapter_name not in self.modules_to_save
        super().update(adapter_name, **kwargs)
        if is_new and adapter_name not in self.active_adapters:
            self.modules_to_save[adapter_name].requires_grad_(False)
        self._refreeze()

    def enable_adapters(self, enabled: bool) -> None:
        if enabled and not any(name in self.modules_to_save for name in self.active_adapters):
            self._disable_adapters = False
            return
        super().enable_adapters(enabled)

    def _get_name(self) -> str:
        return "ModulesToSaveWrapper"  # PEFT's messages, and who matches them, name the wrapper so

    def check_set_adapter(self, adapter_name: str | list[str]) -> str | None:
        """Returns which of the adapters to be set gives the head: the first one that has a copy, or None.

        Raises:
            ValueError: Several of them have a copy of a module that is no head, as in PEFT.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        held = [name for name in names if name in self.modules_to_save]
        if len(held) > 1 and not self.is_task_head:
            super().check_set_adapter(held)
        return held[0] if held else None

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Makes the head of the first adapter that has one active; without one the base model's own."""
        first = self.check_set_adapter(adapter_names)
        super().set_adapter([] if first is None else [first], inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str, new_active_adapters: list[str] | None) -> None:
        """Deletes an adapter's copy, and makes the head of the first of the others active."""
        first = self.check_set_adapter([n for n in new_active_adapters or () if n != adapter_name])
        ModulesToSaveWrapper.delete_adapter(self, adapter_name, None if first is None else [first])

    def _check_forward_args(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `rows_of` checks in `_mixed_batch_forward`."""

    def forward(self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        if adapter_names is None or self.disable_adapters:
            return super().forward(*args, **kwargs)
        return self._mixed_batch_forward(*args, adapter_names=adapter_names, **kwargs)

    def _mixed_batch_forward(
        self, x: Shaped[Tensor, "b ..."], *args: Any, adapter_names: list[str], **kwargs: Any
    ) -> Float[Tensor, "b ..."]:
        def call(part: Tensor, name: str) -> Tensor:
            has_copy = name in self.modules_to_save
            module = self.modules_to_save[name] if has_copy else self.original_module
            return module(part, *args, **kwargs)

        return by_group(x, rows_of(x, adapter_names), call)
