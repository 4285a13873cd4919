"""Tiny random models saved under the names of the hub's, so that PEFT's tests find them as local folders.

transformers takes "owner/name" for a folder where one exists below the working directory: pytest runs in
the folder that `write_models` fills, and no test needs its model ids changed.
"""

import json
import sys
from pathlib import Path

import torch
import transformers

__all__ = ["ADAPTERS", "MODELS", "write_models"]

_SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
_VOCABULARY = {"vocab_size": 120, "bos_token_id": 0, "eos_token_id": 3, "pad_token_id": 5}
_ENCODER = {**_SIZE, "vocab_size": 120, "max_position_embeddings": 64, "initializer_range": 0.2}
_DECODER = {**_SIZE, **_VOCABULARY, "max_position_embeddings": 64, "initializer_range": 0.2}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2, **_VOCABULARY}
_OPT = {**_DECODER, "ffn_dim": 37, "word_embed_proj_dim": 32}
_T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 37,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 120,
    "decoder_start_token_id": 5,
    "eos_token_id": 3,
    "pad_token_id": 5,
}
_BART = {
    **_VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 37,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 3,
    "forced_eos_token_id": None,
    "init_std": 0.2,
}

MODELS: dict[str, tuple[str, str, dict]] = {
    "peft-internal-testing/tiny-random-BertModel": ("BertModel", "BertConfig", _ENCODER),
    "peft-internal-testing/tiny-random-RobertaModel": ("RobertaModel", "RobertaConfig", _ENCODER),
    "peft-internal-testing/tiny-random-DebertaModel": (
        "DebertaModel",
        "DebertaConfig",
        {**_ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
    ),
    "peft-internal-testing/tiny-random-DebertaV2Model": (
        "DebertaV2Model",
        "DebertaV2Config",
        {**_ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
    ),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": (
        "BertForSequenceClassification",
        "BertConfig",
        _ENCODER,
    ),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": (
        "RobertaForSequenceClassification",
        "RobertaConfig",
        _ENCODER,
    ),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": (
        "LlamaForSequenceClassification",
        "LlamaConfig",
        {**_DECODER, "num_labels": 1},
    ),
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPTForCausalLM", "OPTConfig", _OPT),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", "GPT2Config", _GPT),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": (
        "GPTJForCausalLM",
        "GPTJConfig",
        {**_GPT, "rotary_dim": 4},
    ),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", "LlamaConfig", _DECODER),
    "peft-internal-testing/tiny-dummy-qwen2": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {**_DECODER, "num_key_value_heads": 2},
    ),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {**_DECODER, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False},
    ),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": (
        "T5ForConditionalGeneration",
        "T5Config",
        _T5,
    ),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": (
        "BartForConditionalGeneration",
        "BartConfig",
        _BART,
    ),
}
"""Hub name: model class, config class, the config's arguments. The model types are those of PEFT's models."""

ADAPTERS = {"peft-internal-testing/tiny-opt-lora-revision": {"peft_type": "LORA", "task_type": "CAUSAL_LM"}}
"""Hub name: content of adapter_config.json, for the tests of PEFT that only read a config."""


def write_models(folder: Path) -> None:
    """Writes every model of `MODELS` and every config of `ADAPTERS` below `folder`, seeded.

    Example:
        >>> write_models(Path("hub"))  # doctest: +SKIP
    """
    transformers.logging.disable_progress_bar()
    for name, (model_class, config_class, arguments) in MODELS.items():
        torch.manual_seed(0)
        config = getattr(transformers, config_class)(**arguments)
        getattr(transformers, model_class)(config).save_pretrained(folder / name)
    for name, config in ADAPTERS.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "adapter_config.json").write_text(json.dumps(config), encoding="utf8")


if __name__ == "__main__":
    write_models(Path(sys.argv[1]))
