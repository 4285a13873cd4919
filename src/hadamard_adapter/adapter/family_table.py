"""The table of model families: where each site's projection is, and which norm follows it. Data only.

A site is a projection that writes to the residual stream: the attention's output projection, or the
feed-forward's. With it goes *the next norm on the residual path*: the first normalisation that the
projection's output reaches, by this rule:

- post-norm layers (BERT): the norm of the residual sum, right behind the projection;
- sandwich norms (Gemma 2): the norm of the branch, right behind the projection;
- pre-norm layers (Llama): for the attention the norm before the feed-forward (in T5's decoder the one before
  the cross-attention, which comes first); for the feed-forward the first norm of the next layer, and
  in the last layer the norm behind the stack. Where the model has none there, the site has no norm.

In encoder-decoders the self-attention and the feed-forward of both stacks are sites; the cross-attention is
not adapted. A row is data about one `model_type`, and its paths are matched whole, as
`<layers>.<index>.<projection>`: "output.dense" of a BERT layer never means its "attention.output.dense".
A new family is a new row.

Source: the modeling files of transformers 5.23; tests/test_families.py derives each row's norms from the
order of calls.
"""

from dataclasses import dataclass

__all__ = ["FAMILIES", "Family", "Site", "Stack"]


@dataclass(frozen=True)
class Site:
    """One projection of a layer and the norm that follows it."""

    projection: str
    """Path of the projection inside one layer, e.g. "attention.output.dense"."""
    norm: str | None
    """Path of the norm that follows, inside one layer; None: no norm follows."""
    norm_in_next_layer: bool = False
    """The norm is that of the next layer; for the last layer the stack's `final_norm` is meant."""
    bias_switch: str | None = None
    """Attribute of the config that gives this projection a bias, e.g. "attention_bias"; None: it has none."""


@dataclass(frozen=True)
class Stack:
    """One list of equal layers, and its two sites."""

    layers: str
    """Path of the list of layers, without what a task class puts before it, e.g. "encoder.layer"."""
    attention: Site
    """The self-attention's output projection."""
    ffn: Site
    """The feed-forward's output projection."""
    final_norm: str | None = None
    """Path of the norm behind the stack, counted from where `layers` is counted."""


@dataclass(frozen=True)
class Family:
    """One row: the stacks of a `model_type`, and its head."""

    stacks: tuple[Stack, ...]
    """The stacks; those that a class leaves out (the decoder in a T5 encoder) are skipped."""
    head: tuple[str, ...]
    """Modules that the task classes have beside the backbone, at their root."""
    when: tuple[tuple[str, object], ...] = ()
    """Attributes of the config that this row needs, with their values."""
    is_shared: bool = False
    """Layers share their weights (ALBERT), so that one cannot be adapted without the others."""


def _bert(head: tuple[str, ...] = ("classifier", "qa_outputs")) -> Family:
    """The layout of BERT and of what was copied from it."""
    attention = Site("attention.output.dense", "attention.output.LayerNorm")
    return Family((Stack("encoder.layer", attention, Site("output.dense", "output.LayerNorm")),), head)


def _llama(
    attention_switch: str | None = None, ffn_switch: str | None = None, *, has_sandwich_norms: bool = False
) -> Family:
    """The layout of Llama and of what was copied from it; with sandwich norms that of Gemma 2."""
    attention = Site("self_attn.o_proj", "post_attention_layernorm", bias_switch=attention_switch)
    if has_sandwich_norms:
        ffn = Site("mlp.down_proj", "post_feedforward_layernorm", bias_switch=ffn_switch)
    else:
        ffn = Site("mlp.down_proj", "input_layernorm", norm_in_next_layer=True, bias_switch=ffn_switch)
    return Family(
        (Stack("layers", attention, ffn, final_norm="norm"),), ("score", "classifier", "qa_outputs")
    )


def _opt(*, is_pre_norm: bool) -> Family:
    attention, ffn, switch = "self_attn.out_proj", "fc2", "enable_bias"
    first, second = "self_attn_layer_norm", "final_layer_norm"
    if is_pre_norm:
        sites = (Site(attention, second, bias_switch=switch), Site(ffn, first, True, switch))
    else:
        sites = (Site(attention, first, bias_switch=switch), Site(ffn, second, bias_switch=switch))
    stack = Stack("decoder.layers", *sites, final_norm="decoder.final_layer_norm")
    return Family((stack,), ("score", "classifier", "qa_outputs"), (("do_layer_norm_before", is_pre_norm),))


def _bart_stack(layers: str) -> Stack:
    attention = Site("self_attn.out_proj", "self_attn_layer_norm")
    return Stack(layers, attention, Site("fc2", "final_layer_norm"))


def _t5_stack(name: str, ffn_index: int) -> Stack:
    """T5 keeps self-attention, cross-attention (in the decoder) and feed-forward in a list in each block."""
    ffn = Site(f"layer.{ffn_index}.DenseReluDense.wo", "layer.0.layer_norm", norm_in_next_layer=True)
    attention = Site("layer.0.SelfAttention.o", "layer.1.layer_norm")
    return Stack(f"{name}.block", attention, ffn, f"{name}.final_layer_norm")


_SEQ2SEQ_HEAD = ("classification_head", "classifier", "qa_outputs")

FAMILIES: dict[str, tuple[Family, ...]] = {
    "bert": (_bert(),),
    "roberta": (_bert(),),
    "xlm-roberta": (_bert(),),
    "camembert": (_bert(),),
    "electra": (_bert(),),
    "deberta": (_bert(("pooler", "classifier", "qa_outputs")),),
    "deberta-v2": (_bert(("pooler", "classifier", "qa_outputs")),),
    "xlm-roberta-xl": (
        Family(
            (
                Stack(
                    "encoder.layer",
                    Site("attention.output.dense", "LayerNorm"),
                    Site("output.dense", "attention.self_attn_layer_norm", norm_in_next_layer=True),
                    final_norm="encoder.LayerNorm",
                ),
            ),
            head=("classifier", "qa_outputs"),
        ),
    ),
    "mpnet": (
        Family(
            (
                Stack(
                    "encoder.layer",
                    Site("attention.attn.o", "attention.LayerNorm"),
                    Site("output.dense", "output.LayerNorm"),
                ),
            ),
            head=("classifier", "qa_outputs"),
        ),
    ),
    "distilbert": (
        Family(
            (
                Stack(
                    "transformer.layer",
                    Site("attention.out_lin", "sa_layer_norm"),
                    Site("ffn.lin2", "output_layer_norm"),
                ),
            ),
            head=("pre_classifier", "classifier", "qa_outputs"),
        ),
    ),
    "albert": (
        Family(
            (
                Stack(
                    "albert_layers",
                    Site("attention.dense", "attention.LayerNorm"),
                    Site("ffn_output", "full_layer_layer_norm"),
                ),
            ),
            head=("classifier", "qa_outputs"),
            is_shared=True,
        ),
    ),
    "modernbert": (
        Family(
            (
                Stack(
                    "layers",
                    Site("attn.Wo", "mlp_norm", bias_switch="attention_bias"),
                    Site("mlp.Wo", "attn_norm", norm_in_next_layer=True, bias_switch="mlp_bias"),
                    final_norm="final_norm",
                ),
            ),
            head=("head", "classifier", "qa_outputs"),
        ),
    ),
    "bart": (Family((_bart_stack("encoder.layers"), _bart_stack("decoder.layers")), _SEQ2SEQ_HEAD),),
    "t5": (Family((_t5_stack("encoder", 1), _t5_stack("decoder", 2)), _SEQ2SEQ_HEAD),),
    "gpt2": (
        Family(
            (
                Stack(
                    "h",
                    Site("attn.c_proj", "ln_2"),
                    Site("mlp.c_proj", "ln_1", norm_in_next_layer=True),
                    final_norm="ln_f",
                ),
            ),
            head=("score", "classifier", "qa_outputs"),
        ),
    ),
    "opt": (_opt(is_pre_norm=True), _opt(is_pre_norm=False)),
    "llama": (_llama("attention_bias", "mlp_bias"),),
    "mistral": (_llama(),),
    "qwen2": (_llama(),),
    "qwen3": (_llama("attention_bias"),),
    "gemma": (_llama("attention_bias"),),
    "gemma2": (_llama("attention_bias", has_sandwich_norms=True),),
    "gemma3_text": (_llama("attention_bias", has_sandwich_norms=True),),
    "vit": (
        Family(
            (
                Stack(
                    "layers",
                    Site("attention.o_proj", "layernorm_after"),
                    Site("mlp.fc2", "layernorm_before", norm_in_next_layer=True),
                    final_norm="layernorm",
                ),
            ),
            head=("classifier",),
        ),
    ),
}
"""By `config.model_type`: the rows, of which the first counts whose `when` holds."""
