"""What is not supported yet is refused in one line, instead of silently doing nothing."""

import os

import torch
from torch import nn

from hadamard_adapter.errors import SettingsError

__all__ = ["refuse_unsupported"]


def refuse_unsupported(model: nn.Module) -> None:
    """Raises for a base model, or a way of running it, that the adapter does not support.

    Raises:
        SettingsError: The base is quantised; DeepSpeed or FSDP is in use; layers are dropped at random while
            several processes train together.
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
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise SettingsError("DeepSpeed ZeRO-3 is not supported yet: expected plain or DDP training")
    drops = {k: getattr(config, k, 0) or 0 for k in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")}
    dropped = {name: value for name, value in drops.items() if value > 0}
    if dropped and _n_processes() > 1:
        raise SettingsError(
            f"layers dropped at random cannot be trained by several processes: expected 0, received "
            f"{dropped}; set it to 0 in the model's config"
        )


def _n_processes() -> int:
    """How many processes train together, also before torch.distributed has started (torchrun, accelerate)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdigit() else 1
