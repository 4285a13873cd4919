"""The laws of the method, over every row of the table of families; all base parameters and offsets random."""

import pytest
import torch
from peft import PeftModel, get_peft_model

from adapter_help import (
    BOTH,
    adapted,
    add_random_adapter,
    added,
    assert_close,
    assert_no_hooks,
    assert_same_bits,
    copy_state,
    logits,
    logits_of_base,
    randomize,
)
from hadamard_adapter import HadamardConfig
from hadamard_adapter.adapter.head_wrapper import HeadWrapper
from hadamard_adapter.adapter.layers import HadamardLayer
from models import TINY, tiny_inputs, tiny_model

CASES = [(name, position) for name in TINY for position in ("output", "input")]


@pytest.mark.parametrize("name", TINY)
def test_a_new_adapter_is_the_base_model_bit_for_bit(name):
    base, inputs = tiny_model(name), tiny_inputs(name)
    expected = logits(base, inputs)
    model = get_peft_model(base, HadamardConfig(task_type="SEQ_CLS", sites=BOTH)).eval()
    assert torch.equal(logits(model, inputs), expected)


@pytest.mark.parametrize("name", TINY)
def test_only_adapter_norm_and_head_train_and_each_gets_a_gradient(name):
    model = adapted(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(added(model, "default"))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    inputs = tiny_inputs(name)
    model(**inputs, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert not [key for key, p in parameters.items() if p.grad is None or not p.grad.any()]
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == trained


@pytest.mark.parametrize(("name", "position"), CASES)
def test_merged_equals_unmerged_and_unmerging_is_bit_exact(name, position):
    model, inputs = adapted(name, position), tiny_inputs(name)
    base = copy_state(model)
    expected = logits(model, inputs)
    model.merge_adapter()
    assert_close(logits(model, inputs), expected)
    assert not all(torch.equal(v, base[k]) for k, v in model.state_dict().items() if k in base)
    model.unmerge_adapter()
    assert_same_bits(model.state_dict(), base)
    assert torch.equal(logits(model, inputs), expected)


@pytest.mark.parametrize(("name", "position"), CASES)
def test_a_merged_model_survives_plain_saving_and_loading(name, position, tmp_path):
    model, inputs = adapted(name, position), tiny_inputs(name)
    expected = logits(model, inputs)
    merged = model.merge_and_unload()
    assert not any(isinstance(m, (HadamardLayer, HeadWrapper)) for m in merged.modules())
    merged.save_pretrained(tmp_path)
    plain, info = type(merged).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_close(logits(plain.eval(), inputs), expected)


@pytest.mark.parametrize("name", TINY)
def test_saved_and_loaded_adapters_are_equal_bit_for_bit(name, tmp_path):
    model, inputs = adapted(name), tiny_inputs(name)
    model.save_pretrained(tmp_path)
    for is_empty_first in (False, True):
        loaded = PeftModel.from_pretrained(tiny_model(name), tmp_path, low_cpu_mem_usage=is_empty_first)
        loaded.eval()
        assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    assert loaded.peft_config["default"].target_modules == model.peft_config["default"].target_modules


@pytest.mark.parametrize("name", TINY)
def test_a_head_that_the_checkpoint_lacks_survives_a_reload_under_another_seed(name, tmp_path):
    tiny_model(name, task="headless").save_pretrained(tmp_path / "base")
    inputs = tiny_inputs(name)
    kind = type(tiny_model(name))
    tuned = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        base = kind.from_pretrained(tmp_path / "base", num_labels=3).eval()
        if seed == 0:
            model = get_peft_model(base, HadamardConfig(sites=BOTH))  # without a task_type
            randomize(model, "default", 3)
            model.save_pretrained(tmp_path / "adapter")
        else:
            model = PeftModel.from_pretrained(base, tmp_path / "adapter")
        tuned.append(logits(model.eval(), inputs))
    assert torch.equal(*tuned)


@pytest.mark.parametrize("name", TINY)
def test_a_mixed_batch_equals_its_rows_one_by_one(name):
    model, inputs = adapted(name, "output"), tiny_inputs(name)
    expected_base = logits_of_base(model, inputs)
    for seed, (adapter, position, n_labels) in enumerate((("second", "input", 3), ("third", "output", 5))):
        add_random_adapter(model, adapter, seed + 7, n_labels, position=position)
    names = ["third", "__base__", "default", "second"]
    mixed = logits(model, inputs, adapter_names=names)
    assert mixed.shape[-1] == 5
    assert_no_hooks(model)
    for row, adapter in enumerate(names):
        if adapter == "__base__":
            expected = expected_base
        else:
            model.set_adapter(adapter)
            expected = logits(model, inputs)
        width = expected.shape[-1]
        assert_close(mixed[row, :width], expected[row])
        assert (mixed[row, width:] == float("-inf")).all()


@pytest.mark.parametrize("name", TINY)
def test_disabled_adapters_are_the_base_model(name):
    base, inputs = tiny_model(name), tiny_inputs(name)
    expected = logits(base, inputs)
    model = adapted(name)
    assert not torch.equal(logits(model, inputs), expected)
    assert torch.equal(logits_of_base(model, inputs), expected)
    model.merge_adapter()
    assert torch.equal(logits_of_base(model, inputs), expected)


@pytest.mark.parametrize("name", TINY)
def test_weight_decay_without_gradients_leads_back_to_the_base_model(name):
    model, inputs = adapted(name), tiny_inputs(name)
    offsets = [p for key, p in model.named_parameters() if "hadamard_" in key]
    optimizer = torch.optim.AdamW(offsets, lr=0.9, weight_decay=1.0)
    for _ in range(10):
        for parameter in offsets:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    expected = get_peft_model(tiny_model(name), HadamardConfig(task_type="SEQ_CLS", sites=BOTH)).eval()
    heads = {key: value for key, value in model.state_dict().items() if ".modules_to_save." in key}
    expected.load_state_dict(heads, strict=False)
    assert_close(logits(model, inputs), logits(expected, inputs))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(("freeze_head", "freeze_adapter"), [(True, False), (False, True), (True, True)])
def test_what_is_frozen_stays_frozen(name, freeze_head, freeze_adapter):
    model = adapted(name, freeze_head=freeze_head, freeze_adapter=freeze_adapter)
    model.add_adapter("other", HadamardConfig(task_type="SEQ_CLS", sites=BOTH))

    def assert_mask() -> None:
        for key, parameter in model.named_parameters():
            is_head = ".modules_to_save.default." in key
            is_offset = "hadamard_" in key and key.endswith(".default")
            expected = (is_head and not freeze_head) or (is_offset and not freeze_adapter)
            assert parameter.requires_grad == expected, key

    assert_mask()
    with model.disable_adapter():
        assert not any(p.requires_grad for p in model.parameters())
        logits(model, tiny_inputs(name))
    assert_mask()
    model.set_adapter("other")
    model.set_adapter("default")
    assert_mask()
    model.set_requires_grad("default")
    assert_mask()


def test_stages_switch_by_the_config_alone():
    model = adapted("bert", freeze_adapter=True)
    config = model.peft_config["default"]
    config.freeze_adapter, config.freeze_head = False, True
    model.base_model.set_adapter(model.active_adapters)
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    assert trained == {key for key in added(model, "default") if "hadamard_" in key}


@pytest.mark.parametrize(
    ("settings", "n_expected"),
    [
        ({}, 36_864),
        ({"norm_modules": []}, 18_432),
        ({"layers_to_transform": [0, 1, 2, 3, 4, 5, 6, 7]}, 24_576),
        ({"sites": BOTH}, 73_728),
        ({"train_shift": False, "norm_modules": []}, 9_216),
    ],
)
def test_bert_base_trains_as_many_parameters_as_the_paper_counts(settings, n_expected):
    from transformers import BertConfig, BertForSequenceClassification

    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
        total = sum(p.numel() for key, p in model.named_parameters() if not key.startswith("classifier"))
        peft_model = get_peft_model(model, HadamardConfig(task_type="SEQ_CLS", **settings))
    trained = {k: p.numel() for k, p in peft_model.named_parameters() if p.requires_grad and "hadamard_" in k}
    assert sum(trained.values()) == n_expected
    if not settings:
        assert round(100 * n_expected / total, 4) == 0.0337
