"""The head is found whatever the model is, kept apart per adapter, saved whole or not at all."""

import copy
import logging

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import BertForSequenceClassification

from adapter_help import TASK_TYPES, adapted, added, assert_same_bits, logits, randomize
from hadamard_adapter import HadamardConfig
from hadamard_adapter.adapter.families import FAMILIES
from hadamard_adapter.adapter.head_wrapper import HeadWrapper
from hadamard_adapter.adapter.heads import find_head, fresh_parameters, uncovered_parameters
from hadamard_adapter.errors import AdapterError
from hadamard_adapter.offset_name import PREFIX, split
from hadamard_adapter.tuning.report import count_parameters
from models import TINY, tiny_inputs, tiny_model

TASKS = [(name, task) for name in TINY for task in TINY[name].tasks if task != "headless"]
HEAD_TASKS = [(name, task) for name, task in TASKS if not task.endswith("-lm")]
HEADS = {
    "bert": ("classifier",),
    "distilbert": ("classifier", "pre_classifier"),
    "deberta-v2": ("classifier", "pooler"),
    "modernbert": ("classifier", "head"),
    "bart": ("classification_head",),
    "t5": ("classification_head",),
    "llama": ("score",),
    "vit": ("classifier",),
}


class PrefixedHead(BertForSequenceClassification):
    """A model whose head's name starts as the adapter's tensors do."""

    def __init__(self, config):
        super().__init__(config)
        self.hadamard_head, self.classifier = self.classifier, nn.Identity()
        self.classifier = None

    def forward(self, input_ids, attention_mask=None, **_):
        pooled = self.bert(input_ids, attention_mask=attention_mask).pooler_output
        return type("Output", (dict,), {"logits": self.hadamard_head(pooled)})()


def reloaded(name: str, folder, seed: int, task: str = "sequence-classification"):
    """The task class, loaded from a headless backbone: its head is new and depends on the seed."""
    torch.manual_seed(seed)
    kind = type(tiny_model(name, task))
    if not (folder / "base").exists():
        tiny_model(name, "headless").save_pretrained(folder / "base")
    n_labels = 2 if task == "question-answering" else 3
    return kind.from_pretrained(folder / "base", num_labels=n_labels).eval()


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_what_the_checkpoint_lacks(name, tmp_path):
    assert find_head(reloaded(name, tmp_path, 0)) == HEADS[name]
    assert find_head(tiny_model(name)) == HEADS[name]  # from_config: the family's


@pytest.mark.parametrize(("name", "task"), TASKS)
def test_every_task_class_keeps_its_head_under_another_seed(name, task, tmp_path):
    inputs = tiny_inputs(name, task=task)
    model = get_peft_model(reloaded(name, tmp_path, 0, task), HadamardConfig())
    randomize(model, "default", 3)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(reloaded(name, tmp_path, 1, task), tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded, inputs), logits(model.eval(), inputs))


@pytest.mark.parametrize("name", ["deberta-v2", "bart", "modernbert", "t5"])
def test_transformers_own_add_adapter_finds_and_saves_the_head(name, tmp_path):
    model, inputs = reloaded(name, tmp_path, 0), tiny_inputs(name)
    model.add_adapter(HadamardConfig())
    assert {n for n, m in model.named_modules() if isinstance(m, HeadWrapper)} == set(HEADS[name])
    assert {key for key, p in model.named_parameters() if p.requires_grad} == set(added(model, "default"))
    randomize(model, "default", 3)
    expected = logits(model, inputs)
    model.save_pretrained(tmp_path / "adapter")
    other = reloaded(name, tmp_path, 1)
    other.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(other.eval(), inputs), expected)
    peft_model = PeftModel.from_pretrained(reloaded(name, tmp_path, 2), tmp_path / "adapter").eval()
    assert torch.equal(logits(peft_model, inputs), expected)


@pytest.mark.parametrize("way", ["from_config", "deepcopy"])
def test_without_marks_the_family_s_head_is_taken_and_the_log_says_which(way, tmp_path, caplog):
    model = tiny_model("deberta-v2")
    if way == "deepcopy":
        model = copy.deepcopy(reloaded("deberta-v2", tmp_path, 0))
    assert fresh_parameters(model) is None
    with caplog.at_level(logging.INFO, "hadamard_adapter"):
        assert find_head(model) == ("classifier", "pooler")
    assert "classifier" in caplog.text and "pooler" in caplog.text


@pytest.mark.parametrize("name", TINY)
def test_the_family_s_head_is_at_the_root_only(name):
    model = tiny_model(name)
    backbone = getattr(model, model.base_model_prefix)
    rows = FAMILIES[model.config.model_type]
    for end in {end for row in rows for end in row.head}:
        backbone.add_module(end if not hasattr(backbone, end) else f"other_{end}", nn.Linear(1, 1))
    found = find_head(model)
    assert found and all("." not in head for head in found)


def test_a_loaded_head_is_no_head_unless_it_is_named_or_trained(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path)

    def load():
        return BertForSequenceClassification.from_pretrained(tmp_path)

    assert find_head(load()) == ()
    assert find_head(load(), ["classifier"]) == ("classifier",)
    model = load()
    model.bert.requires_grad_(False)
    assert find_head(model) == ("classifier",)
    model.bert.pooler.requires_grad_(True)
    assert find_head(model) == ("bert.pooler", "classifier")
    model = load()
    model.bert.embeddings.requires_grad_(False)  # the layers train: this is not a trained head
    assert find_head(model) == ()
    peft_model = get_peft_model(load(), HadamardConfig(task_type="SEQ_CLS"))  # PEFT names the classifier
    assert [key for key in added(peft_model, "default") if "classifier" in key]


@pytest.mark.parametrize(("name", "task"), HEAD_TASKS)
def test_a_loaded_head_trains_the_modules_that_a_fresh_one_trains(name, task, tmp_path):
    expected = set(find_head(reloaded(name, tmp_path, 0, task))) - {"pooler"}
    whole = tiny_model(name, task)
    whole.save_pretrained(tmp_path / "whole")
    fewer = [2] if task == "sequence-classification" else []  # then the last layer is new
    for n_labels in [whole.config.num_labels, *fewer]:
        base = type(whole).from_pretrained(
            tmp_path / "whole", num_labels=n_labels, ignore_mismatched_sizes=True
        )
        model = get_peft_model(base, HadamardConfig(task_type=TASK_TYPES[task]))
        assert set(model.peft_config["default"].head_modules) == expected
        wrapped = {n for n, m in model.base_model.model.named_modules() if isinstance(m, HeadWrapper)}
        assert wrapped == expected
        trained = {key for key, p in model.named_parameters() if p.requires_grad}
        assert trained == set(added(model, "default"))


def test_a_head_of_which_a_part_is_fresh_is_taken_whole_without_a_task_type(tmp_path):
    for name in ("bart", "modernbert", "distilbert"):
        tiny_model(name).save_pretrained(tmp_path / name)
        kind = type(tiny_model(name))
        assert find_head(kind.from_pretrained(tmp_path / name)) == ()
        base = kind.from_pretrained(tmp_path / name, num_labels=2, ignore_mismatched_sizes=True)
        assert find_head(base) == HEADS[name]


def test_a_loaded_pooler_is_trained_on_request_only(tmp_path):
    tiny_model("deberta-v2").save_pretrained(tmp_path)
    base = type(tiny_model("deberta-v2")).from_pretrained(tmp_path)
    assert find_head(base, has_task=True) == ("classifier",)
    assert find_head(base, ["pooler"], has_task=True) == ("classifier", "pooler")


def test_a_replaced_module_is_new(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path)
    model = BertForSequenceClassification.from_pretrained(tmp_path)
    model.classifier = nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3))
    peft_model = get_peft_model(model, HadamardConfig())
    assert peft_model.peft_config["default"].head_modules == ["classifier"]
    randomize(peft_model, "default", 1)
    peft_model.save_pretrained(tmp_path / "adapter")
    other = BertForSequenceClassification.from_pretrained(tmp_path)
    other.classifier = nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3))
    loaded = PeftModel.from_pretrained(other, tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded, tiny_inputs("bert")), logits(peft_model.eval(), tiny_inputs("bert")))


def test_saving_refuses_to_lose_a_fresh_parameter(tmp_path):
    model = get_peft_model(reloaded("bert", tmp_path, 0), HadamardConfig())
    model.save_pretrained(tmp_path / "sound")
    model.get_base_model().bert.encoder.extra = nn.Parameter(torch.zeros(3))
    assert uncovered_parameters(model.get_base_model()) == ("bert.encoder.extra",)
    for save in (lambda: model.save_pretrained(tmp_path / "lost"), lambda: get_peft_model_state_dict(model)):
        with pytest.raises(AdapterError, match=r"bert\.encoder\.extra.*modules_to_save"):
            save()
    assert not (tmp_path / "lost" / "adapter_model.safetensors").exists()


def test_a_head_named_like_the_adapter_s_tensors_survives_the_round_trip(tmp_path):
    def base() -> PrefixedHead:
        torch.manual_seed(0)
        return PrefixedHead(tiny_model("bert").config).eval()

    inputs = tiny_inputs("bert")
    config = HadamardConfig(modules_to_save=["hadamard_head"])
    model = get_peft_model(base(), config).eval()
    randomize(model, "default", 1)
    assert len([key for key in added(model, "default") if "hadamard_head" in key]) == 2
    assert not [k for k, p in model.named_parameters() if p.requires_grad and "original_module" in k]
    n_head = sum(parameter.numel() for parameter in base().hadamard_head.parameters())
    assert count_parameters(model, 1)["head_parameters"] == n_head
    model.save_pretrained(tmp_path)
    _, head = split(load_file(tmp_path / "adapter_model.safetensors"))
    assert {key.removeprefix(PREFIX) for key in head} == {"hadamard_head.weight", "hadamard_head.bias"}
    for is_empty_first in (False, True):
        loaded = PeftModel.from_pretrained(base(), tmp_path, low_cpu_mem_usage=is_empty_first).eval()
        assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    loaded.add_adapter("second", HadamardConfig(modules_to_save=["hadamard_head"]))
    loaded.delete_adapter("default")
    assert not added(loaded, "default") and added(loaded, "second")


def test_the_base_model_s_own_head_is_never_touched():
    base = tiny_model("bert")
    before = {key: value.clone() for key, value in base.state_dict().items()}
    model = get_peft_model(base, HadamardConfig(task_type="SEQ_CLS")).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        model(**tiny_inputs("bert"), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        optimizer.step()
    assert_same_bits(model.unload().state_dict(), before)


def test_copies_of_a_module_that_is_no_head_do_not_add_up():
    settings = {"target_modules": ["attention.output.dense"], "modules_to_save": ["bert.pooler"]}
    model = get_peft_model(tiny_model("bert"), HadamardConfig(**settings))
    model.add_adapter("second", HadamardConfig(**settings))
    with pytest.raises(ValueError, match="Only one adapter can be set at a time"):
        model.base_model.set_adapter(["default", "second"])


def test_only_the_head_can_train_and_only_the_adapter_can():
    for settings, is_head in (({"freeze_adapter": True}, True), ({"freeze_head": True}, False)):
        model = adapted(**settings)
        trained = {key for key, p in model.named_parameters() if p.requires_grad}
        assert trained == {key for key in added(model, "default") if ("modules_to_save" in key) == is_head}


def test_task_types_of_peft_are_known_for_every_tiny_task():
    assert {task for _, task in TASKS} < set(TASK_TYPES)


def test_layers_that_were_moved_away_are_no_part_of_the_head(tmp_path):
    model = reloaded("bert", tmp_path, 0)
    for module in model.bert.encoder.layer[1].modules():  # as accelerate offloads
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(parameter.to("meta")))
    assert find_head(model) == HEADS["bert"]


@pytest.mark.parametrize("is_trained", [True, False])
def test_an_adapter_that_is_loaded_beside_leaves_the_active_head_as_it_was(is_trained, tmp_path):
    adapted().save_pretrained(tmp_path)
    if is_trained:
        model = adapted()
        model.load_adapter(tmp_path, "other", is_trainable=False)
    else:
        model = PeftModel.from_pretrained(tiny_model("bert"), tmp_path)
        model.add_adapter("other", HadamardConfig(task_type="SEQ_CLS"))
    wrapper = model.base_model.model.classifier
    assert {p.requires_grad for p in wrapper.modules_to_save["default"].parameters()} == {is_trained}
    assert {p.requires_grad for p in wrapper.modules_to_save["other"].parameters()} == {False}
    model.set_adapter("other", inference_mode=False)
    assert {p.requires_grad for p in wrapper.modules_to_save["other"].parameters()} == {True}


def test_what_could_not_be_saved_is_told_before_it_is_trained(tmp_path):
    tiny_model("bert", "headless").save_pretrained(tmp_path)
    base = BertForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    base.bert.pooler.dense.bias = nn.Parameter(base.bert.pooler.dense.bias.detach().clone())  # as if new
    with pytest.warns(UserWarning, match=r"cannot save: .*modules_to_save: 'bert.pooler.dense'"):
        get_peft_model(base, HadamardConfig(task_type="SEQ_CLS", head_modules=["classifier"]))
