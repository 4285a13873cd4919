"""Methods of fine-tuning side by side: a table with one row each, ours among them."""

from hadamard_adapter.methods.method import Fit, Logits, Method, head_of, shape_of, trained_counts
from hadamard_adapter.methods.table import METHODS, is_fit, two_thirds

__all__ = [
    "METHODS",
    "Fit",
    "Logits",
    "Method",
    "head_of",
    "is_fit",
    "shape_of",
    "trained_counts",
    "two_thirds",
]
