"""Merging: exact, all or nothing, reversible to the bit; and what cannot be merged refuses."""

import copy
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from adapter_help import (
    BOTH,
    adapted,
    add_random_adapter,
    added,
    assert_close,
    assert_same_bits,
    copy_state,
    logits,
    logits_of_base,
    randomize,
)
from hadamard_adapter import HadamardConfig
from hadamard_adapter.adapter.merge import fold
from hadamard_adapter.errors import AdapterError
from models import tiny_inputs, tiny_model


def test_a_weight_that_another_module_shares_is_not_merged() -> None:
    config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20, n_positions=16)
    inputs = torch.tensor([[1, 2, 3]])
    for is_tied in (True, False):
        base = GPT2LMHeadModel(copy.deepcopy(config))
        if not is_tied:
            base.lm_head.weight = nn.Parameter(base.lm_head.weight.detach().clone())
        own = HadamardConfig(task_type="CAUSAL_LM", target_modules=["lm_head"], train_shift=False)
        model: PeftModel = get_peft_model(base, own).eval()
        randomize(model, "default", 0)
        before = model(input_ids=inputs).logits.detach()
        if is_tied:
            with pytest.raises(AdapterError, match="lm_head shares its weight with another module"):
                model.merge_adapter()
        else:
            model.merge_adapter()
        torch.testing.assert_close(model(input_ids=inputs).logits, before, atol=1e-5, rtol=1e-5)


def two_adapters(name: str = "bert") -> PeftModel:
    model = adapted(name)
    add_random_adapter(model, "second", 5)
    return model


def break_last_offset(model: nn.Module, adapter: str = "default") -> None:
    with torch.no_grad():
        [p for key, p in added(model, adapter).items() if "hadamard_" in key][-1][0] = float("nan")


def shifted(name: str) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return adapted(name, train_shift=True)


def test_fold_is_the_equation_with_input_and_output_at_once():
    generator = torch.Generator().manual_seed(0)
    weight, bias, x, in_scale, in_shift, out_scale, out_shift = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((4, 3), (4,), (7, 3), (3,), (3,), (4,), (4,))
    )
    expected = (((1 + in_scale) * x + in_shift) @ weight.T + bias) * (1 + out_scale) + out_shift
    new_weight, new_bias = fold(weight, bias, in_scale, in_shift, out_scale, out_shift)
    torch.testing.assert_close(x @ new_weight.T + new_bias, expected)
    transposed, same_bias = fold(weight.T, bias, in_scale, in_shift, out_scale, out_shift, out_axis=1)
    assert torch.equal(transposed, new_weight.T) and torch.allclose(same_bias, new_bias)
    assert fold(weight, None, in_scale, None, out_scale)[1] is None


def test_named_adapters_are_merged_together_and_unmerged_to_the_bit():
    model, inputs = two_adapters(), tiny_inputs("bert")
    before = copy_state(model)
    model.base_model.set_adapter(["default", "second"])
    expected = logits(model, inputs)
    model.base_model.set_adapter("default")
    model.merge_adapter(adapter_names=["default", "second"])
    assert_close(logits(model, inputs), expected)
    model.unmerge_adapter()
    assert_same_bits(model.state_dict(), before)


def test_merging_one_after_the_other_is_merging_both():
    model, inputs = two_adapters(), tiny_inputs("bert")
    before = copy_state(model)
    model.merge_adapter(adapter_names=["default"])
    first = copy_state(model)
    model.merge_adapter(adapter_names=["second"])
    both = copy_state(model)
    model.unmerge_adapter()
    assert_same_bits(model.state_dict(), before)
    model.merge_adapter(adapter_names=["default", "second"])
    assert_same_bits(model.state_dict(), both)
    assert any(not torch.equal(both[key], first[key]) for key in both)
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter(adapter_names=["default"])
    assert_same_bits(model.state_dict(), both)
    assert torch.equal(logits_of_base(model, inputs), logits(tiny_model("bert"), inputs))


@pytest.mark.parametrize("call", ["merge_adapter", "merge_and_unload"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_safe_merge_that_fails_leaves_the_model_as_it_was(call, name):
    model = two_adapters(name)
    model.merge_adapter(adapter_names=["default"])
    before, modules = copy_state(model), list(dict(model.named_modules()))
    break_last_offset(model, "second")
    before |= {key: value.clone() for key, value in added(model, "second").items()}
    with pytest.raises(ValueError, match=r"NaNs detected.*second"):
        getattr(model, call)(safe_merge=True, adapter_names=["second"])
    after = model.state_dict()
    assert after.keys() == before.keys() and list(dict(model.named_modules())) == modules
    assert all(torch.equal(after[key].nan_to_num(7), before[key].nan_to_num(7)) for key in before)
    model.unmerge_adapter()
    plain = tiny_model(name).state_dict()
    own = {
        key.replace(".base_layer.", "."): value for key, value in model.base_model.model.state_dict().items()
    }
    assert all(torch.equal(own[key], value) for key, value in plain.items() if key in own)


def test_a_safe_merge_of_sound_adapters_is_a_merge():
    model, inputs = adapted(), tiny_inputs("bert")
    expected = logits(model, inputs)
    assert_close(logits(model.merge_and_unload(safe_merge=True), inputs), expected)


@pytest.mark.parametrize("name", ["t5", "qwen2"])
@pytest.mark.parametrize("call", ["merge_adapter", "merge_and_unload"])
def test_a_merge_that_would_lose_a_shift_refuses_and_says_what_to_do(name, call):
    model, inputs = shifted(name), tiny_inputs(name)
    before, expected = copy_state(model), logits(model, inputs)
    with pytest.raises(AdapterError, match=r"no bias.*train_shift=False"):
        getattr(model, call)()
    assert_same_bits(model.state_dict(), before)
    assert torch.equal(logits(model, inputs), expected)


def test_a_shift_of_zeros_leaves_no_bias_behind(tmp_path):
    model, inputs = shifted("qwen2"), tiny_inputs("qwen2")
    with torch.no_grad():
        for key, parameter in added(model, "default").items():
            if "hadamard_shift" in key:
                parameter.zero_()
    expected = logits(model, inputs)
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)
    loaded, info = type(merged).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["missing_keys"]
    assert_close(logits(loaded.eval(), inputs), expected)


@pytest.mark.parametrize("name", ["llama", "modernbert", "gemma", "qwen3"])
def test_a_shift_survives_plain_saving_through_the_config_switch(name, tmp_path):
    model, inputs = adapted(name, sites=["attention"]), tiny_inputs(name)
    assert any("hadamard_shift" in key and p.any() for key, p in added(model, "default").items())
    expected = logits(model, inputs)
    merged = model.merge_and_unload()
    assert merged.config.attention_bias is True
    merged.save_pretrained(tmp_path)
    loaded, info = type(merged).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["missing_keys"]
    assert_close(logits(loaded.eval(), inputs), expected)


@pytest.mark.parametrize("name", ["llama", "modernbert", "gemma", "qwen3"])
def test_a_bias_that_merging_added_to_a_loaded_model_is_no_head(name, tmp_path):
    """Saving would refuse a parameter that the checkpoint lacked and no saved module covers."""
    tiny_model(name).save_pretrained(tmp_path / "base")
    base = type(tiny_model(name)).from_pretrained(tmp_path / "base")
    config = HadamardConfig(task_type="SEQ_CLS", sites=["attention"])
    model = get_peft_model(base, config)
    randomize(model, "default", 1)
    model.merge_adapter()
    model.save_pretrained(tmp_path / "merged")
    merged = model.merge_and_unload()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="cannot save")
        again = get_peft_model(merged, config)
    assert again.peft_config["default"].head_modules == model.peft_config["default"].head_modules
    again.save_pretrained(tmp_path / "again")


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_shift_merges_where_the_user_put_a_module_of_their_own(is_gone):
    model = tiny_model("modernbert")
    if is_gone:
        model.head = nn.Identity()
    else:  # of another size, without a bias, where the model's own has one
        model.classifier = nn.Linear(model.classifier.in_features, 7, bias=False)
    model = get_peft_model(model, HadamardConfig(task_type="SEQ_CLS", sites=["attention"]))
    randomize(model, "default", 1)
    inputs = tiny_inputs("modernbert")
    expected = logits(model.eval(), inputs)
    merged = model.merge_and_unload()
    assert merged.config.attention_bias is True
    assert_close(logits(merged, inputs), expected)


def test_a_shift_merges_inside_a_module_around_the_model():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_model("llama")
            self.config = self.inner.config

        def forward(self, **inputs):
            return self.inner(**inputs)

    model = get_peft_model(Around(), HadamardConfig(sites=["attention"]))
    randomize(model, "default", 1)
    inputs = tiny_inputs("llama")
    expected = logits(model.eval(), inputs)
    merged = model.merge_and_unload()
    assert merged.config.attention_bias is True
    assert merged.inner.model.layers[0].self_attn.o_proj.bias is not None
    assert_close(logits(merged, inputs), expected)


def test_unmerging_takes_a_gained_bias_away_again():
    model = adapted("llama")
    before = copy_state(model)
    model.merge_adapter()
    assert set(model.state_dict()) - set(before)
    model.unmerge_adapter()
    assert_same_bits(model.state_dict(), before)
    assert model.config.attention_bias is False


@pytest.mark.parametrize("is_merged", [False, True])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_unloading_gives_back_the_base_model_bit_for_bit(name, is_merged):
    base = tiny_model(name)
    labels = dict(base.config.id2label)
    expected = copy_state(base)
    model = get_peft_model(base, HadamardConfig(task_type="SEQ_CLS"))
    randomize(model, "default", 1)
    model.peft_config["default"].id2label = {0: "a", 1: "b", 2: "c"}
    model.base_model.set_adapter("default")
    if is_merged:
        model.merge_adapter()
    unloaded = model.unload()
    assert_same_bits(unloaded.state_dict(), expected)
    assert unloaded.config.id2label == labels


def test_merging_another_than_the_active_adapter_takes_its_head_and_labels():
    model, inputs = adapted(), tiny_inputs("bert")
    add_random_adapter(model, "second", 5, n_labels=5)
    model.set_adapter("second")
    expected = logits(model, inputs)
    model.set_adapter("default")
    merged = model.merge_and_unload(adapter_names=["second"])
    assert_close(logits(merged, inputs), expected)
    assert merged.config.num_labels == merged.num_labels == 5
    assert merged.config.id2label[4] == "second-4"


def test_merging_twice_is_merging_once_and_unmerging_nothing_warns():
    model, inputs = adapted(), tiny_inputs("bert")
    expected = logits(model, inputs)
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()
    model.merge_adapter()
    assert_close(logits(model.merge_and_unload(), inputs), expected)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, -0.5), (2.0, 0.0)])
def test_a_weighted_adapter_is_the_sum_of_the_offsets(weights):
    model = two_adapters()
    model.add_weighted_adapter(["default", "second"], list(weights), "mix")
    for key, mixed in added(model, "mix").items():
        one, two = (model.get_parameter(key.replace("mix", name)) for name in ("default", "second"))
        total = 1 if "hadamard_" in key else sum(weights)
        torch.testing.assert_close(mixed.data, (weights[0] * one + weights[1] * two).data / total)
    model.set_adapter("mix")
    assert {key for key, p in model.named_parameters() if p.requires_grad} == set(added(model, "mix"))


def test_a_weighted_adapter_has_the_places_of_its_terms_and_refuses_terms_of_different_places():
    def layer(index):
        places = {"target_modules": ["attention.output.dense"], "norm_modules": []}
        return HadamardConfig(task_type="SEQ_CLS", layers_to_transform=[index], **places)

    model = get_peft_model(tiny_model("bert"), layer(0), adapter_name="low")
    model.add_adapter("high", layer(1))
    with pytest.raises(AdapterError, match=r"same places.*layer\.0.*\['low'\] alone"):
        model.add_weighted_adapter(["low", "high"], [1.0, 1.0], "mix", head="low")
    assert "mix" not in model.peft_config
    model = adapted()
    add_random_adapter(model, "second", 5)
    model.add_adapter("other", HadamardConfig(task_type="SEQ_CLS", sites=["ffn"]))
    inputs = tiny_inputs("bert")
    model.add_weighted_adapter(["default", "second"], [1.0, 0.0], "mix", head="other")
    model.add_weighted_adapter(["default", "second"], [1.0, 0.0], "same", head="default")
    hidden = {}
    for name in ("same", "mix", "other"):
        model.set_adapter(name)
        hidden[name] = model(**inputs, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(hidden["mix"], hidden["same"]) and not torch.equal(hidden["mix"], hidden["other"])


@pytest.mark.parametrize("names", [["default", "pooled"], ["pooled", "default"]])
def test_a_weighted_adapter_of_heads_of_other_modules_has_the_head_that_is_named(names):
    model, inputs = adapted(), tiny_inputs("bert")
    pooled = HadamardConfig(task_type="SEQ_CLS", sites=BOTH, modules_to_save=["pooler"])
    model.add_adapter("pooled", pooled)
    randomize(model, "pooled", 5)
    with pytest.raises(AdapterError, match="heads of different layers"):
        model.add_weighted_adapter(names, [0.0, 1.0], "mix")
    assert "mix" not in model.peft_config
    weights = [float(name == "pooled") for name in names]
    model.add_weighted_adapter(names, weights, "mix", head="pooled")
    found = {}
    for name in ("pooled", "mix"):
        model.set_adapter(name)
        found[name] = logits(model, inputs)
    assert_close(found["mix"], found["pooled"])


def test_a_weighted_adapter_takes_the_head_and_the_labels_that_are_named(tmp_path):
    model, inputs = adapted(), tiny_inputs("bert")
    add_random_adapter(model, "second", 5, n_labels=5)
    with pytest.raises(AdapterError, match=r"different labels.*head="):
        model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "mix")
    model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "mix", head="second")
    heads = {key: p for key, p in added(model, "mix").items() if "modules_to_save" in key}
    assert heads and all(
        torch.equal(p, model.get_parameter(k.replace("mix", "second"))) for k, p in heads.items()
    )
    model.set_adapter("mix")
    expected = logits(model, inputs)
    assert expected.shape[-1] == 5 and model.config.id2label[0] == "second-0"
    model.save_pretrained(tmp_path, selected_adapters=["mix"])
    loaded = PeftModel.from_pretrained(tiny_model("bert"), tmp_path / "mix").eval()
    assert torch.equal(logits(loaded, inputs), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["default"], [1.0, 2.0], "mix"), "one weight an adapter"),
        (([], [], "mix"), "one weight an adapter"),
        ((["default", "unknown"], [1.0, 2.0], "mix"), "unknown"),
        ((["default"], [1.0], "second"), "already"),
        ((["default", "second"], [1.0, -1.0], "mix"), "add up to 0"),
        ((["default", "second", "second"], [0.1, 0.2, -0.3], "mix"), "add up to 0"),
        ((["default", "before"], [1.0, 1.0], "mix"), "position"),
        ((["default", "scaled"], [1.0, 1.0], "mix"), "train_shift"),
    ],
)
def test_adapters_that_do_not_add_up_are_refused(arguments, message):
    model = two_adapters()
    add_random_adapter(model, "before", 6, position="input")
    add_random_adapter(model, "scaled", 7, train_shift=False)
    before = copy_state(model)
    with pytest.raises(AdapterError, match=message):
        model.add_weighted_adapter(*arguments)
    assert_same_bits(model.state_dict(), before)
    assert "mix" not in model.peft_config


def test_a_merge_of_a_bfloat16_model_folds_in_float32_and_rounds_once():
    model = adapted(dtype=torch.bfloat16, norm_modules=[])
    wide = copy.deepcopy(model).float()
    model.merge_adapter()
    wide.merge_adapter()
    rounded = {key: v.to(torch.bfloat16) for key, v in wide.state_dict().items() if "hadamard_" not in key}
    assert all(torch.equal(model.state_dict()[key], value) for key, value in rounded.items())
