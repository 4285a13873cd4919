"""A bank from the name of a base model."""

from hadamard_adapter.serving.bank import MAX_RESIDENT, AdapterBank
from hadamard_adapter.serving.packed import PackedAdapters
from hadamard_adapter.tasks import Task
from hadamard_adapter.tuning.models import load_base, load_tokenizer, pick_device, quiet_libraries

__all__ = ["BASE_TASK", "load_bank"]

BASE_TASK = Task("base", "single_label_classification", ("0", "1"), ("accuracy",))
"""Every adapter brings a head of its own; the base's is never asked."""


def load_bank(
    model: str, device: str | None = None, pack: str | None = None, max_resident: int = MAX_RESIDENT
) -> AdapterBank:
    """A bank on a base model, which holds no adapter yet.

    Args:
        model: folder, or name on the hub.
        device: cpu, cuda or mps; None: the fastest that is there.
        pack: folder of adapters that are read when they are asked for.
        max_resident: number of the pack's adapters that are held.

    Raises:
        SettingsError: the model cannot be loaded, or is none that a bank takes; no such device.
        AdapterError: no pack there, or one of another base model.

    Example:
        >>> load_bank("sentence-transformers/all-MiniLM-L6-v2").ids  # doctest: +SKIP
        []
    """
    place = pick_device(device)
    packed = None if pack is None else PackedAdapters(pack)
    with quiet_libraries():
        tokenizer = load_tokenizer(model)
        base = load_base(model, BASE_TASK, tokenizer.pad_token_id).to(place)
        return AdapterBank(base, tokenizer, packed, max_resident)
