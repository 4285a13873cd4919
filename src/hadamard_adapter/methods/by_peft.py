"""Methods that PEFT has: LoRA, VeRA, IA3, LN-tuning, with the head of all other methods."""

from typing import Any

from peft import IA3Config, LNTuningConfig, LoraConfig, VeraConfig, get_peft_model

from hadamard_adapter.adapter.families import find_sites
from hadamard_adapter.methods.names import inputs_of_attention, norms_in

__all__ = ["LORA_RANK", "VERA_RANK", "ia3", "ln_tuning", "lora", "vera"]

LORA_RANK = 8
"""Hu et al.'s for RoBERTa-base."""
VERA_RANK = 1024
"""Kopiczko et al.'s for RoBERTa-base."""


def lora(base: Any, head: tuple[str, ...]) -> Any:
    """Low-rank updates W + B A of the projections to queries and values, α = 16.

    Source: Hu et al., 2022, arXiv 2106.09685, section 4.2; α: microsoft/LoRA,
    examples/NLU/roberta_base_mrpc.sh; PEFT's implementation.
    """
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=LORA_RANK,
        lora_alpha=16,
        target_modules=inputs_of_attention(base, "qv"),
        modules_to_save=list(head),
    )
    return get_peft_model(base, config)


def vera(base: Any, head: tuple[str, ...]) -> Any:
    """Updates diag(b) B diag(d) A of queries and values; the random A and B are shared and frozen.

    Source: Kopiczko et al., 2024, arXiv 2310.11454, section 3.1; PEFT's implementation.
    """
    config = VeraConfig(
        task_type="SEQ_CLS",
        r=VERA_RANK,
        target_modules=inputs_of_attention(base, "qv"),
        modules_to_save=list(head),
    )
    return get_peft_model(base, config)


def ia3(base: Any, head: tuple[str, ...]) -> Any:
    """Scales of keys, of values, and of what goes into the feed-forward's second projection.

    Source: Liu et al., 2022, arXiv 2205.05638, section 3.3; PEFT's implementation.
    """
    ffn = [site.projection for site in find_sites(base, ["ffn"])]
    config = IA3Config(
        task_type="SEQ_CLS",
        target_modules=[*inputs_of_attention(base, "kv"), *ffn],
        feedforward_modules=ffn,
        modules_to_save=list(head),
    )
    return get_peft_model(base, config)


def ln_tuning(base: Any, head: tuple[str, ...]) -> Any:
    """Weight and bias of every norm, that of the embeddings too.

    Source: Qi et al., 2022, arXiv 2211.08682; PEFT's implementation.
    """
    config = LNTuningConfig(task_type="SEQ_CLS", target_modules=norms_in(base), modules_to_save=list(head))
    return get_peft_model(base, config)
