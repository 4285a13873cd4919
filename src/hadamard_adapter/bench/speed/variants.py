"""The table of variants: a method, what stands around it, and the settings in which it differs."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from hadamard_adapter.bench.speed.paths import GROUPED, LAST_STEP, OURS, PLAIN, TrainingPath

__all__ = ["GAINS", "REFERENCES", "VARIANTS", "Gain", "Variant"]


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


@dataclass(frozen=True)
class Gain:
    """One thing that makes steps faster, on and off: two variants that differ in nothing else."""

    title: str
    """Of what is on or off."""
    on: str
    """Variant with it."""
    off: str
    """Variant without it."""
    stage: Literal["head", "last"] = "last"
    """Whose steps are compared: stage 1 of the recipe, or the last or only stage."""


_BF16: dict[str, Any] = {"dtype": "bfloat16"}
_USUAL_MALLOC = dataclasses.replace(OURS, begin=lambda: None)
_OTHERS = {"full": "full fine-tuning", "lora": "LoRA", "ia3": "IA3", "ln-tuning": "LN-tuning"}


def _tune(title: str, path: TrainingPath = OURS, share_of_layers: float = 1.0, **settings: Any) -> Variant:
    """`tune` with `--dtype auto`, its default, and with settings of its own."""
    return Variant(title, "hadamard-wide", path, {"dtype": "auto", **settings}, share_of_layers)


VARIANTS: dict[str, Variant] = {
    "tune": _tune("hadamard tune"),
    "tune-last-step": _tune("tune with the Trainer's schedule", LAST_STEP),
    "tune-upper": _tune("tune, upper 2/3 of the layers", share_of_layers=2 / 3),
    "tune-upper-uncached": _tune(
        "tune --cache-gb 0, upper 2/3 of the layers", share_of_layers=2 / 3, cache_gb=0.0
    ),
    "tune-float32": Variant("tune --dtype float32", "hadamard-wide", OURS),
    "tune-uncached": _tune("tune --cache-gb 0", cache_gb=0.0),
    "tune-all-tokens": _tune("tune --no-first-token-only", first_token_only=False),
    "tune-dropout": _tune("tune --dropout", dropout=True),
    "tune-random": _tune("tune --no-group-by-length", group_by_length=False),
    "tune-checkpointed": _tune("tune --gradient-checkpointing", gradient_checkpointing=True),
    "tune-micro": _tune("tune --micro-batch-tokens 1024", micro_batch_tokens=1024),
    "tune-compiled": _tune("tune --torch-compile", torch_compile=True),
    "tune-usual-malloc": _tune("tune, malloc as it is", _USUAL_MALLOC),
    **{name: Variant(f"{title} on the Trainer", name, PLAIN) for name, title in _OTHERS.items()},
    **{
        f"{name}-grouped": Variant(f"{title}, grouped by length, bf16", name, GROUPED, _BF16)
        for name, title in _OTHERS.items()
    },
    **{
        f"{name}-grouped-float32": Variant(f"{_OTHERS[name]}, grouped by length", name, GROUPED)
        for name in ("full", "lora")
    },
    "lora-bf16": Variant("LoRA on the Trainer, bf16", "lora", PLAIN, _BF16),
    "lora-ours": Variant("LoRA on tune's path, float32", "lora", OURS),
    "lora-ours-bf16": Variant("LoRA on tune's path", "lora", OURS, _BF16),
    "lora-ours-last-step": Variant(
        "LoRA on tune's path with the Trainer's schedule", "lora", LAST_STEP, _BF16
    ),
}
"""Name in a spec to row. A further setting of `tune` is a further row: `{"some_setting": value}`."""

GAINS = (
    Gain("the adapter in place of LoRA", "tune-last-step", "lora-ours-last-step"),
    Gain("the head's input computed once, that pass not counted", "tune", "tune-uncached", stage="head"),
    Gain("the lower third frozen and computed once", "tune-upper", "tune"),
    Gain("the same, computed once", "tune-upper", "tune-upper-uncached"),
    Gain("the last layer cut to the token that is read", "tune", "tune-all-tokens"),
    Gain("frozen weights in bfloat16", "tune", "tune-float32"),
    Gain("no dropout in the backbone", "tune", "tune-dropout"),
    Gain("rows of like length together, not at random in parts of like length", "tune", "tune-random"),
    Gain("activations kept, not computed again", "tune", "tune-checkpointed"),
    Gain("batches whole, not in parts of 1,024 tokens", "tune", "tune-micro"),
    Gain("layers compiled, the time to compile them counted", "tune-compiled", "tune"),
    Gain("the mean of the weights left out, with the Trainer's schedule", "tune-last-step", "tune"),
    Gain("freed memory kept", "tune", "tune-usual-malloc"),
    Gain("bf16 (autocast) on the Trainer", "lora-bf16", "lora"),
    Gain("rows of like length together, on the Trainer", "lora-grouped", "lora-bf16"),
    Gain("tune's path, not the Trainer's", "lora-ours-last-step", "lora-grouped"),
)
"""What the report shows on and off, by the time of steps."""

REFERENCES = ("lora", "lora-grouped", "lora-grouped-float32", "full")
"""Variants that all others are compared with, each held to the reference's own final score."""
