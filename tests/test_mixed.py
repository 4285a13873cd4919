"""Mixed batches: every row its own adapter, whatever the model; wrong calls raise and leave no hook."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import LongformerConfig, LongformerModel, XLNetConfig, XLNetModel

from adapter_help import (
    BOTH,
    TASK_TYPES,
    adapted,
    add_random_adapter,
    assert_close,
    assert_no_hooks,
    logits,
    randomize,
)
from hadamard_adapter import HadamardConfig
from models import TINY, tiny_inputs, tiny_model

NAMES = ["default", "second", "__base__", "second"]
OTHER_TASKS = [
    (name, task)
    for name in ("bert", "modernbert", "distilbert", "bart", "t5", "gpt2", "llama")
    for task in TINY[name].tasks
    if task not in ("headless", "sequence-classification")
]


def three_adapters(n_labels: int = 5) -> PeftModel:
    model = adapted()
    add_random_adapter(model, "second", 5, position="input")
    add_random_adapter(model, "wide", 6, n_labels=n_labels)
    return model


@pytest.mark.parametrize(("name", "task"), OTHER_TASKS)
def test_other_tasks_mix_too(name, task):
    config = HadamardConfig(task_type=TASK_TYPES[task], sites=BOTH)
    model = get_peft_model(tiny_model(name, task), config)
    model.add_adapter("second", HadamardConfig(task_type=TASK_TYPES[task], position="input"))
    for seed, adapter in enumerate(("default", "second")):
        randomize(model, adapter, seed)
    model.eval()
    inputs = tiny_inputs(name, task=task)
    mixed = logits(model, inputs, adapter_names=NAMES)
    for row, adapter in enumerate(NAMES):
        if adapter == "__base__":
            with model.disable_adapter():
                expected = logits(model, inputs)
        else:
            model.set_adapter(adapter)
            expected = logits(model, inputs)
        assert_close(mixed[row], expected[row])


@pytest.mark.parametrize("name", ["gpt2", "t5"])
@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"num_beams": 3, "num_return_sequences": 2}])
def test_generation_mixes_with_and_without_beams(name, settings):
    task = "seq2seq-lm" if name == "t5" else "causal-lm"
    equal_stacks = {"num_decoder_layers": 2} if name == "t5" else {}
    model = get_peft_model(tiny_model(name, task, **equal_stacks), HadamardConfig(task_type=TASK_TYPES[task]))
    model.add_adapter("second", HadamardConfig(task_type=TASK_TYPES[task]))
    for seed, adapter in enumerate(("default", "second")):
        randomize(model, adapter, seed)
    model.eval()
    words = tiny_inputs(name)["input_ids"][:1].expand(4, -1)
    options = {"max_new_tokens": 4, "do_sample": False} | settings
    inputs = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    mixed = model.generate(**inputs, adapter_names=NAMES, **options)
    n_copies = settings.get("num_return_sequences", 1)
    assert_no_hooks(model)
    for row, adapter in enumerate(NAMES):
        one = {key: value[:1] for key, value in inputs.items()}
        if adapter == "__base__":
            with model.disable_adapter():
                expected = model.generate(**one, **options)
        else:
            model.set_adapter(adapter)
            expected = model.generate(**one, **options)
        actual = mixed[row * n_copies : (row + 1) * n_copies, : expected.shape[1]]
        assert torch.equal(actual, expected)


def test_the_logits_are_as_wide_as_the_widest_and_padded_with_minus_infinity():
    model, inputs = three_adapters(), tiny_inputs("bert")
    mixed = logits(model, inputs, adapter_names=["wide", "default", "__base__", "second"])
    assert mixed.shape == (4, 5)
    assert torch.isfinite(mixed[0]).all() and torch.isfinite(mixed[1:, :3]).all()
    assert (mixed[1:, 3:] == float("-inf")).all()
    assert logits(model, inputs, adapter_names=["default"] * 4).shape == (4, 3)
    assert logits(model, inputs, adapter_names=["__base__"] * 4).shape == (4, 3)


def test_rows_of_one_adapter_are_that_adapter():
    model, inputs = three_adapters(), tiny_inputs("bert")
    model.set_adapter("second")
    expected = logits(model, inputs)
    model.set_adapter("default")
    assert_close(logits(model, inputs, adapter_names=["second"] * 4), expected)


@pytest.mark.parametrize("n_names", [2, 3, 5, 8])
def test_more_or_fewer_names_than_rows_raise(n_names):
    model, inputs = three_adapters(), tiny_inputs("bert")
    with pytest.raises(ValueError, match=rf"same as the number of inputs, but got {n_names} and 4"):
        logits(model, inputs, adapter_names=["default"] * n_names)
    assert_no_hooks(model)


def test_wrong_calls_raise_and_leave_no_hook():
    model, inputs = three_adapters(), tiny_inputs("bert")
    with pytest.raises(ValueError, match=r"non-existing.*third.*default"):
        logits(model, inputs, adapter_names=["default", "third", "second", "second"])
    with pytest.raises(ValueError, match="labels cannot be passed"):
        model(**inputs, labels=torch.zeros(4).long(), adapter_names=NAMES)
    with pytest.raises(ValueError, match="training mode"):
        model.train()(**inputs, adapter_names=NAMES)
    model.eval().merge_adapter()
    with pytest.raises(ValueError, match="merged adapters"):
        logits(model, inputs, adapter_names=NAMES)
    assert_no_hooks(model)


def test_an_exception_inside_the_model_leaves_no_hook():
    class Broken(nn.Module):
        def forward(self, *args: object, **kwargs: object) -> None:
            raise ArithmeticError("broken")

    model, inputs = three_adapters(), tiny_inputs("bert")
    layer = model.base_model.model.bert.encoder.layer
    sound, layer[1] = layer[1], Broken()
    with pytest.raises(ArithmeticError):
        logits(model, inputs, adapter_names=NAMES)
    assert_no_hooks(model)
    layer[1] = sound
    model.set_adapter("second")
    expected = logits(model, inputs)
    assert_close(logits(model, inputs, adapter_names=["second"] * 4), expected)


def test_disabled_adapters_stay_disabled_in_a_mixed_batch():
    model, inputs = three_adapters(), tiny_inputs("bert")
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs, adapter_names=NAMES), logits(model, inputs))


@pytest.mark.parametrize("name", ["XLNetModel", "LongformerModel"])
def test_rows_along_another_axis_than_the_batch_are_refused(name):
    if name == "XLNetModel":
        config = XLNetConfig(vocab_size=50, d_model=32, n_layer=1, n_head=4, d_inner=37)
        model, targets = XLNetModel(config), ["ff.layer_2"]
    else:
        config = LongformerConfig(
            **{"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4},
            **{"intermediate_size": 37, "attention_window": 4},
        )
        model, targets = LongformerModel(config), ["query", "value"]
    model = get_peft_model(model, HadamardConfig(target_modules=targets), adapter_name="one")
    model.add_adapter("two", HadamardConfig(target_modules=targets))
    model.eval()
    with pytest.raises(ValueError, match="its first axis is not that of the batch"):
        model(torch.randint(2, 50, (2, 8)), adapter_names=["one", "two"])
    assert_no_hooks(model)


def test_a_module_to_save_beside_given_heads_mixes_too():
    def config() -> HadamardConfig:
        own = {"head_modules": ["classifier"], "modules_to_save": ["bert.pooler"]}
        return HadamardConfig(task_type="SEQ_CLS", **own)

    model = get_peft_model(tiny_model("bert"), config())
    model.add_adapter("second", config())
    randomize(model, "default", 0)
    randomize(model, "second", 1)
    model.eval()
    inputs = tiny_inputs("bert")
    mixed = logits(model, inputs, adapter_names=NAMES)
    for row, adapter in enumerate(NAMES):
        if adapter != "__base__":
            model.set_adapter(adapter)
            assert_close(mixed[row], logits(model, inputs)[row])
    model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "mean")
    copies = model.base_model.model.bert.pooler.modules_to_save
    expected = (copies["default"].dense.weight + copies["second"].dense.weight) / 2
    assert_close(copies["mean"].dense.weight, expected)


def test_a_module_of_another_method_with_one_copy_for_all_rows_is_refused():
    model = tiny_model("bert")
    lora = LoraConfig(target_modules=["query"], modules_to_save=["pooler"])
    inject_adapter_in_model(lora, model, adapter_name="lora")
    model = get_peft_model(model, HadamardConfig(head_modules=["classifier"]), adapter_name="one").eval()
    with pytest.raises(ValueError, match=r"PEFT's own wrapper holds '.*pooler'"):
        logits(model, tiny_inputs("bert"), adapter_names=["one"] * 4)
