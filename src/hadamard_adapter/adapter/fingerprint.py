"""A base model's fingerprint: tells two backbones apart, whatever head, adapter or dtype they carry."""

import hashlib

import torch
from jaxtyping import Int16
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from hadamard_adapter.adapter.base_model import base_model_of
from hadamard_adapter.adapter.heads import fresh_parameters, own_parameters
from hadamard_adapter.adapter.layers import HadamardLayer

__all__ = ["HASHED", "fingerprint"]

HASHED = (
    "names, shapes and 4,096 evenly spaced values (rounded to bfloat16) of every parameter of the backbone"
)
N_VALUES = 4096


def fingerprint(model: nn.Module) -> str:
    """Returns a sha256 (64 hex digits) of the model's backbone.

    Hashed are the names, shapes and up to 4,096 evenly spaced values, rounded to bfloat16, of every parameter
    of the backbone that came with the checkpoint. Heads and adapters do not count, nor whether the checkpoint
    was loaded in float32 or bfloat16.

    Args:
        model: A transformers model, a PeftModel around one, or any module.

    Example:
        >>> len(fingerprint(torch.nn.Linear(2, 2)))
        64
    """
    base = base_model_of(model)
    base = base.model if isinstance(base, BaseTuner) else base
    prefix = getattr(base, "base_model_prefix", "")
    backbone = getattr(base, prefix, base) if prefix else base
    fresh = set(fresh_parameters(base) or ())
    start = next((f"{name}." for name, module in base.named_modules() if module is backbone and name), "")
    digest = hashlib.sha256()
    for name, parameter in own_parameters(base).items():
        if not name.startswith(start) or name in fresh:
            continue
        value = _own_value(base, name)
        if value is None:
            continue
        plain = name.removeprefix(start).replace(".base_layer.", ".").replace(".original_module.", ".")
        digest.update(f"{plain} {tuple(parameter.shape)}\n".encode())
        digest.update(_sample(value).numpy().tobytes())
    return digest.hexdigest()


def _own_value(model: nn.Module, name: str) -> torch.Tensor | None:
    """The parameter as it is without merged adapters; None for a bias that merging added."""
    owner_name, _, key = name.rpartition(".")
    layer = model.get_submodule(owner_name.removesuffix(".base_layer"))
    return layer.unmerged(key) if isinstance(layer, HadamardLayer) else model.get_parameter(name).detach()


@torch.no_grad()
def _sample(values: torch.Tensor) -> Int16[torch.Tensor, " n"]:
    flat = values.flatten()
    at = torch.linspace(0, flat.numel() - 1, min(N_VALUES, flat.numel()), dtype=torch.float64).long()
    return flat[at.to(flat.device)].cpu().to(torch.bfloat16).view(torch.int16)
