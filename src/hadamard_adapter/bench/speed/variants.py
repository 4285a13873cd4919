"""The table of variants: a method, what stands around it, and the settings in which it differs."""

from dataclasses import dataclass, field
from typing import Any

from hadamard_adapter.bench.speed.paths import GROUPED, LAST_STEP, OURS, PLAIN, TrainingPath

__all__ = ["REFERENCES", "VARIANTS", "Variant"]


@dataclass(frozen=True)
class Variant:
    """One row: what is timed."""

    title: str
    """Name in tables."""
    method: str
    """Name in the table of methods, which gives model and learning rate."""
    path: TrainingPath
    """What stands around it."""
    settings: dict[str, Any] = field(default_factory=lambda: dict[str, Any](), hash=False)
    """Of `TuneSettings`, where they differ from the defaults."""
    share_of_layers: float = 1.0
    """Of the model's layers, the upper ones that are adapted; those below are computed once. `tune` alone."""


_BF16: dict[str, Any] = {"dtype": "bfloat16"}
_OTHERS = {"full": "full fine-tuning", "lora": "LoRA", "ia3": "IA3", "ln-tuning": "LN-tuning"}

VARIANTS: dict[str, Variant] = {
    "tune": Variant("hadamard tune", "hadamard-wide", OURS, {"dtype": "auto"}),
    "tune-last-step": Variant("hadamard tune, last step", "hadamard-wide", LAST_STEP, {"dtype": "auto"}),
    "tune-upper": Variant(
        "hadamard tune, upper 2/3 of the layers",
        "hadamard-wide",
        OURS,
        {"dtype": "auto"},
        share_of_layers=2 / 3,
    ),
    "tune-float32": Variant("hadamard tune --dtype float32", "hadamard-wide", OURS),
    **{name: Variant(title, name, PLAIN) for name, title in _OTHERS.items()},
    **{
        f"{name}-grouped": Variant(f"{title}, grouped, bf16", name, GROUPED, _BF16)
        for name, title in _OTHERS.items()
    },
    "lora-ours": Variant("LoRA on our path", "lora", OURS),
    "lora-ours-bf16": Variant("LoRA on our path, bf16", "lora", OURS, _BF16),
    "lora-ours-last-step": Variant("LoRA on our path, bf16, last step", "lora", LAST_STEP, _BF16),
}
"""Name in a spec to row. A further setting of `tune` is a further row: `{"some_setting": value}`."""

REFERENCES = ("lora", "lora-grouped", "full")
"""Variants that all others are compared with, each held to the reference's own final score."""
