"""The transformers model inside a PEFT model."""

from typing import Any

from peft import PeftModel

__all__ = ["base_model_of"]


def base_model_of(model: Any) -> Any:
    """Returns the model that a PEFT model stands around, adapters injected; any other model as it is.

    Example:
        >>> from peft import get_peft_model
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from hadamard_adapter import HadamardConfig
        >>> base = BertForSequenceClassification(BertConfig(hidden_size=8, num_attention_heads=2))
        >>> model = get_peft_model(base, HadamardConfig(task_type="SEQ_CLS"))
        >>> base_model_of(model) is base, base_model_of(base) is base
        (True, True)
    """
    return model.get_base_model() if isinstance(model, PeftModel) else model
