"""Experiments as data: a spec in TOML, one JSON file a run, and what runs them."""

from hadamard_adapter.bench.spec import Search, Spec, TaskSpec, read_spec

__all__ = ["Search", "Spec", "TaskSpec", "read_spec"]
