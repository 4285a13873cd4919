"""The config: values checked, names resolved once, nothing in a saved adapter left to a later table."""

import json

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapter_help import BOTH, adapted, added, assert_same_bits, logits
from hadamard_adapter import HadamardConfig
from hadamard_adapter.adapter import families, heads, resolve
from hadamard_adapter.adapter.layers import HadamardLayer
from hadamard_adapter.adapter.norm import HadamardNorm
from hadamard_adapter.adapter.projection import HadamardProjection
from hadamard_adapter.errors import SettingsError
from models import tiny_inputs, tiny_model


class Mlp(nn.Module):
    """A model without a config."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.norm(self.first(x)))


def layer_names(model: nn.Module, kind: type = HadamardLayer) -> set[str]:
    return {
        name.removeprefix("base_model.model.") for name, m in model.named_modules() if isinstance(m, kind)
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sites": ["attenion"]}, "attenion"),
        ({"sites": []}, "one or more"),
        ({"position": "before"}, "before"),
        ({"train_scale": False, "train_shift": False, "norm_modules": []}, "nothing to train"),
        ({"layers_to_transform": []}, r"layers_to_transform: expected one or more.*received \[\]"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_received(settings, message):
    with pytest.raises(SettingsError, match=message):
        HadamardConfig(**settings)


def test_a_saved_config_holds_what_was_resolved_and_survives_the_round_trip(tmp_path):
    config = adapted().peft_config["default"]
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert not [name for name in ("target_modules", "norm_modules", "train_shift") if saved[name] is None]
    assert saved["head_modules"] == ["classifier"] and saved["peft_type"] == "HADAMARD"
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, HadamardConfig) and loaded.is_resolved
    assert loaded.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    for name in ("target_modules", "norm_modules", "train_shift", "head_modules", "id2label"):
        assert getattr(loaded, name) == getattr(config, name)


def test_a_later_change_of_the_table_does_not_change_a_saved_adapter(tmp_path, monkeypatch):
    model, inputs = adapted(), tiny_inputs("bert")
    model.save_pretrained(tmp_path)
    monkeypatch.setitem(families.FAMILIES, "bert", families.FAMILIES["distilbert"])
    with pytest.raises(SettingsError):
        get_peft_model(tiny_model("bert"), HadamardConfig())
    loaded = PeftModel.from_pretrained(tiny_model("bert"), tmp_path).eval()
    assert layer_names(loaded) == layer_names(model)
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))


def test_an_unknown_model_type_is_refused_with_the_known_ones_and_a_way_out():
    model = tiny_model("bert")
    model.config.model_type = "unheard-of"
    with pytest.raises(SettingsError, match=r"'unheard-of'.*deberta-v2.*target_modules"):
        get_peft_model(model, HadamardConfig())


def test_target_modules_bring_no_norms_unless_these_are_named():
    names = ["attention.output.dense"]
    model = get_peft_model(tiny_model("bert"), HadamardConfig(target_modules=names))
    assert len(layer_names(model, HadamardProjection)) == 2 and not layer_names(model, HadamardNorm)
    named = HadamardConfig(target_modules=names, norm_modules=["attention.output.LayerNorm"])
    model = get_peft_model(tiny_model("bert"), named)
    assert len(layer_names(model, HadamardProjection)) == len(layer_names(model, HadamardNorm)) == 2


def test_target_modules_are_names_endings_or_a_regular_expression():
    for names in (["bert.encoder.layer.0.output.dense"], r".*layer\.0\.output\.dense"):
        model = get_peft_model(tiny_model("bert"), HadamardConfig(target_modules=names))
        assert layer_names(model) == {"bert.encoder.layer.0.output.dense"}


def test_a_norm_among_the_target_modules_is_tuned_as_a_norm():
    model = get_peft_model(tiny_model("bert"), HadamardConfig(target_modules=["output.LayerNorm"]))
    assert len(layer_names(model, HadamardNorm)) == 4 and not layer_names(model, HadamardProjection)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm_modules": ["attention.output.LayerNorm", "output.layernorm"]}, "'output.layernorm'"),
        ({"norm_modules": "encoder.*Layernorm"}, r"'encoder\.\*Layernorm'"),
        ({"target_modules": ["output.dense"], "train_scale": False, "train_shift": False}, "nothing"),
    ],
)
def test_what_would_be_dropped_in_silence_is_refused_and_nothing_stays(settings, message):
    model = tiny_model("bert")
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(SettingsError, match=message):
        get_peft_model(model, HadamardConfig(**settings))
    assert [name for name, _ in model.named_modules()] == before


def test_norms_that_exist_may_all_be_excluded():
    model = get_peft_model(tiny_model("bert"), HadamardConfig(exclude_modules=r".*LayerNorm"))
    assert not layer_names(model, HadamardNorm) and layer_names(model)


def test_norm_modules_must_be_norms():
    with pytest.raises(SettingsError, match=r"norm_modules.*Linear"):
        get_peft_model(tiny_model("bert"), HadamardConfig(norm_modules=["intermediate.dense"]))


def test_layers_to_transform_restricts_projections_and_norms():
    model = get_peft_model(tiny_model("bert"), HadamardConfig(layers_to_transform=1, sites=BOTH))
    assert {name.split(".")[3] for name in layer_names(model)} == {"1"} and len(layer_names(model)) == 4
    config = HadamardConfig(
        target_modules=["output.dense"], norm_modules=["output.LayerNorm"], layers_to_transform=[0]
    )
    model = get_peft_model(tiny_model("bert"), config)
    assert {name.split(".")[3] for name in layer_names(model)} == {"0"} and len(layer_names(model)) == 4


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("bert", {"layers_to_transform": [2]}, r"0\.\.1"),
        ("bert", {"layers_to_transform": [0], "target_modules": ".*dense"}, "regular expression"),
        ("albert", {"layers_to_transform": [0]}, "share their weights"),
        ("albert", {"layers_to_transform": [0], "target_modules": ["ffn_output"]}, "share their weights"),
    ],
)
def test_layers_that_cannot_be_chosen_are_refused(name, settings, message):
    with pytest.raises(SettingsError, match=message):
        get_peft_model(tiny_model(name), HadamardConfig(**settings))


def test_excluded_modules_are_never_adapted():
    model = get_peft_model(tiny_model("bert"), HadamardConfig(exclude_modules=r".*layer\.0\..*"))
    assert {name.split(".")[3] for name in layer_names(model)} == {"1"}


def test_all_linear_adapts_every_projection_but_the_head_also_a_second_time():
    model = get_peft_model(tiny_model("gpt2", "causal-lm"), HadamardConfig(target_modules="all-linear"))
    assert len(layer_names(model)) == 8 and not any("lm_head" in name for name in layer_names(model))
    model.add_adapter("second", HadamardConfig(target_modules="all-linear"))
    kinds = {name.split(".")[-2] for name in added(model, "second")}
    assert kinds == {"hadamard_scale", "hadamard_shift"}
    assert len(added(model, "second")) == len(added(model, "default"))


def test_models_without_a_config_take_target_modules():
    config = HadamardConfig(target_modules=["first", "second"], norm_modules=["norm"], init_weights=False)
    model = get_peft_model(Mlp(), config)
    assert layer_names(model) == {"first", "second", "norm"}
    x = torch.randn(5, 4)
    expected = model(x)
    torch.testing.assert_close(model.merge_and_unload()(x), expected)
    with pytest.raises(SettingsError, match="target_modules"):
        get_peft_model(Mlp(), HadamardConfig())


def test_a_shift_is_off_by_default_where_a_merge_cannot_carry_it():
    model = get_peft_model(Mlp(), HadamardConfig(target_modules=["first", "second"]))
    assert [name for name in added(model, "default") if "shift" in name] == [
        "base_model.model.first.hadamard_shift.default"
    ]


@pytest.mark.parametrize("name", ["t5", "qwen2"])
def test_a_shift_that_cannot_be_merged_is_off_or_warned_of(name):
    settings = {"target_modules": None} if name == "t5" else {}
    model = get_peft_model(tiny_model(name), HadamardConfig(**settings))
    assert not [key for key in added(model, "default") if "shift" in key]
    with pytest.warns(UserWarning, match="cannot be merged"):
        model = get_peft_model(tiny_model(name), HadamardConfig(train_shift=True))
    assert [key for key in added(model, "default") if "shift" in key]


def test_head_modules_of_the_caller_are_taken_and_the_rest_is_still_resolved():
    model = get_peft_model(tiny_model("bert"), HadamardConfig(head_modules=["bert.pooler", "classifier"]))
    config = model.peft_config["default"]
    assert config.is_resolved and config.head_modules == ["bert.pooler", "classifier"]
    assert {name for name, m in model.named_modules() if isinstance(m, heads.HeadWrapper)} == {
        "base_model.model.bert.pooler",
        "base_model.model.classifier",
    }


def test_adapters_that_share_a_config_object_get_one_each():
    model, config = tiny_model("bert"), HadamardConfig(task_type="SEQ_CLS")
    peft_model = get_peft_model(model, config)
    peft_model.add_adapter("second", config)
    assert peft_model.peft_config["second"] is not peft_model.peft_config["default"]
    assert {name.replace(".second", ".default") for name in added(peft_model, "second")} == set(
        added(peft_model, "default")
    )


def test_a_config_serves_one_model_after_the_other():
    config = HadamardConfig(task_type="SEQ_CLS")
    first = tiny_model("bert")
    first.config.id2label = {index: f"first {index}" for index in range(first.config.num_labels)}
    get_peft_model(first, config)
    second = get_peft_model(tiny_model("bert", num_hidden_layers=4), config)
    layers = {name.split("layer.")[1][0] for name in added(second, "default") if "layer." in name}
    assert layers == set("0123")
    assert "first 0" not in str(second.peft_config["default"].id2label)
    config.train_shift = False
    third = get_peft_model(tiny_model("distilbert"), config)
    assert not [name for name in added(third, "default") if "shift" in name and "norm" not in name]


def test_a_config_that_was_trained_with_is_kept_where_it_is_loaded_with(tmp_path):
    base, config = tiny_model("bert"), HadamardConfig(task_type="SEQ_CLS")
    base.config.id2label = {index: f"word {index}" for index in range(base.config.num_labels)}
    get_peft_model(base, config).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model("bert"), tmp_path, config=config)
    assert loaded.peft_config["default"] is config and config.id2label[0] == "word 0"


def test_what_a_failed_injection_filled_in_is_open_again():
    config = HadamardConfig(task_type="SEQ_CLS", head_modules=["none"])
    with pytest.raises(SettingsError, match="head_modules"):
        get_peft_model(tiny_model("bert"), config)
    config.head_modules = None
    assert added(get_peft_model(tiny_model("distilbert"), config), "default")


@pytest.mark.parametrize("layers", [range(1, 2), {1}, (1,)])
def test_layers_of_every_kind_can_be_saved(layers, tmp_path, unchecked):
    model = get_peft_model(
        tiny_model("bert"), HadamardConfig(task_type="SEQ_CLS", layers_to_transform=layers)
    )
    model.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).layers_to_transform == [1]
    with pytest.raises(SettingsError, match="one or more layers"):
        HadamardConfig(layers_to_transform=range(0))


@pytest.mark.parametrize("names", [["a.0.x", "a.1.x", "b"], ["encoder.layer.10.dense"], []])
def test_the_pattern_matches_the_names_and_nothing_else(names):
    config = HadamardConfig(head_modules=[], target_modules=["x"], norm_modules=[])
    pattern = resolve._pattern(names)
    for name in names:
        assert resolve.matches(config, name, pattern)
    for other in ("a.2.x", "a.0.xx", "aa.0.x", "bb", "encoder.layer.1.dense", "encoder.layer.10.dense.more"):
        assert not resolve.matches(config, other, pattern)


def test_conv1d_counts_its_features_the_other_way_round():
    layer = get_peft_model(nn.Sequential(Conv1D(6, 4)), HadamardConfig(target_modules=["0"]))
    assert next(iter(added(layer, "default").values())).shape == (6,)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("target_modules", "([", r"target_modules: expected a regular expression, received '\(\['"),
        ("norm_modules", "*", "norm_modules: expected a regular expression"),
        ("exclude_modules", "a{2,1}", "exclude_modules: expected a regular expression"),
        ("layers_pattern", ["layer", "("], "layers_pattern: expected a regular expression"),
        ("train_shift", "([", "train_shift: expected a regular expression"),
        ("train_shift", 0.5, "train_shift: expected True, False, names"),
        ("target_modules", 3, "target_modules: expected names as a list, or one regular"),
        ("norm_modules", [None], "norm_modules: expected names as a list"),
        ("head_modules", "classifier", "head_modules: expected names as a list, or None"),
        ("modules_to_save", {"classifier": 1}, "modules_to_save: expected names as a list"),
        ("layers_to_transform", ["0"], r"layers_to_transform: expected indices of layers.*received \['0'\]"),
        ("id2label", ["no", "yes"], "id2label: expected names by index"),
        ("id2label", {"x": "no"}, "id2label: expected names by index"),
    ],
)
def test_a_field_of_a_damaged_config_file_is_named_with_its_value(field, value, message, tmp_path, unchecked):
    HadamardConfig(task_type="SEQ_CLS").save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(SettingsError, match=message):
        HadamardConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["nope", "bert.encoder.layer", "classifier.nope", ""])
def test_head_modules_that_the_model_does_not_have_are_refused(name):
    model = tiny_model("bert")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(SettingsError, match=f"head_modules: expected full names.*received '{name}'"):
        get_peft_model(model, HadamardConfig(head_modules=["classifier", name]))
    assert_same_bits(model.state_dict(), before)
