"""What PEFT, transformers and the Trainer promise of a method, from loading to several processes."""

import copy
import functools
import importlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

import hadamard_adapter.adapter
from adapter_help import (
    BOTH,
    TASK_TYPES,
    adapted,
    add_random_adapter,
    added,
    assert_close,
    copy_state,
    logits,
    randomize,
)
from hadamard_adapter import HadamardConfig, HadamardModel
from hadamard_adapter.adapter.layers import HadamardLayer
from hadamard_adapter.errors import AdapterError, SettingsError
from models import tiny_inputs, tiny_model

AUTO = {
    "sequence-classification": ("bert", "AutoPeftModelForSequenceClassification"),
    "token-classification": ("bert", "AutoPeftModelForTokenClassification"),
    "question-answering": ("bert", "AutoPeftModelForQuestionAnswering"),
    "causal-lm": ("gpt2", "AutoPeftModelForCausalLM"),
    "seq2seq-lm": ("t5", "AutoPeftModelForSeq2SeqLM"),
    "headless": ("bert", "AutoPeftModelForFeatureExtraction"),
}


class Rows(Dataset):
    """Sixteen labelled rows for a tiny model."""

    def __init__(self) -> None:
        self.inputs = tiny_inputs("bert", batch_size=16)

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[index] for key, value in self.inputs.items()} | {"labels": torch.tensor(index % 3)}


def fresh_process(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("task", AUTO)
def test_auto_classes_load_base_and_adapter_from_a_folder(task, tmp_path):
    name, auto_class = AUTO[task]
    tiny_model(name, task).save_pretrained(tmp_path / "base")
    base = type(tiny_model(name, task)).from_pretrained(tmp_path / "base")
    task_type = TASK_TYPES[task] or "FEATURE_EXTRACTION"
    model = get_peft_model(base, HadamardConfig(task_type=task_type, sites=BOTH)).eval()
    randomize(model, "default", 1)
    model.save_pretrained(tmp_path / "adapter")
    loaded = getattr(peft, auto_class).from_pretrained(tmp_path / "adapter").eval()
    inputs = tiny_inputs(name, task=task)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs)[0], model(**inputs)[0])
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "import hadamard_adapter" in card and auto_class in card


def test_auto_class_loads_another_number_of_labels_than_the_base_folder_says(tmp_path):
    tiny_model("bert", "headless").save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=5).eval()
    model = get_peft_model(base, HadamardConfig(task_type="SEQ_CLS"))
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    inputs = tiny_inputs("bert")
    assert torch.equal(logits(loaded.eval(), inputs), logits(model, inputs))
    assert loaded.config.num_labels == 5


def test_without_the_import_peft_answers_with_a_key_error_and_with_it_loads(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    get_peft_model(base, HadamardConfig(task_type="SEQ_CLS")).save_pretrained(tmp_path / "adapter")
    code = """
import sys
from peft import PeftConfig
try:
    PeftConfig.from_pretrained(sys.argv[1])
except KeyError as error:
    import hadamard_adapter
    print(error, PeftConfig.from_pretrained(sys.argv[1]).position)
"""
    process = fresh_process(code, tmp_path / "adapter")
    assert process.stdout.split() == ["'HADAMARD'", "output"], process.stderr


def test_the_card_at_the_root_tells_of_adapters_in_subfolders(tmp_path):
    model = adapted()
    model.add_adapter("second", HadamardConfig(task_type="SEQ_CLS"))
    model.save_pretrained(tmp_path, selected_adapters=["second"])
    assert "import hadamard_adapter" in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "second" / "adapter_config.json").read_text())["peft_type"] == "HADAMARD"


def test_cards_of_others_are_left_alone(tmp_path):
    (tmp_path / "README.md").write_bytes("library_name: peft".encode("utf-16"))
    adapted().save_pretrained(tmp_path / "one")
    assert (tmp_path / "README.md").read_bytes() == "library_name: peft".encode("utf-16")
    card = (tmp_path / "one" / "README.md").read_bytes()
    adapted().peft_config["default"].save_pretrained(tmp_path / "one" / "start")
    assert (tmp_path / "one" / "README.md").read_bytes() == card
    (tmp_path / "README.md").write_text("library_name: peft, by hand")
    adapted().save_pretrained(tmp_path / "two")
    assert (tmp_path / "README.md").read_text() == "library_name: peft, by hand"
    assert "import hadamard_adapter" in (tmp_path / "two" / "README.md").read_text()


def test_registering_twice_or_reloading_changes_nothing():
    before = dict(peft.PEFT_TYPE_TO_CONFIG_MAPPING)
    members = list(peft.PeftType)
    hadamard_adapter.adapter.register(HadamardConfig, HadamardModel)
    importlib.reload(sys.modules["hadamard_adapter.adapter.register"])
    importlib.reload(hadamard_adapter.adapter)
    importlib.reload(hadamard_adapter)
    assert list(peft.PeftType) == members and before == peft.PEFT_TYPE_TO_CONFIG_MAPPING
    assert peft.PeftType("HADAMARD") is peft.PeftType.HADAMARD
    assert isinstance(get_peft_model(tiny_model("bert"), HadamardConfig()).base_model, HadamardModel)


def test_adapters_are_added_switched_and_deleted():
    model, inputs = adapted(), tiny_inputs("bert")
    first = logits(model, inputs)
    add_random_adapter(model, "second", 5)
    assert torch.equal(logits(model, inputs), first)
    model.set_adapter("second")
    second = logits(model, inputs)
    assert not torch.equal(second, first)
    assert {key for key, p in model.named_parameters() if p.requires_grad} == set(added(model, "second"))
    model.delete_adapter("second")
    assert model.active_adapters == ["default"] and not added(model, "second")
    assert torch.equal(logits(model, inputs), first)
    add_random_adapter(model, "second", 5)
    model.set_adapter("second")
    assert torch.equal(logits(model, inputs), second)
    with pytest.raises(ValueError, match=r"third.*not found"):
        model.set_adapter("third")


def test_after_an_active_adapter_is_deleted_every_layer_has_the_same():
    places = {"target_modules": ["attention.output.dense"], "norm_modules": [], "task_type": "SEQ_CLS"}
    model = get_peft_model(tiny_model("bert"), HadamardConfig(layers_to_transform=[0], **places))
    model.add_adapter("low", HadamardConfig(layers_to_transform=[0], **places))
    model.add_adapter("high", HadamardConfig(layers_to_transform=[1], **places))
    for seed, name in enumerate(("default", "low", "high")):
        randomize(model, name, seed)
    inputs = tiny_inputs("bert")
    model.delete_adapter("default")
    (left,) = model.active_adapters
    found = logits(model.eval(), inputs)
    model.set_adapter(left)
    assert torch.equal(found, logits(model, inputs))


def test_a_deleted_adapter_leaves_no_freeze_behind():
    model = adapted()
    model.add_adapter("second", HadamardConfig(task_type="SEQ_CLS", freeze_head=True, freeze_adapter=True))
    model.delete_adapter("second")
    model.add_adapter("second", HadamardConfig(task_type="SEQ_CLS"))
    model.set_adapter("second")
    assert {key for key, p in model.named_parameters() if p.requires_grad} == set(added(model, "second"))


def test_injection_without_a_wrapper_adapts_in_place():
    base, inputs = tiny_model("bert"), tiny_inputs("bert")
    model = inject_adapter_in_model(HadamardConfig(sites=BOTH), base).eval()
    assert model is base and added(model, "default")
    randomize(model, "default", 1)
    assert_close(logits(model, inputs), logits(adapted(), inputs))


def test_transformers_own_methods_switch_disable_and_enable():
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    base = logits(model, inputs)
    outputs = {}
    for seed, name in enumerate(("one", "two")):
        model.add_adapter(HadamardConfig(sites=BOTH), adapter_name=name)
        randomize(model, name, seed)
        outputs[name] = logits(model, inputs)
    for name in ("one", "two"):
        model.set_adapter(name)
        assert torch.equal(logits(model, inputs), outputs[name]) and model.active_adapters() == [name]
        model.disable_adapters()
        assert torch.equal(logits(model, inputs), base)
        model.enable_adapters()  # transformers forgets the heads here
        assert torch.equal(logits(model, inputs), outputs[name])
    model.delete_adapter("two")
    model.set_adapter("one")
    assert torch.equal(logits(model, inputs), outputs["one"])


def test_enabling_what_is_enabled_unfreezes_nothing(tmp_path):
    adapted().save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(tiny_model("bert"), tmp_path)
    assert not any(p.requires_grad for p in model.parameters())
    model.base_model.enable_adapter_layers()
    with model.disable_adapter():
        pass
    assert not any(p.requires_grad for p in model.parameters())
    trainable = PeftModel.from_pretrained(tiny_model("bert"), tmp_path, is_trainable=True)
    assert {key for key, p in trainable.named_parameters() if p.requires_grad} == set(
        added(trainable, "default")
    )


class Killed(TrainerCallback):
    """Raises right after the first checkpoint."""

    def on_save(self, *arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt


def train(folder, callbacks=(), resume=False) -> dict[str, Tensor]:
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=2,
        learning_rate=1e-2,
        save_steps=3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
    )
    model = get_peft_model(tiny_model("bert"), HadamardConfig(task_type="SEQ_CLS", sites=BOTH))
    trainer = Trainer(model, arguments, train_dataset=Rows(), callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    return {key: value.detach() for key, value in added(model, "default").items()}


def test_a_trainer_killed_after_a_checkpoint_resumes_to_the_same_adapter(tmp_path):
    expected = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", [Killed()])
    resumed = train(tmp_path / "killed", resume=True)
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[key], expected[key]) for key in expected)
    start = get_peft_model(tiny_model("bert"), HadamardConfig(task_type="SEQ_CLS", sites=BOTH))
    assert not any(torch.equal(p, expected[key]) for key, p in added(start, "default").items())


def sgd_steps(model: nn.Module, rows: slice) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    labels = torch.arange(8) % 3
    for step in range(3):
        inputs = {key: value[rows] for key, value in tiny_inputs("bert", 8, seed=step).items()}
        optimizer.zero_grad()
        model(**inputs, labels=labels[rows]).loss.backward()
        optimizer.step()


def ddp_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model = get_peft_model(tiny_model("bert"), HadamardConfig(task_type="SEQ_CLS", sites=BOTH))
    sgd_steps(nn.parallel.DistributedDataParallel(model), slice(4 * rank, 4 * rank + 4))
    torch.save(added(model, "default"), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one_at_equal_global_batch(tmp_path):
    torch.multiprocessing.spawn(ddp_worker, (str(tmp_path),), nprocs=2)
    model = get_peft_model(tiny_model("bert"), HadamardConfig(task_type="SEQ_CLS", sites=BOTH))
    before = copy_state(model)
    sgd_steps(model, slice(0, 8))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for key, parameter in added(model, "default").items():
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], parameter, atol=1e-6, rtol=1e-6)
        assert not torch.equal(parameter, before[key])


def test_the_cost_of_another_adapter_grows_by_the_same_with_each():
    """Counted in calls, of which PEFT and PyTorch need a few for each module that is there."""
    model = get_peft_model(tiny_model("bert", num_hidden_layers=1), HadamardConfig(task_type="SEQ_CLS"))

    def n_calls(work):
        n = 0

        def count(frame, event, argument):
            nonlocal n
            n += event == "call"

        sys.setprofile(count)
        try:
            work()
        finally:
            sys.setprofile(None)
        return n

    added = {}
    for index in range(2, 201):
        config = HadamardConfig(task_type="SEQ_CLS")
        added[index] = n_calls(functools.partial(model.add_adapter, str(index), config))
    assert added[200] - added[150] == pytest.approx(added[60] - added[10], rel=0.02)
    assert n_calls(functools.partial(model.set_adapter, "200")) < added[200] < 10 * added[2]
    assert len([m for m in model.modules() if isinstance(m, HadamardLayer)]) == 2


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_threads_that_share_an_unmerged_model_do_not_meet(name):
    """Its norms are no nn.LayerNorm, and would be swapped for a moment by torch.func.functional_call."""
    model = adapted(name)
    before, inputs = copy_state(model), tiny_inputs(name)
    expected = logits(model, inputs)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: logits(model, inputs), range(40)))
    assert all(torch.equal(one, expected) for one in found)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_an_adapted_model_can_be_exported(name, tmp_path):
    """In a process of its own, since the checks of shapes that tests run under cannot be traced."""
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); from adapter_help import adapted; "
        "from models import tiny_inputs; model = adapted(sys.argv[2]).get_base_model(); "
        "model.config.use_cache = False; "
        "ids = tiny_inputs(sys.argv[2])['input_ids']; expected = model(input_ids=ids).logits; "
        "found = torch.export.export(model, (), {'input_ids': ids}).module()(input_ids=ids).logits; "
        "torch.testing.assert_close(found, expected)"
    )
    done = fresh_process(code, Path(__file__).parent, name)
    assert done.returncode == 0, done.stderr[-2000:]


def test_embeddings_that_an_adapter_brings_are_no_longer_tied_after_merging():
    model = get_peft_model(
        tiny_model("gpt2", "causal-lm"), HadamardConfig(task_type="CAUSAL_LM", modules_to_save=["wte"])
    )
    randomize(model, "default", 1)
    expected = logits(model, tiny_inputs("gpt2"))
    with pytest.warns(UserWarning, match="no longer tied"):
        merged = model.merge_and_unload()
    assert not merged.config.tie_word_embeddings
    merged.resize_token_embeddings(merged.config.vocab_size + 8)
    assert_close(logits(merged, tiny_inputs("gpt2"))[..., : expected.shape[-1]], expected)


def test_modules_that_are_excluded_are_left_out_without_a_warning(recwarn):
    config = HadamardConfig(target_modules=["query", "value"], exclude_modules=r".*layer\.0\..*")
    model = get_peft_model(tiny_model("bert", "headless"), config)
    assert model.base_model.targeted_module_names
    assert not any(".0." in name for name in model.base_model.targeted_module_names)
    assert not any("exclude" in str(one.message) for one in recwarn)


def test_it_follows_adapters_of_other_methods_on_a_transformers_model():
    model = tiny_model("bert", "headless")
    model.add_adapter(LoraConfig(target_modules=["query"]), "first")
    model.add_adapter(HadamardConfig(), "second")
    model.set_adapter("second")
    assert model.active_adapters() == ["second"]


def test_a_backbone_taken_out_of_its_model_can_be_copied():
    model = adapted("bert")
    backbone = model.get_base_model().bert
    del model
    inputs = tiny_inputs("bert")
    expected = backbone(**inputs).last_hidden_state
    assert torch.equal(copy.deepcopy(copy.deepcopy(backbone))(**inputs).last_hidden_state, expected)


def test_a_weighted_sum_does_not_depend_on_the_order_of_names_in_lists():
    model = get_peft_model(tiny_model("bert", "headless"), HadamardConfig(target_modules=["query", "value"]))
    model.add_adapter("b", HadamardConfig(target_modules=["value", "query"]))
    model.base_model.add_weighted_adapter(["default", "b"], [0.5, 0.5], "sum", combination_type="linear")
    assert "sum" in model.peft_config
    with pytest.raises(AdapterError, match=r"expected 'linear'.*received 'ties'"):
        model.base_model.add_weighted_adapter(["default", "b"], [1, 1], "other", combination_type="ties")


def test_an_injection_that_fails_leaves_an_adapter_of_the_same_name_as_it_was():
    model = adapted()
    before = copy_state(model)
    with pytest.raises(ValueError, match="No modules were targeted"):
        get_peft_model(model.get_base_model(), HadamardConfig(target_modules=["typo"]))
    after = copy_state(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["typo"], "norm_modules": ["attention.output.LayerNorm"]}, "'typo'"),
        ({"target_modules": ["output.dense"], "layers_pattern": "layer"}, "layers_to_transform"),
    ],
)
def test_names_that_would_be_without_effect_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        get_peft_model(tiny_model("bert"), HadamardConfig(**settings))


def test_all_linear_means_the_same_however_it_is_spelt():
    sizes = {
        word: get_peft_model(tiny_model("bert"), HadamardConfig(target_modules=word)).num_parameters(True)
        for word in ("all-linear", "All-Linear")
    }
    assert len(set(sizes.values())) == 1, sizes


def test_hooks_of_a_norm_are_called_as_before():
    base = tiny_model("bert")
    for module in base.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda module, inputs, output: output * 0.5)
    inputs = tiny_inputs("bert")
    before = logits(base, inputs)
    assert_close(logits(get_peft_model(base, HadamardConfig()).eval(), inputs), before)


def test_arguments_of_other_combinations_are_refused_by_name():
    model = adapted()
    with pytest.raises(AdapterError, match="expected 'linear'"):
        model.add_weighted_adapter(["default"], [1.0], "w", combination_type="ties", density=0.5)
    with pytest.raises(AdapterError, match="density: not of the linear combination"):
        model.add_weighted_adapter(["default"], [1.0], "w", density=0.5)
