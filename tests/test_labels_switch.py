"""Labels belong to the adapter: names, number and problem type switch with it, and come back."""

import copy
import gc
import json
import pickle
import weakref

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from adapter_help import TASK_TYPES, added, assert_same_bits, copy_state, logits, randomize
from hadamard_adapter import HadamardConfig
from hadamard_adapter.adapter.config import PROBLEM_TYPES as ALLOWED
from hadamard_adapter.errors import AdapterError, SettingsError
from hadamard_adapter.serving.source import read_adapter
from hadamard_adapter.tasks import PROBLEM_TYPES
from hadamard_adapter.tuning.folder import read_task
from models import TINY, tiny_inputs, tiny_model

NAMES = ("bert", "roberta", "distilbert", "deberta-v2", "modernbert", "bart", "t5", "gpt2", "llama")
CLASSIFIERS = [
    (name, task)
    for name in TINY
    for task in ("sequence-classification", "token-classification")
    if task in TINY[name].tasks
]
TASKS = {
    "topic": ({0: "sport", 1: "art", 2: "law", 3: "food"}, "single_label_classification"),
    "tags": ({0: "new", 1: "long", 2: "odd", 3: "big", 4: "red"}, "multi_label_classification"),
    "score": ({0: "score"}, "regression"),
}


def save_task(name: str, task: str, folder, seed: int) -> torch.Tensor:
    id2label, problem_type = TASKS[task]
    base = tiny_model(name, num_labels=len(id2label))
    base.config.id2label = id2label
    base.config.problem_type = problem_type
    model = get_peft_model(base, HadamardConfig(task_type="SEQ_CLS")).eval()
    randomize(model, "default", seed)
    model.save_pretrained(folder)
    return logits(model, tiny_inputs(name))


@pytest.mark.parametrize("name", NAMES)
def test_adapters_with_different_numbers_of_labels_load_side_by_side(name, tmp_path):
    expected = {task: save_task(name, task, tmp_path / task, seed) for seed, task in enumerate(TASKS)}
    base, inputs = tiny_model(name), tiny_inputs(name)
    own_logits, own_labels = logits(base, inputs), dict(base.config.id2label)
    model = PeftModel.from_pretrained(base, tmp_path / "topic", adapter_name="topic")
    for task in ("tags", "score"):
        model.load_adapter(tmp_path / task, adapter_name=task)
    model.eval()
    for task in ("score", "topic", "tags", "topic"):
        model.set_adapter(task)
        assert torch.equal(logits(model, inputs), expected[task])
        assert (model.config.id2label, model.config.problem_type) == TASKS[task]
        assert model.config.label2id == {label: index for index, label in TASKS[task][0].items()}
        assert model.config.num_labels == len(TASKS[task][0])
        assert getattr(model.get_base_model(), "num_labels", len(TASKS[task][0])) == len(TASKS[task][0])
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), own_logits)
        assert model.config.id2label == own_labels
        assert getattr(model.get_base_model(), "num_labels", 3) == 3
        assert model.config.problem_type is None
    assert model.config.id2label == TASKS["topic"][0]
    model.delete_adapter("topic")
    assert model.config.id2label == TASKS[model.active_adapters[0]][0]


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_right_after_a_switch_is_that_of_the_adapter(name, tmp_path):
    labels = {
        "topic": torch.tensor([3, 1, 0, 2]),
        "tags": torch.ones(4, 5),
        "score": torch.tensor([0.1, 0.2, 0.3, 0.4]),
    }
    losses = {
        "topic": torch.nn.functional.cross_entropy,
        "tags": torch.nn.functional.binary_cross_entropy_with_logits,
        "score": lambda logits, target: torch.nn.functional.mse_loss(logits.squeeze(-1), target),
    }
    inputs = tiny_inputs(name)
    if name in ("bart", "t5"):  # one of the problem types is not in their code
        del labels["score"]
    model = None
    for seed, task in enumerate(TASKS):
        save_task(name, task, tmp_path / task, seed)
        if model is None:
            model = PeftModel.from_pretrained(tiny_model(name), tmp_path / task, adapter_name=task)
        else:
            model.load_adapter(tmp_path / task, adapter_name=task)
    model.eval()
    for task in (*labels, *reversed(labels)):
        model.set_adapter(task)
        output = model(**inputs, labels=labels[task])
        torch.testing.assert_close(output.loss, losses[task](output.logits, labels[task]))


def test_a_problem_type_settled_by_the_first_loss_stays_with_its_adapter():
    model, inputs = (
        get_peft_model(tiny_model("bert"), HadamardConfig(task_type="SEQ_CLS")),
        tiny_inputs("bert"),
    )
    model.add_adapter("tags", HadamardConfig(task_type="SEQ_CLS"))
    model(**inputs, labels=torch.tensor([0, 1, 2, 0]))
    assert model.config.problem_type == "single_label_classification"
    model.set_adapter("tags")
    assert model.config.problem_type is None
    model(**inputs, labels=torch.ones(4, 3))
    assert model.config.problem_type == "multi_label_classification"
    model.set_adapter("default")
    assert model.config.problem_type == "single_label_classification"
    with model.disable_adapter():
        assert model.config.problem_type is None


def test_names_that_the_caller_sets_later_belong_to_the_active_adapter(tmp_path):
    base, names = tiny_model("bert"), {0: "no", 1: "yes", 2: "maybe"}
    own = dict(base.config.id2label)
    model = get_peft_model(base, HadamardConfig(task_type="SEQ_CLS"))
    model.add_adapter("other", HadamardConfig(task_type="SEQ_CLS"))
    model.config.id2label = names
    model.save_pretrained(tmp_path)
    assert HadamardConfig.from_pretrained(tmp_path).id2label == names
    assert HadamardConfig.from_pretrained(tmp_path / "other").id2label == own
    model.set_adapter("other")
    assert model.config.id2label == own
    with model.disable_adapter():
        assert model.config.id2label == own
    model.set_adapter("default")
    assert model.config.id2label == names
    assert model.merge_and_unload().config.id2label == names


def test_labels_that_a_model_came_to_are_open_again_for_the_next_one():
    config, names = HadamardConfig(task_type="SEQ_CLS"), {0: "no", 1: "yes", 2: "maybe"}
    model = get_peft_model(tiny_model("bert"), config)
    model.config.id2label = names
    model(**tiny_inputs("bert"), labels=torch.ones(4, 3))
    model.add_adapter("other", config)
    model.set_adapter("other")
    model.set_adapter("default")
    assert (config.id2label, config.problem_type) == (names, "multi_label_classification")
    for other in (
        model.peft_config["other"],
        get_peft_model(tiny_model("bert"), config).peft_config["default"],
    ):
        assert (other.id2label, other.problem_type) == ({i: f"LABEL_{i}" for i in range(3)}, None)


def test_what_the_caller_writes_into_the_adapter_s_config_stays_and_sums_have_the_labels_of_now(tmp_path):
    model = get_peft_model(tiny_model("bert"), HadamardConfig(task_type="SEQ_CLS"))
    names = {0: "no", 1: "yes", 2: "maybe"}
    model.peft_config["default"].id2label = names
    model.save_pretrained(tmp_path)
    assert HadamardConfig.from_pretrained(tmp_path).id2label == names
    model.config.id2label = {0: "red", 1: "green", 2: "blue"}
    model.base_model.add_weighted_adapter(["default"], [0.5], "summed")
    assert model.peft_config["summed"].id2label == model.config.id2label == {0: "red", 1: "green", 2: "blue"}


def test_adapters_of_different_layers_switch_and_delete_their_labels():
    model = get_peft_model(
        tiny_model("bert"),
        HadamardConfig(task_type="SEQ_CLS", layers_to_transform=[1], id2label=dict(enumerate("xyz"))),
    )
    model.add_adapter("low", HadamardConfig(task_type="SEQ_CLS", layers_to_transform=[0]))
    assert model.config.id2label == dict(enumerate("xyz"))
    model.set_adapter("low")
    assert model.config.id2label[0] == "LABEL_0"
    model.delete_adapter("low")
    assert model.base_model.active_adapters == ["default"]
    assert model.config.id2label == dict(enumerate("xyz"))


def test_copies_of_a_model_switch_labels_of_their_own_and_nothing_holds_a_model_that_is_gone():
    model = get_peft_model(tiny_model("bert"), HadamardConfig(task_type="SEQ_CLS"))
    model.config.id2label = dict(enumerate("xyz"))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied.config.id2label = dict(enumerate("abc"))
        with copied.disable_adapter():
            assert copied.config.id2label[0] == "LABEL_0"
        assert copied.config.id2label == dict(enumerate("abc"))
    assert model.config.id2label == dict(enumerate("xyz"))
    base = weakref.ref(model.get_base_model())
    gc.disable()
    try:
        del model
        assert base() is None
    finally:
        gc.enable()


def test_a_problem_type_settled_by_a_loss_is_saved_and_no_other_adapter_gets_it(tmp_path):
    model = get_peft_model(tiny_model("bert"), HadamardConfig(task_type="SEQ_CLS"))
    model(**tiny_inputs("bert"), labels=torch.ones(4, 3))
    model.add_adapter("other", HadamardConfig(task_type="SEQ_CLS"))
    model.save_pretrained(tmp_path)
    assert HadamardConfig.from_pretrained(tmp_path).problem_type == "multi_label_classification"
    model.delete_adapter("default")
    assert model.active_adapters == ["other"] and model.config.problem_type is None
    assert HadamardConfig.from_pretrained(tmp_path / "other").problem_type is None


def test_transformers_own_methods_switch_the_labels_too(tmp_path):
    expected = {task: save_task("bert", task, tmp_path / task, seed) for seed, task in enumerate(TASKS)}
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    own = dict(model.config.id2label)
    for task in TASKS:
        model.load_adapter(str(tmp_path / task), adapter_name=task)
    for task in ("score", "topic", "tags", "topic"):
        model.set_adapter(task)
        assert torch.equal(logits(model, inputs), expected[task])
        assert (model.config.id2label, model.config.problem_type) == TASKS[task]
        assert model.num_labels == len(TASKS[task][0])
    model.disable_adapters()
    assert model.config.id2label == own and model.num_labels == 3
    model.enable_adapters()
    assert model.config.id2label == TASKS["topic"][0]
    model.delete_adapter("topic")
    assert model.config.id2label == TASKS[model.active_adapters()[0]][0]


def test_labels_of_the_config_win_over_those_of_the_model():
    id2label = {0: "no", 1: "yes", 2: "maybe"}
    config = HadamardConfig(
        task_type="SEQ_CLS", id2label=id2label, problem_type="single_label_classification"
    )
    model = get_peft_model(tiny_model("bert"), config)
    assert model.config.id2label == id2label
    assert model.config.problem_type == "single_label_classification"


@pytest.mark.parametrize("task", ["headless", "causal-lm"])
def test_models_without_labels_are_left_alone(task):
    model = tiny_model("gpt2", task)
    before = dict(model.config.id2label)
    get_peft_model(model, HadamardConfig(id2label={0: "a"}))
    assert model.config.id2label == before


def test_the_copies_of_heads_keep_their_own_number_of_labels_in_a_fresh_load(tmp_path):
    save_task("bert", "tags", tmp_path, 1)
    for is_empty_first in (False, True):
        model = PeftModel.from_pretrained(tiny_model("bert"), tmp_path, low_cpu_mem_usage=is_empty_first)
        head = next(
            p
            for key, p in added(model, "default").items()
            if key.endswith("classifier.bias") or key.endswith("modules_to_save.default.bias")
        )
        assert head.shape == (5,)


def labelled(n_labels: int, task: str = "sequence-classification") -> HadamardConfig:
    id2label = {index: f"label {index}" for index in range(n_labels)}
    return HadamardConfig(task_type=TASK_TYPES[task], id2label=id2label)


@pytest.mark.parametrize(("name", "task"), CLASSIFIERS)
def test_a_new_adapter_has_as_many_outputs_as_labels_of_its_own(name, task):
    inputs = tiny_inputs(name, task=task)
    model = get_peft_model(tiny_model(name, task), labelled(2, task)).eval()
    model.add_adapter("own", HadamardConfig(task_type=TASK_TYPES[task]))
    model.add_adapter("five", labelled(5, task))
    for adapter, n_labels in (("default", 2), ("own", 3), ("five", 5), ("default", 2)):
        model.set_adapter(adapter)
        found = logits(model, inputs)
        assert found.shape[-1] == n_labels == model.config.num_labels
        labels = torch.arange(found[..., 0].numel()).view(found.shape[:-1]) % n_labels
        if task == "token-classification":
            labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
        expected = nn.functional.cross_entropy(found.flatten(0, -2), labels.flatten())
        torch.testing.assert_close(model(**inputs, labels=labels).loss, expected)
    with model.disable_adapter():
        assert logits(model, inputs).shape[-1] == 3
    unloaded = {key: value.shape for key, value in model.merge_and_unload().state_dict().items()}
    assert unloaded == {k: v.shape for k, v in tiny_model(name, task, num_labels=2).state_dict().items()}


@pytest.mark.parametrize(
    ("name", "task"), [(name, "sequence-classification") for name in NAMES] + [("t5", "token-classification")]
)
def test_an_output_layer_of_another_size_starts_as_the_model_s_own_does(name, task):
    n_labels = 200
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(name, task), labelled(n_labels, task))
    own = dict(tiny_model(name, task, num_labels=n_labels, randomize=False).named_parameters())
    before = dict(tiny_model(name, task).named_parameters())
    for key, parameter in added(model, "default").items():
        plain = key.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        if "hadamard_" in key:
            continue
        assert parameter.shape == own[plain].shape
        if parameter.shape[0] == n_labels:
            torch.testing.assert_close(parameter.std(), own[plain].std(), rtol=0.05, atol=0)
        else:
            assert torch.equal(parameter, before[plain])


@pytest.mark.parametrize("name", ["bert", "bart"])
def test_transformers_own_add_adapter_gives_each_adapter_its_outputs(name):
    model, inputs = tiny_model(name), tiny_inputs(name)
    for number, n_labels in enumerate((2, 4, 2)):
        model.add_adapter(labelled(n_labels), adapter_name=f"number {number}")
        assert logits(model, inputs).shape[-1] == n_labels
    model.add_adapter(HadamardConfig(task_type="SEQ_CLS"), adapter_name="own")
    assert logits(model, inputs).shape[-1] == model.config.num_labels == 3


def test_labels_that_do_not_fit_a_head_of_the_caller_s_own_are_refused_but_loaded(tmp_path):
    def base(n_labels: int):
        model = tiny_model("bert", num_labels=n_labels)
        model.classifier = nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, n_labels))
        return model.eval()

    model, inputs = base(3), tiny_inputs("bert")
    before = copy_state(model)
    with pytest.raises(SettingsError, match=r"id2label: .*received 5, .*\['classifier'\].*num_labels=5"):
        get_peft_model(model, labelled(5))
    assert_same_bits(model.state_dict(), before)
    wide = get_peft_model(base(5), labelled(5)).eval()
    randomize(wide, "default", 1)
    wide.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(model, tmp_path).eval()
    assert torch.equal(logits(loaded, inputs), logits(wide, inputs))


def test_a_head_of_another_size_does_not_load_into_an_adapter_that_is_there(tmp_path):
    get_peft_model(tiny_model("bert", num_labels=5), labelled(5)).save_pretrained(tmp_path)
    model, inputs = get_peft_model(tiny_model("bert", num_labels=3), labelled(3)).eval(), tiny_inputs("bert")
    before = logits(model, inputs)
    with pytest.raises(RuntimeError, match=r"size mismatch for .*classifier"):
        model.load_adapter(tmp_path, "default")
    assert logits(model, inputs).shape == before.shape


def test_labels_without_a_head_of_the_adapter_s_own_are_refused(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path)
    base = type(tiny_model("bert")).from_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="id2label: expected as many labels as the base model has"):
        get_peft_model(base, HadamardConfig(id2label={0: "x", 1: "y"}))


def test_numbers_as_labels_are_words_of_the_adapter(tmp_path):
    base = tiny_model("bert", num_labels=2)
    base.config.id2label = {0: 0, 1: 1}
    model = get_peft_model(base, HadamardConfig(task_type="SEQ_CLS"))
    model.save_pretrained(tmp_path / "x")
    assert read_task(tmp_path / "x").label_names == ("0", "1")
    model.config.id2label = {0: 7, 1: 8}
    model.save_pretrained(tmp_path / "y")
    assert read_task(tmp_path / "y").label_names == ("7", "8")


def test_labels_of_one_adapter_are_not_those_of_another():
    base = tiny_model("bert", num_labels=2)
    own = dict(base.config.id2label)
    model = get_peft_model(base, HadamardConfig(task_type="SEQ_CLS"), adapter_name="x")
    model.add_adapter("y", HadamardConfig(task_type="SEQ_CLS"))
    model.peft_config["x"].id2label[0] = "neg"
    assert model.peft_config["y"].id2label == own
    with model.disable_adapter():
        assert model.config.id2label == own


NO_TASK = {
    "no name": ({"id2label": {"0": None, "1": "good"}}, "id2label"),
    "half a character": ({"id2label": {"0": "\ud800", "1": "good"}}, "id2label: expected names by index"),
    "one name twice": ({"id2label": {"0": "good", "1": "good"}}, "names that differ"),
    "another problem": ({"problem_type": "foo"}, "problem_type: expected one of"),
    "several numbers": ({"problem_type": "regression"}, "received a regression of 2"),
    "tokens": ({"task_type": "TOKEN_CLS"}, "labels texts .*received TOKEN_CLS"),
}


@pytest.mark.parametrize("case", NO_TASK)
def test_an_adapter_that_labels_no_texts_is_refused_before_it_is_served(case, tmp_path):
    changes, message = NO_TASK[case]
    get_peft_model(tiny_model("bert"), HadamardConfig(task_type="SEQ_CLS")).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text()) | {"id2label": {"0": "bad", "1": "good"}} | changes
    path.write_text(json.dumps(config))
    for read in (read_task, read_adapter):
        with pytest.raises(AdapterError, match=message):
            read(tmp_path)


def test_the_kinds_of_problems_are_the_same_for_configs_and_tasks():
    assert set(PROBLEM_TYPES) == set(ALLOWED)
