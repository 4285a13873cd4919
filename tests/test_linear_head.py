"""Laws of a head that is one linear layer: all of it that is trained and saved, in a stock class."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from adapter_help import BOTH, adapted, add_random_adapter, added, logits, randomize
from hadamard_adapter import HadamardConfig
from hadamard_adapter.adapter.head_wrapper import HeadWrapper
from hadamard_adapter.errors import AdapterError
from hadamard_adapter.files import read_json
from hadamard_adapter.tuning import load, merge
from models import TINY, tiny_inputs, tiny_model
from tuning_help import tiny_folder, tiny_tune, write_rows

FAMILIES = [name for name in TINY if "sequence-classification" in TINY[name].tasks]


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_output_layer_is_trained_and_saved_and_a_reload_computes_the_same(
    name: str, tmp_path: Path
) -> None:
    model, inputs = adapted(name, identity_modules=True), tiny_inputs(name)
    model.set_adapter("default")
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(added(model, "default"))
    with model.disable_adapter():
        pass
    assert trained == {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    model.save_pretrained(tmp_path)
    head = {
        k: t for k, t in load_file(tmp_path / "adapter_model.safetensors").items() if "hadamard_" not in k
    }
    assert {key.rpartition(".")[0] for key in head} == {key.rpartition(".")[0] for key in [*head][:1]}
    assert sum(len(tensor) for tensor in head.values()) in (3, 6)
    again, expected = tiny_model(name), logits(model, inputs)
    with torch.no_grad():
        for path in model.peft_config["default"].head_modules:  # another seed makes another head
            for parameter in again.get_submodule(path).parameters():
                parameter.add_(1)
    loaded = PeftModel.from_pretrained(again, tmp_path).eval()
    assert torch.equal(logits(loaded, inputs), expected)
    torch.testing.assert_close(logits(loaded.merge_and_unload(), inputs), expected, atol=1e-5, rtol=1e-4)


def test_linear_and_full_heads_stand_side_by_side(tmp_path: Path) -> None:
    inputs = tiny_inputs("roberta")
    model = adapted("roberta", identity_modules=True)
    expected = logits(model, inputs)
    add_random_adapter(model, "full", 2)
    model.set_adapter("full")
    full = logits(model, inputs)
    names = ["default", "full", "default", "full"]
    mixed = logits(model, inputs, adapter_names=names)
    torch.testing.assert_close(mixed[::2], expected[::2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mixed[1::2], full[1::2], atol=1e-5, rtol=1e-4)
    with pytest.raises(AdapterError, match="heads of different layers; name one of them: head='default'"):
        model.base_model.add_weighted_adapter(["default", "full"], [0.5, 0.5], "mean")
    model.delete_adapter("default")
    add_random_adapter(model, "default", 3)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert any(key.endswith("classifier.dense.weight") for key in saved), "a name is free again when deleted"


def test_a_loaded_pooler_stays_as_it_is() -> None:
    model = get_peft_model(
        tiny_model("bert"), HadamardConfig(task_type="SEQ_CLS", sites=BOTH, identity_modules=True)
    )
    assert [n for n, m in model.named_modules() if isinstance(m, HeadWrapper)] == [
        "base_model.model.classifier"
    ]
    assert model.peft_config["default"].identity_modules == []
    randomize(model, "default", 0)


@pytest.mark.parametrize("name", ["bert", "roberta", "mpnet", "deberta-v2", "distilbert"])
def test_a_tuned_linear_head_is_small_and_exports_to_a_stock_class(name: str, tmp_path: Path) -> None:
    tiny_folder(tmp_path / "model", name)
    write_rows(tmp_path / "train.csv", 48)
    tiny_tune(tmp_path / "model", tmp_path / "out", tmp_path / "train.csv", head="linear", lr=0.05, epochs=1)
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    head = {name: tensor for name, tensor in saved.items() if "hadamard_" not in name}
    assert len(head) == 2
    n_head = sum(tensor.numel() for tensor in head.values())
    assert read_json(tmp_path / "out" / "metrics.json")["head_parameters"] == n_head
    assert merge(tmp_path / "out", tmp_path / "plain").max_logit_difference < 1e-5
    texts = ["w10 w50", "w20"]
    assert load(tmp_path / "out").predict(texts) == load(tmp_path / "out").predict(texts)
