"""An adapter's tensors, read from its file with checks and put into a model that is there."""

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from hadamard_adapter.errors import AdapterError, option

__all__ = ["WEIGHTS", "check_readable", "load_weights", "read_weights"]

WEIGHTS = "adapter_model.safetensors"
"""The file's name, in every folder of an adapter."""


def check_readable(path: Path) -> bool:
    """Whether there is such a file; if there is, it can be read.

    Raises:
        AdapterError: it is there and cannot be read.
    """
    try:
        path.open("rb").close()
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise AdapterError(
            f"{str(path)!r} cannot be read: {error.strerror}; allow it, or copy the folder again"
        ) from error


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor of a safetensors file, on the CPU.

    Raises:
        AdapterError: the file is truncated or is none, or cannot be read.
    """
    check_readable(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{str(path)!r} is damaged or not a safetensors file ({error}); copy it again, or tune again"
        ) from error


def load_weights(model: Any, path: Path) -> None:
    """Put the tensors of an adapter file into the model's adapter and head.

    Raises:
        AdapterError: the file is damaged, or its tensors have other names or shapes than the model's.
    """
    tensors = read_weights(path)
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)  # "auto" asks the hub
    differing = sorted(set(expected) ^ set(tensors))
    if differing:
        where = "lacks" if differing[0] in expected else "holds"
        raise AdapterError(
            f"{str(path)!r} {where} {differing[0]!r}, unlike the adapter its config describes; "
            "expected the base model and config that it was tuned with"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise AdapterError(
                f"{str(path)!r} was tuned for a base model of another width: {name} has shape "
                f"{tuple(tensor.shape)}, here {tuple(expected[name].shape)} is needed; pass the right one as "
                f"{option('model')}"
            )
    set_peft_model_state_dict(model, tensors)
