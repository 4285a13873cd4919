"""Many adapters on one backbone, in one batch: the bank, and the store that it is filled from."""

from typing import TYPE_CHECKING

from hadamard_adapter.lazy import lazy_getattr

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
__getattr__ = lazy_getattr(__name__, _HOME)
