"""Tiny random models of every family, and inputs for them: what all tests run on."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

PAD, BOS, EOS, FIRST_WORD, VOCAB_SIZE = 1, 0, 2, 5, 100
WIDTH, N_LAYERS, SEQUENCE_LENGTH, IMAGE_SIZE = 32, 2, 12, 16
STD = 0.2
"""Spread of the random parameters: every one counts, and all outputs stay finite."""

AUTO_CLASSES: dict[str, Any] = {
    "headless": AutoModel,
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "causal-lm": AutoModelForCausalLM,
    "seq2seq-lm": AutoModelForSeq2SeqLM,
}
_TEXT_TASKS = ("headless", "sequence-classification", "token-classification", "question-answering")


@dataclass(frozen=True)
class Tiny:
    """One tiny model: its `model_type`, the arguments of its config, and what it can do."""

    model_type: str
    arguments: dict[str, object]
    tasks: tuple[str, ...] = _TEXT_TASKS
    needs_decoder_ids: tuple[str, ...] = field(default=())
    """Tasks whose forward wants `decoder_input_ids` from the caller."""


_TOKENS: dict[str, object] = dict(
    vocab_size=VOCAB_SIZE,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=EOS,
    cls_token_id=None,
    sep_token_id=None,
)
_ENCODER: dict[str, object] = dict(
    _TOKENS,
    hidden_size=WIDTH,
    num_hidden_layers=N_LAYERS,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
_LLAMA: dict[str, object] = dict(_ENCODER, num_key_value_heads=1, head_dim=16)
_OPT: dict[str, object] = dict(_ENCODER, ffn_dim=48, word_embed_proj_dim=WIDTH, dropout=0.0)
_DECODER_TASKS = ("headless", "sequence-classification", "causal-lm")
_DECODER_ALL = (*_TEXT_TASKS, "causal-lm")

TINY: dict[str, Tiny] = {
    "bert": Tiny("bert", _ENCODER),
    "roberta": Tiny("roberta", _ENCODER),
    "xlm-roberta": Tiny("xlm-roberta", _ENCODER),
    "xlm-roberta-xl": Tiny("xlm-roberta-xl", _ENCODER),
    "camembert": Tiny("camembert", _ENCODER),
    "electra": Tiny("electra", dict(_ENCODER, embedding_size=16)),
    "mpnet": Tiny("mpnet", _ENCODER),
    "distilbert": Tiny(
        "distilbert",
        dict(
            _TOKENS,
            dim=WIDTH,
            n_layers=N_LAYERS,
            n_heads=2,
            hidden_dim=48,
            max_position_embeddings=64,
            dropout=0.0,
            attention_dropout=0.0,
            seq_classif_dropout=0.0,
            qa_dropout=0.0,
        ),
    ),
    "albert": Tiny("albert", dict(_ENCODER, embedding_size=16, classifier_dropout_prob=0.0)),
    "deberta": Tiny(
        "deberta", dict(_ENCODER, pooler_dropout=0.0, relative_attention=True, pos_att_type=["c2p", "p2c"])
    ),
    "deberta-v2": Tiny(
        "deberta-v2", dict(_ENCODER, pooler_dropout=0.0, relative_attention=True, pos_att_type=["c2p", "p2c"])
    ),
    "modernbert": Tiny("modernbert", dict(_ENCODER, num_hidden_layers=3, cls_token_id=BOS, sep_token_id=EOS)),
    "bart": Tiny(
        "bart",
        dict(
            _TOKENS,
            d_model=WIDTH,
            encoder_layers=N_LAYERS,
            decoder_layers=N_LAYERS + 1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=64,
            decoder_start_token_id=EOS,
            forced_eos_token_id=EOS,
            dropout=0.0,
        ),
        tasks=("headless", "sequence-classification", "question-answering", "seq2seq-lm"),
    ),
    "t5": Tiny(
        "t5",
        dict(
            _TOKENS,
            d_model=WIDTH,
            d_kv=16,
            d_ff=48,
            num_layers=N_LAYERS,
            num_decoder_layers=N_LAYERS + 1,
            num_heads=2,
            decoder_start_token_id=PAD,
            dropout_rate=0.0,
        ),
        tasks=(*_TEXT_TASKS, "seq2seq-lm"),
        needs_decoder_ids=("headless", "seq2seq-lm"),
    ),
    "gpt2": Tiny(
        "gpt2",
        dict(
            _TOKENS,
            n_embd=WIDTH,
            n_layer=N_LAYERS,
            n_head=2,
            n_inner=48,
            n_positions=64,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            summary_first_dropout=0.0,
        ),
        tasks=_DECODER_ALL,
    ),
    "opt": Tiny("opt", _OPT, tasks=(*_DECODER_TASKS, "question-answering")),
    "opt-post-norm": Tiny(
        "opt", dict(_OPT, do_layer_norm_before=False), tasks=(*_DECODER_TASKS, "question-answering")
    ),
    "llama": Tiny("llama", _LLAMA, tasks=_DECODER_ALL),
    "mistral": Tiny("mistral", _LLAMA, tasks=_DECODER_ALL),
    "qwen2": Tiny("qwen2", _LLAMA, tasks=_DECODER_ALL),
    "qwen3": Tiny("qwen3", _LLAMA, tasks=_DECODER_ALL),
    "gemma": Tiny("gemma", _LLAMA, tasks=(*_DECODER_TASKS, "token-classification")),
    "gemma2": Tiny("gemma2", _LLAMA, tasks=(*_DECODER_TASKS, "token-classification")),
    "gemma3_text": Tiny("gemma3_text", _LLAMA, tasks=_DECODER_TASKS),
    "vit": Tiny(
        "vit",
        dict(
            hidden_size=WIDTH,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=2,
            intermediate_size=48,
            image_size=IMAGE_SIZE,
            patch_size=8,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        tasks=("headless", "sequence-classification"),
    ),
}


def tiny_config(name: str, **overrides: object) -> PretrainedConfig:
    """Returns the config of a row of `TINY`, some arguments replaced."""
    return AutoConfig.for_model(TINY[name].model_type, **{**TINY[name].arguments, **overrides})


def tiny_model(
    name: str,
    task: str = "sequence-classification",
    seed: int = 0,
    randomize: bool = True,
    num_labels: int = 3,
    **config_overrides: object,
) -> PreTrainedModel:
    """Returns a tiny model in eval mode; with `randomize` every parameter is random, biases and norms too."""
    n_outputs = 2 if task == "question-answering" else num_labels
    config = tiny_config(name, **({"num_labels": n_outputs} | config_overrides))
    auto_class = AUTO_CLASSES[task]
    if name == "vit" and task != "headless":
        auto_class = AutoModelForImageClassification
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = auto_class.from_config(config)
        if randomize:
            randomize_parameters(model, seed)
    return model.eval()


def randomize_parameters(module: torch.nn.Module, seed: int = 0, std: float = STD) -> None:
    """Moves every parameter by normal noise, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator)


def tiny_inputs(
    name: str, batch_size: int = 4, seed: int = 0, task: str = "sequence-classification"
) -> dict[str, Tensor]:
    """Returns a batch: rows of different lengths, padded on the right, one end token each; or pixels."""
    generator = torch.Generator().manual_seed(seed)
    if name == "vit":
        return {"pixel_values": torch.randn(batch_size, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)}
    shape = (batch_size, SEQUENCE_LENGTH)
    input_ids = torch.randint(FIRST_WORD, VOCAB_SIZE, shape, generator=generator)
    lengths = SEQUENCE_LENGTH - torch.arange(batch_size) % (SEQUENCE_LENGTH - 2)
    positions = torch.arange(SEQUENCE_LENGTH)[None]
    input_ids = input_ids.masked_fill(positions == lengths[:, None] - 1, EOS)
    input_ids = input_ids.masked_fill(positions >= lengths[:, None], PAD)
    inputs = {"input_ids": input_ids, "attention_mask": (positions < lengths[:, None]).long()}
    if task in TINY[name].needs_decoder_ids:
        inputs["decoder_input_ids"] = input_ids.roll(1, dims=1)
    return inputs
