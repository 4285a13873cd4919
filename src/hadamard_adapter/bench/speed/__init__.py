"""The speed of training: variants of method and engineering, score against seconds, memory, cost's growth."""

from hadamard_adapter.bench.speed.spec import PACKED, PURPOSES, SpeedSpec, find_spec, kind_of, read_speed
from hadamard_adapter.bench.speed.variants import VARIANTS, Variant

__all__ = ["PACKED", "PURPOSES", "VARIANTS", "SpeedSpec", "Variant", "find_spec", "kind_of", "read_speed"]
