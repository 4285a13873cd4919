"""Many adapters on one backbone, in one batch: the bank, and the store that it is filled from."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hadamard_adapter.serving.bank import AdapterBank
    from hadamard_adapter.serving.packed import PackedAdapters, write_pack
    from hadamard_adapter.serving.source import BankAdapter, read_adapter
    from hadamard_adapter.serving.store import AdapterStore, Published

__all__ = [
    "AdapterBank",
    "AdapterStore",
    "BankAdapter",
    "PackedAdapters",
    "Published",
    "read_adapter",
    "write_pack",
]

_HOME = {  # all of it needs PyTorch, which the command's help does without
    "AdapterBank": "bank",
    "AdapterStore": "store",
    "BankAdapter": "source",
    "PackedAdapters": "packed",
    "Published": "store",
    "read_adapter": "source",
    "write_pack": "packed",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
