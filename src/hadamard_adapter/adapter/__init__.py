"""The PEFT method: config, table of families, layers, tuner; importing it registers the method."""

from hadamard_adapter.adapter.config import HadamardConfig
from hadamard_adapter.adapter.model import HadamardModel
from hadamard_adapter.adapter.register import register

__all__ = ["HadamardConfig", "HadamardModel"]

register(HadamardConfig, HadamardModel)
