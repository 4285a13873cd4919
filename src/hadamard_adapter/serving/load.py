"""A bank from the name of a base model."""

from hadamard_adapter.serving.bank import AdapterBank
from hadamard_adapter.tasks import Task
from hadamard_adapter.tuning.models import load_base, load_tokenizer, pick_device, quiet_libraries

__all__ = ["load_bank"]

_TASK = Task("base", "single_label_classification", ("0", "1"), ("accuracy",))
"""Every adapter brings a head of its own; the base's is never asked."""


def load_bank(model: str, device: str | None = None) -> AdapterBank:
    """An empty bank on a base model.

    Args:
        model: folder, or name on the hub.
        device: cpu, cuda or mps; None: the fastest that is there.

    Raises:
        SettingsError: the model cannot be loaded, or is none that a bank takes; no such device.

    Example:
        >>> load_bank("sentence-transformers/all-MiniLM-L6-v2").ids  # doctest: +SKIP
        []
    """
    place = pick_device(device)
    with quiet_libraries():
        tokenizer = load_tokenizer(model)
        return AdapterBank(load_base(model, _TASK, tokenizer.pad_token_id).to(place), tokenizer)
