"""What is not supported yet is refused in one line, instead of silently doing nothing."""

import os

import torch
from torch import nn

from hadamard_adapter.errors import SettingsError

__all__ = ["refuse_bypassed", "refuse_unsupported"]

FSDP_MARK = "_is_fsdp_managed_module"
"""What both versions of FSDP set on every module that they shard."""

BYPASSING: dict[type[nn.Module], str] = {
    nn.MultiheadAttention: "reads its weights without calling it",
    nn.TransformerEncoderLayer: "in evaluation reads its weights without calling it",
}
"""Modules that work with the weights of their children, and how: what stands around a child has no effect."""


def refuse_unsupported(model: nn.Module) -> None:
    """Raises for a base model, or a way of running it, that the adapter does not support.

    Raises:
        SettingsError: The base is quantised or offloaded; DeepSpeed or FSDP is in use; layers are dropped at
            random while several processes train together.
    """
    config = getattr(model, "config", None)
    if getattr(config, "quantization_config", None) is not None or getattr(model, "is_quantized", False):
        raise SettingsError(
            "base model: expected floating point weights, received a quantised model; load it without "
            "quantisation"
        )
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable, "").lower() in ("1", "true", "yes"):
            raise SettingsError(
                f"{name} is not supported yet: expected plain or DDP training ({variable} is set)"
            )
    if any(getattr(module, FSDP_MARK, False) for module in model.modules()):
        raise SettingsError(
            "FSDP is not supported yet: expected plain or DDP training, received a model that FSDP has "
            "sharded; load it again and train it without FSDP"
        )
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise SettingsError("DeepSpeed ZeRO-3 is not supported yet: expected plain or DDP training")
    hooks = [getattr(module, "_hf_hook", None) for module in model.modules()]
    hooked = any(getattr(one, "offload", False) for hook in hooks for one in getattr(hook, "hooks", [hook]))
    is_spread = getattr(model, "hf_device_map", None) is not None  # PEFT's from_pretrained took hooks away
    if hooked or (is_spread and any(parameter.is_meta for parameter in model.parameters())):
        raise SettingsError(
            "base model: expected weights that stay on a device, received some that accelerate offloads; "
            "load it without offloading (a device_map without cpu and disk)"
        )
    drops = {k: getattr(config, k, 0) or 0 for k in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")}
    dropped = {name: value for name, value in drops.items() if value > 0}
    if dropped and _n_processes() > 1:
        raise SettingsError(
            f"layers dropped at random cannot be trained by several processes: expected 0, received "
            f"{dropped}; set it to 0 in the model's config"
        )


def refuse_bypassed(parent: nn.Module, name: str) -> None:
    """Raises for a module whose parent reads its weights instead of calling it.

    Args:
        parent: The module that holds the one to adapt.
        name: Full name of the one to adapt.

    Raises:
        SettingsError: The parent is one of torch.nn's that do so.
    """
    for kind, how in BYPASSING.items():
        if isinstance(parent, kind):
            raise SettingsError(
                f"{name}: expected a module that is called, received a part of torch.nn.{kind.__name__}, "
                f"which {how}; choose other target_modules or norm_modules"
            )


def _n_processes() -> int:
    """How many processes train together, also before torch.distributed has started (torchrun, accelerate)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdigit() else 1
