"""Mixed batches: for one forward pass, every row of the batch runs with its own adapter, norm and head."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from hadamard_adapter.adapter.head_wrapper import HeadWrapper
from hadamard_adapter.adapter.layers import HadamardLayer
from hadamard_adapter.adapter.rows import WRONG_LENGTH

__all__ = ["mixed_batch", "repeats_of"]

INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "decoder_input_ids")


def repeats_of(model: nn.Module, kwargs: dict[str, Any]) -> int:
    """Returns how often `generate(**kwargs)` repeats each row of its input; 1 for a plain forward pass."""
    given, own = kwargs.get("generation_config"), getattr(model, "generation_config", None)
    sources = [kwargs, vars(given) if given else {}, vars(own) if own else {}]
    names = ("num_beams", "num_return_sequences")
    found = [next((s[name] for s in sources if s.get(name)), 1) for name in names]
    return max(found)


@contextmanager
def mixed_batch(
    model: nn.Module, adapter_names: Sequence[str], known: Sequence[str], n_copies: int = 1
) -> Iterator[None]:
    """Context in which the model's rows run with `adapter_names`, one a row; no hook outlives it.

    Args:
        model: The base model with adapters injected.
        adapter_names: One adapter a row of the batch; "__base__" for the base model with its own head.
        known: The adapters that exist.
        n_copies: How often generation repeats each row (beams, returned sequences).

    Raises:
        ValueError: The model is training, a name is unknown, there are more or fewer names than rows, the
            first axis of a module's input is another than the batch's, a trained module has one copy for all
            rows, or labels are passed (a loss over rows with different label sets means nothing).

    Source: huggingface/peft src/peft/tuners/road/model.py, _enable_peft_forward_hooks.
    """
    if model.training:
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
    unknown = sorted({name for name in adapter_names if name != "__base__"} - set(known))
    if unknown:
        raise ValueError(
            f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}; there are {sorted(known)}"
        )
    saved = {name: m for name, m in model.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)}
    plain = [name for name, module in saved.items() if not isinstance(module, HeadWrapper)]
    if plain:
        raise ValueError(
            f"Cannot pass `adapter_names` where PEFT's own wrapper holds {plain[0]!r}, with one copy for all "
            "rows; name it in head_modules, or leave head_modules at None"
        )
    check = partial(_check_inputs, n_names=len(adapter_names), n_copies=n_copies)
    handles = [model.register_forward_pre_hook(check, with_kwargs=True)]
    try:
        for module in model.modules():
            if isinstance(module, (HadamardLayer, HeadWrapper)):
                add_names = partial(_add_names, adapter_names=list(adapter_names), n_copies=n_copies)
                handles.append(module.register_forward_pre_hook(add_names, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_names(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], adapter_names: list[str], n_copies: int
) -> tuple[Any, ...]:
    x, n_names = next(iter(args), None), len(adapter_names)
    # Of an input of two axes the first may be all tokens of the batch.
    if isinstance(x, Tensor) and x.ndim > 2 and len(x) not in (n_names, n_names * n_copies):
        raise ValueError(
            f"{WRONG_LENGTH.format(n_names, len(x))}, in a {type(module).__name__} whose input is of shape "
            f"{tuple(x.shape)}: its first axis is not that of the batch"
        )
    return args, {**kwargs, "adapter_names": adapter_names}


def _check_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], n_names: int, n_copies: int
) -> None:
    candidates = [*args[:1], *(kwargs.get(name) for name in INPUTS)]
    rows = next((value for value in candidates if isinstance(value, Tensor) and value.ndim > 0), None)
    if rows is not None and len(rows) not in (n_names, n_names * n_copies):
        raise ValueError(f"{WRONG_LENGTH.format(n_names, len(rows))}.")
    if kwargs.get("labels") is not None:
        raise ValueError(
            "labels cannot be passed with `adapter_names`: rows of a mixed batch may have different label "
            "sets; compute the loss of each task from its own rows of the logits"
        )
