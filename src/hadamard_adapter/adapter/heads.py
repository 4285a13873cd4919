"""The head: what the checkpoint lacks, what the task has and what training changed, found and never lost."""

import logging
from collections.abc import Iterator, Sequence

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from hadamard_adapter.adapter.families import FAMILIES
from hadamard_adapter.adapter.head_wrapper import CONTAINERS, HeadWrapper
from hadamard_adapter.offset_name import is_in

__all__ = [
    "beside",
    "find_head",
    "fresh_parameters",
    "named_in",
    "outermost",
    "own_modules",
    "own_parameters",
    "uncovered_parameters",
]

logger = logging.getLogger(__name__)
LOADED = "_is_hf_initialized"  # transformers marks each parameter that came from the checkpoint
POOLER = "pooler"


def beside(weight: Tensor, values: Tensor) -> nn.Parameter:
    """A frozen bias for a module that had none; it counts as loaded where the module's weight does."""
    bias = nn.Parameter(values, requires_grad=False)
    if getattr(weight, LOADED, False):
        setattr(bias, LOADED, True)
    return bias


def fresh_parameters(model: nn.Module) -> tuple[str, ...] | None:
    """Returns the names of the parameters that the checkpoint lacked; None where that cannot be known.

    transformers marks what it loaded. The mark is lost by deepcopy and absent after from_config.
    """
    own = own_parameters(model)
    loaded = {name for name, parameter in own.items() if getattr(parameter, LOADED, False)}
    if loaded:  # what was moved off the device afterwards stands on meta, and has lost the mark
        loaded |= {name for name, parameter in own.items() if parameter.is_meta}
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
    asked = named_in(model, modules_to_save)
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
    return outermost([*found, *asked, *trained, *wrapped])


def uncovered_parameters(model: nn.Module) -> tuple[str, ...]:
    """Returns the fresh parameters that no head module covers: saving would lose them."""
    fresh = fresh_parameters(model) or ()
    heads = [name for name, m in model.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)]
    return tuple(name for name in fresh if not is_in(name, *heads))


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
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    is_backbone_frozen = 2 * sum(sizes[name] for name in trained) < sum(sizes.values())
    return trained if is_backbone_frozen and not any(is_in(name, *layers) for name in trained) else []


def _family_head(model: nn.Module, names: Sequence[str]) -> list[str]:
    rows = FAMILIES.get(getattr(getattr(model, "config", None), "model_type", None) or "", ())
    at_root = {name for row in rows for name in row.head}
    return [name for name in names if name in at_root]


def _whole(family: Sequence[str], fresh: Sequence[str], has_task: bool) -> list[str]:
    """The family's head where the task has one or a part is fresh, since half a head is none.

    A pooler that was loaded is no part of it: like BERT's, which stands in the backbone, it is trained by
    those who name it.
    """
    begun = [name for name in family if any(is_in(parameter, name) for parameter in fresh)]
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


def named_in(model: nn.Module, endings: Sequence[str]) -> list[str]:
    """Returns the full names of modules whose name ends in one of these: PEFT's rule of modules_to_save."""
    names = [name for name, _ in own_modules(model) if name]
    return [name for name in names if any(name.endswith(end) for end in endings)]


def outermost(names: Sequence[str]) -> tuple[str, ...]:
    """Returns those of the full names that are in no other one, sorted."""
    unique = sorted(set(names), key=lambda name: name.count("."))
    kept: list[str] = []
    for name in unique:
        if not is_in(name, *kept):
            kept.append(name)
    return tuple(sorted(kept))
