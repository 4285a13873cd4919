"""The head: what the checkpoint lacks, what the task has and what training changed, found and never lost."""

# PEFT's wrapper of modules and its layers share method names with different arguments.
# pyright: reportIncompatibleMethodOverride=false

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from jaxtyping import Float, Shaped
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn

from hadamard_adapter.adapter.config import HadamardConfig
from hadamard_adapter.adapter.families import FAMILIES
from hadamard_adapter.adapter.freeze import FreezeMixin
from hadamard_adapter.adapter.outputs import fit_to_loaded
from hadamard_adapter.adapter.rows import by_group, rows_of
from hadamard_adapter.errors import SettingsError

__all__ = [
    "HeadWrapper",
    "find_head",
    "fresh_parameters",
    "own_modules",
    "own_parameters",
    "uncovered_parameters",
    "wrap_head",
]

logger = logging.getLogger(__name__)
LOADED = "_is_hf_initialized"  # transformers marks each parameter that came from the checkpoint
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
POOLER = "pooler"


def fresh_parameters(model: nn.Module) -> tuple[str, ...] | None:
    """Returns the names of the parameters that the checkpoint lacked; None where that cannot be known.

    transformers marks what it loaded. The mark is lost by deepcopy and absent after from_config.
    """
    own = own_parameters(model)
    loaded = {name for name, parameter in own.items() if getattr(parameter, LOADED, False)}
    return tuple(name for name in own if name not in loaded) if loaded else None


def find_head(
    model: nn.Module, modules_to_save: Sequence[str] = (), has_task: bool = False
) -> tuple[str, ...]:
    """Returns the full names of the modules that make up the head, outermost first.

    These are the modules that the checkpoint lacks; those named in `modules_to_save`; those that were being
    trained while the rest was frozen; those that were found before, for another adapter. The family's head is
    added whole where the task has one or a part of it is fresh, and taken where the model does not tell what
    was loaded; then the log says so.

    Args:
        model: The base model, before or after injection.
        modules_to_save: Further modules, as names or name endings (PEFT's rule).
        has_task: Whether the model is for a task with a head, which is trained even if it was loaded.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> find_head(BertForSequenceClassification(BertConfig(num_hidden_layers=1, vocab_size=10)))
        ('classifier',)
    """
    names = [name for name, _ in own_modules(model) if name]
    wrapped = [name for name, m in model.named_modules() if isinstance(m, HeadWrapper) and m.was_found]
    asked = [name for name in names if any(name.endswith(end) for end in modules_to_save)]
    family, fresh = _family_head(model, names), fresh_parameters(model)
    if fresh is None:
        found = family
        if found and not wrapped:
            logger.info(
                "the model does not tell what its checkpoint lacked; taking its family's head: %s", found
            )
    else:
        found = [*_cover(model, set(fresh)), *_whole(family, fresh, has_task)]
    trained = [] if wrapped or _has_adapter(model) else _cover(model, set(_trained_parameters(model)))
    return _outermost([*found, *asked, *trained, *wrapped])


def uncovered_parameters(model: nn.Module) -> tuple[str, ...]:
    """Returns the fresh parameters that no head module covers: saving would lose them."""
    fresh = fresh_parameters(model) or ()
    heads = [f"{name}." for name, m in model.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)]
    return tuple(name for name in fresh if not any(name.startswith(head) for head in heads))


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
        wrapper.set_adapter(wrapper.active_adapter, inference_mode=config.inference_mode)
    else:
        parent, _, child = name.rpartition(".")
        wrapper = HeadWrapper(target, adapter_name)
        wrapper.set_adapter(adapter_name if is_active else [], inference_mode=config.inference_mode)
        setattr(model.get_submodule(parent), child, wrapper)
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


def own_modules(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yields the base model's modules with their full names: without what adapters added."""
    yield name, model
    only = "base_layer" if isinstance(model, BaseTunerLayer) else None
    only = "original_module" if isinstance(model, AuxiliaryTrainingWrapper) else only
    for child_name, child in model.named_children():
        if only in (None, child_name):
            yield from own_modules(child, f"{name}.{child_name}" if name else child_name)


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the base model's parameters by full name, shared ones once: without what adapters added."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, module in own_modules(model):
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                found[f"{name}.{key}" if name else key] = parameter
    return found


def _has_adapter(model: nn.Module) -> bool:
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def _trained_parameters(model: nn.Module) -> list[str]:
    """The parameters that train while the backbone is frozen: outside all layers, and fewer than half."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    layers = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    is_backbone_frozen = 2 * sum(sizes[name] for name in trained) < sum(sizes.values())
    return trained if is_backbone_frozen and not any(name.startswith(layers) for name in trained) else []


def _family_head(model: nn.Module, names: Sequence[str]) -> list[str]:
    rows = FAMILIES.get(getattr(getattr(model, "config", None), "model_type", None) or "", ())
    at_root = {name for row in rows for name in row.head}
    return [name for name in names if name in at_root]


def _whole(family: Sequence[str], fresh: Sequence[str], has_task: bool) -> list[str]:
    """The family's head where the task has one or a part is fresh, since half a head is none.

    A pooler that was loaded is no part of it: like BERT's, which stands in the backbone, it is trained by
    those who name it.
    """
    begun = [name for name in family if any(parameter.startswith(f"{name}.") for parameter in fresh)]
    if not (has_task or begun):
        return []
    return [name for name in family if name != POOLER or name in begun]


def _cover(model: nn.Module, wanted: set[str]) -> list[str]:
    """Returns the largest modules all of whose parameters are wanted."""
    found = []

    def visit(module: nn.Module, name: str) -> None:
        held = {f"{name}.{n}" if name else n for n, _ in module.named_parameters()}
        if name and held and held <= wanted and not isinstance(module, CONTAINERS):
            found.append(name)
        elif held & wanted:
            for child_name, child in module.named_children():
                visit(child, f"{name}.{child_name}" if name else child_name)

    visit(model, "")
    return [name.removesuffix(".original_module") for name in found]


def _outermost(names: Sequence[str]) -> tuple[str, ...]:
    unique = sorted(set(names), key=lambda name: name.count("."))
    kept: list[str] = []
    for name in unique:
        if not any(name.startswith(f"{other}.") for other in kept):
            kept.append(name)
    return tuple(sorted(kept))
