"""Laws over the rows of the table of families."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hadamard_adapter.adapter.families import (
    FAMILIES,
    SITE_NAMES,
    candidates,
    family_of,
    find_sites,
    shift_can_merge,
)
from hadamard_adapter.errors import SettingsError
from models import TINY, WIDTH, tiny_config, tiny_inputs, tiny_model

on_every_model = pytest.mark.parametrize("name", TINY)
with_and_without_head = pytest.mark.parametrize("task", ["headless", "sequence-classification"])
HEAD_TASKS = ("sequence-classification", "token-classification", "question-answering")


class Call(NamedTuple):
    """A call seen in a forward pass: a projection with its output, or a norm with its input."""

    path: str
    is_norm: bool
    tensor: Tensor


def is_norm(module: nn.Module) -> bool:
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return weight is not None and weight.shape == (WIDTH,)


def record_calls(model: PreTrainedModel, inputs: dict[str, Tensor], projections: set[str]) -> list[Call]:
    calls: list[Call] = []
    for path, module in model.named_modules():
        if path in projections:
            module.register_forward_hook(lambda _, args, out, path=path: calls.append(Call(path, False, out)))
        elif is_norm(module):
            module.register_forward_pre_hook(
                lambda _, args, path=path: calls.append(Call(path, True, args[0]))
            )
    model(**inputs)
    return calls


def test_every_row_has_a_tiny_model() -> None:
    tested = [family_of(tiny_config(name)) for name in TINY]
    assert all(row in tested for rows in FAMILIES.values() for row in rows)
    assert {TINY[name].model_type for name in TINY} == set(FAMILIES)


@with_and_without_head
@on_every_model
def test_every_layer_has_each_site_once(name: str, task: str) -> None:
    model = tiny_model(name, task)
    found = find_sites(model, SITE_NAMES)
    stacks = {site.stack for site in found}
    n_layers = sum(len(model.get_submodule(path)) for path in stacks)
    expected = {"bart": 5, "t5": 5, "albert": 1}.get(name, model.config.num_hidden_layers)
    assert n_layers == expected
    assert len(found) == len({site.projection for site in found}) == expected * len(SITE_NAMES)
    assert all(site.projection.startswith(f"{site.stack}.{site.layer_index}.") for site in found)


@with_and_without_head
@on_every_model
def test_projections_and_norms_have_the_hidden_width(name: str, task: str) -> None:
    model = tiny_model(name, task)
    for site in find_sites(model, SITE_NAMES):
        projection = model.get_submodule(site.projection)
        assert isinstance(projection, (nn.Linear, Conv1D))
        width = projection.nf if isinstance(projection, Conv1D) else projection.out_features
        assert width == WIDTH
        assert site.norm is not None
        assert is_norm(model.get_submodule(site.norm))


@with_and_without_head
@on_every_model
def test_the_norm_is_the_first_that_the_projection_reaches(name: str, task: str) -> None:
    model = tiny_model(name, task)
    norm_of = {site.projection: site.norm for site in find_sites(model, SITE_NAMES)}
    calls = record_calls(model, tiny_inputs(name, task=task), set(norm_of))
    assert {call.path for call in calls if not call.is_norm} == set(norm_of)
    for position, call in enumerate(calls):
        if call.is_norm:
            continue
        following = next(later for later in calls[position:] if later.is_norm)
        assert following.path == norm_of[call.path]
        (gradient,) = torch.autograd.grad(
            following.tensor.sum(), call.tensor, retain_graph=True, allow_unused=True
        )
        assert gradient is not None, f"{following.path} does not see {call.path}"


@pytest.mark.parametrize("site_name", SITE_NAMES)
@on_every_model
def test_the_switch_and_nothing_else_in_the_config_gives_a_projection_its_bias(
    name: str, site_name: str
) -> None:
    def has_biases(**overrides: object) -> tuple[list[bool], PreTrainedModel]:
        model = tiny_model(name, "headless", randomize=False, **overrides)
        paths = [site.projection for site in find_sites(model, [site_name])]
        return [model.get_submodule(path).bias is not None for path in paths], model

    before, model = has_biases()
    switches = {site.bias_switch for site in find_sites(model, [site_name])}
    values = {key: value for key, value in model.config.to_dict().items() if isinstance(value, bool)}
    flipped = {
        key for key, value in values.items() if "bias" in key and has_biases(**{key: not value})[0] != before
    }
    assert flipped == switches - {None}
    for switch in flipped:
        with_bias, _ = has_biases(**{switch: True})
        without_bias, model = has_biases(**{switch: False})
        assert all(with_bias)
        assert not any(without_bias)
        assert all(
            shift_can_merge(model, site.projection, site.bias_switch)
            for site in find_sites(model, [site_name])
        )


@pytest.mark.parametrize(
    ("name", "site", "expected"),
    [
        ("bert", "attention", True),
        ("gpt2", "ffn", True),
        ("llama", "ffn", True),
        ("gemma", "attention", True),
        ("gemma", "ffn", False),
        ("t5", "attention", False),
        ("qwen2", "attention", False),
        ("mistral", "ffn", False),
    ],
)
def test_a_shift_merges_where_a_bias_is_or_can_be(name: str, site: str, expected: bool) -> None:
    model = tiny_model(name, randomize=False)
    found = find_sites(model, [site])[0]
    assert shift_can_merge(model, found.projection, found.bias_switch) is expected


@on_every_model
def test_the_head_of_a_row_is_what_the_task_classes_add(name: str) -> None:
    backbone = {key for key, _ in tiny_model(name, "headless", randomize=False).named_parameters()}
    for task in set(HEAD_TASKS) & set(TINY[name].tasks):
        model = tiny_model(name, task, randomize=False)
        names = [key for key, _ in model.named_parameters()]
        added = {key for key in names if key.removeprefix(f"{model.base_model_prefix}.") not in backbone}
        heads = tuple(f"{head}." for head in family_of(model.config).head)
        assert added == {key for key in names if key.startswith(heads)}


def test_a_projection_named_like_the_end_of_another_is_not_confused_with_it() -> None:
    found = find_sites(tiny_model("bert"), ["ffn"])
    assert [site.projection for site in found] == [f"bert.encoder.layer.{i}.output.dense" for i in range(2)]
    assert found[0].norm == "bert.encoder.layer.0.output.LayerNorm"


def test_sites_are_found_inside_a_module_around_the_model() -> None:
    wrapper = nn.Module()
    wrapper.config, wrapper.inner = tiny_config("llama"), tiny_model("llama")
    last = find_sites(wrapper, ["ffn"])[-1]
    assert (last.projection, last.norm) == ("inner.model.layers.1.mlp.down_proj", "inner.model.norm")


def test_a_missing_or_weightless_norm_is_left_out() -> None:
    model = tiny_model("opt", "headless", randomize=False, _remove_final_layer_norm=True)
    norms = [site.norm for site in find_sites(model, ["ffn"])]
    assert norms == ["decoder.layers.1.self_attn_layer_norm", None]
    model = tiny_model("opt", "headless", randomize=False, layer_norm_elementwise_affine=False)
    assert {site.norm for site in find_sites(model, SITE_NAMES)} == {None}


def test_a_model_without_its_decoder_keeps_the_sites_of_its_encoder() -> None:
    found = find_sites(tiny_model("t5", "token-classification"), SITE_NAMES)
    assert {site.stack for site in found} == {"transformer.encoder.block"}


def test_chosen_layers_count_in_each_stack() -> None:
    stacks = [site.stack for site in find_sites(tiny_model("bart", "headless"), ["attention"], [1, 2])]
    assert stacks == ["encoder.layers", "decoder.layers", "decoder.layers"]


@pytest.mark.parametrize("layer_index", [-1, 2])
def test_a_layer_out_of_range_is_refused_with_the_range(layer_index: int) -> None:
    with pytest.raises(SettingsError, match=rf"0\.\.1.*received {layer_index}"):
        find_sites(tiny_model("bert"), ["attention"], [0, layer_index])


def test_single_layers_of_shared_weights_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"'albert' share their weights"):
        find_sites(tiny_model("albert"), ["attention"], [0])


def test_an_unknown_site_is_refused() -> None:
    with pytest.raises(SettingsError, match="received 'query'"):
        find_sites(tiny_model("bert"), ["query"])


def test_a_module_without_config_is_refused() -> None:
    with pytest.raises(SettingsError, match="received Linear"):
        find_sites(nn.Linear(2, 2), ["attention"])


def test_an_unknown_model_type_is_named_with_the_known_ones_and_a_way_out() -> None:
    with pytest.raises(SettingsError) as caught:
        family_of(AutoConfig.for_model("bloom"))
    message = str(caught.value)
    assert "'bloom'" in message
    assert all(part in message for part in (*FAMILIES, "target_modules=[", "hadamard inspect"))


def test_a_config_that_no_row_of_its_family_covers_is_refused() -> None:
    config = PretrainedConfig()
    config.model_type = "opt"
    with pytest.raises(SettingsError, match="do_layer_norm_before=True; do_layer_norm_before=False"):
        family_of(config)


@on_every_model
def test_candidates_hold_what_the_table_says(name: str) -> None:
    model = tiny_model(name, randomize=False)
    proposed = {
        kind: {
            f"{found.layers}.{i}.{found.path}"
            for found in candidates(model)
            if found.kind == kind
            for i in found.layer_indices
        }
        for kind in ("projection", "norm")
    }
    sites = find_sites(model, SITE_NAMES)
    assert {site.projection for site in sites} <= proposed["projection"]
    assert {site.norm for site in sites if site.norm and site.norm.startswith(site.stack)} <= proposed["norm"]


def test_candidates_of_an_unknown_model_are_its_output_projections_and_norms() -> None:
    model = AutoModel.from_config(
        AutoConfig.for_model("bloom", hidden_size=16, n_layer=2, n_head=2, vocab_size=20)
    )
    found = candidates(model)
    assert [(c.kind, c.path) for c in found] == [
        ("projection", "self_attention.dense"),
        ("projection", "mlp.dense_4h_to_h"),
        ("norm", "input_layernorm"),
        ("norm", "post_attention_layernorm"),
    ]
    assert {(c.layers, c.layer_indices) for c in found} == {("h", (0, 1))}
