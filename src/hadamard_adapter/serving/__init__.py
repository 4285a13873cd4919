"""Many adapters on one backbone, in one batch: the bank, and the store that it is filled from."""

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
