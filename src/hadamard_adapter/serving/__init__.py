"""Many adapters on one backbone, in one batch: the bank."""

from hadamard_adapter.serving.bank import AdapterBank
from hadamard_adapter.serving.source import BankAdapter, read_adapter

__all__ = ["AdapterBank", "BankAdapter", "read_adapter"]
