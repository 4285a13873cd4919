"""Half precision of what is frozen: where bfloat16 is the faster type, and weights that are cast once.

Autocast casts every frozen weight anew in every forward pass, and keeps the copy until backward is over (it
remembers only the casts of weights that train). A weight that is cast beforehand is the same bits without
that work: the results of a step, gradients included, are those of autocast over float32 weights, bit for bit.
So only the weights are cast that autocast would cast; norms, embeddings, the sums of residual connections,
and all that trains stay in float32.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from hadamard_adapter.adapter.projection import PROJECTIONS
from hadamard_adapter.tuning.models import config_of, pick_device
from hadamard_adapter.tuning.settings import TuneSettings

__all__ = [
    "FLOAT32_ALONE",
    "autocast",
    "cast_frozen",
    "cpu_flags",
    "has_bfloat16",
    "in_float32",
    "is_faster_in_bfloat16",
    "pick_dtype",
    "placed",
]

CPU_FLAGS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Flags of processors with instructions for products of bfloat16, x86 and Arm."""

FLOAT32_ALONE = frozenset({"deberta"})
"""Model types whose code does not compute in bfloat16 (it fills a mask with float32's smallest number)."""


def cpu_flags() -> Mapping[str, Any]:
    """The processor's own flags, as PyTorch reads them; empty where it is too old to tell.

    Example:
        >>> cpu_flags().get("no_such_flag", False)
        False
    """
    return getattr(torch.cpu, "get_capabilities", dict)()


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; elsewhere it is emulated, or slower than float32.

    Looked up: `torch.cpu.get_capabilities` reads the processor's own flags, `torch.cuda.is_bf16_supported`
    the GPU's compute capability. False for other devices, and where PyTorch is too old to tell.

    Example:
        >>> has_bfloat16(torch.device("meta"))
        False
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        flags = cpu_flags()
        return any(flags.get(flag, False) for flag in CPU_FLAGS)
    return False


def is_faster_in_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16 that are faster than float32's.

    Looked up, not timed: the type is part of what a run is, and a time depends on what else runs. All devices
    with such instructions count but one kind: Intel's processors with AVX-512 FP16 multiply bfloat16 in AMX,
    and where a virtual machine or the kernel keeps that from them, their AVX-512 BF16 takes 1.9 times as long
    as float32 (docs/log.md). A CPU's are used by oneDNN, which PyTorch for macOS comes without.

    Example:
        >>> is_faster_in_bfloat16(torch.device("meta"))
        False
    """
    if device.type != "cpu" or not has_bfloat16(device):
        return has_bfloat16(device)
    flags = cpu_flags()
    if flags.get("avx512_fp16", False) and not (flags.get("amx_bf16", False) and _may_use_amx()):
        return False
    return torch.backends.mkldnn.is_available()


def _may_use_amx() -> bool:
    """Whether the kernel gives this process AMX, which oneDNN asks for in the same way."""
    return getattr(torch.cpu, "_init_amx", lambda: True)()


def pick_dtype(name: str, device: torch.device) -> str:
    """ "float32" or "bfloat16": the one that is named, for "auto" bfloat16 where the device is faster in it.

    Example:
        >>> pick_dtype("auto", torch.device("meta"))
        'float32'
    """
    return name if name != "auto" else "bfloat16" if is_faster_in_bfloat16(device) else "float32"


def placed(settings: TuneSettings) -> TuneSettings:
    """The settings with the device and the dtype that they mean on this machine, for their model.

    Raises:
        SettingsError: no such device here, or the model cannot be found.
    """
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    if settings.dtype == "auto":
        config = config_of(settings.model, settings.allow_remote_code)
        dtype = "float32" if config.model_type in FLOAT32_ALONE else dtype
    return dataclasses.replace(settings, device=device.type, dtype=dtype)


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """A context in which matrix products are computed in `dtype`; without effect for "float32"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def cast_frozen(model: nn.Module, dtype: str) -> None:
    """Rounds the frozen weights of projections to `dtype` ("float32" leaves them), in place.

    A model that was cast computes under `autocast` alone: hidden states between projections are float32.

    Args:
        model: its masks set as in the stage that trains most: what trains now, or may later, is not cast.
        dtype: as `pick_dtype` gives it.
    """
    if dtype == "float32":
        return
    for module in model.modules():
        if isinstance(module, tuple(PROJECTIONS)):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(getattr(torch, dtype))


@contextlib.contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Within it weights in bfloat16 are float32 of the same value, so that a trial sees no rounding."""
    cast = [parameter for parameter in model.parameters() if parameter.dtype == torch.bfloat16]
    before = [parameter.data for parameter in cast]  # put back, since other models may share it
    try:
        for parameter in cast:
            parameter.data = parameter.data.float()
        yield
    finally:
        for parameter, data in zip(cast, before, strict=True):
            parameter.data = data
