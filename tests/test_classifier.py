"""Loading, predicting and evaluating: right for what fits, one clear message for what does not."""

import dataclasses
import inspect
import json
import os
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers.processors import ByteLevel
from transformers import AutoModelForSequenceClassification

from adapter_help import randomize
from hadamard_adapter import HadamardConfig
from hadamard_adapter.adapter.fingerprint import fingerprint
from hadamard_adapter.errors import AdapterError, DataError, HadamardError, SettingsError
from hadamard_adapter.tasks import Columns, Table, Task
from hadamard_adapter.tuning import Classifier, evaluate, load
from stage_help import FIRST_TOKEN
from tuning_help import lay_out, tiny_folder, tiny_tune, unprivileged, write_rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = lay_out(tmp_path_factory.mktemp("classifier"), 64, 32)
    tiny_tune(place / "model", place / "tuned", place / "train.csv", dev=str(place / "dev.csv"))
    return place


@pytest.fixture(scope="module")
def classifier(place: Path) -> Classifier:
    return load(place / "tuned", device="cpu")


@pytest.fixture
def copy(place: Path, tmp_path: Path) -> Path:
    """A copy of the adapter, to be damaged."""
    return Path(shutil.copytree(place / "tuned", tmp_path / "copy"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_predictions_come_in_the_order_of_the_texts_whatever_the_batch(classifier: Classifier) -> None:
    texts = ["w10 " + "w50 " * (index * 7 % 11) for index in range(9)]
    one_by_one = np.concatenate([classifier.logits([text]) for text in texts])
    assert np.abs(classifier.logits(texts, batch_size=4) - one_by_one).max() < 1e-5
    for prediction, logits in zip(classifier.predict(texts, batch_size=2), one_by_one, strict=True):
        names = list(prediction.probabilities)
        assert names == ["bad", "good"] and prediction.label == names[logits.argmax()]
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert classifier.predict([]) == []


def test_a_text_of_no_token_is_refused(classifier: Classifier) -> None:
    tokenizer = deepcopy(classifier.tokenizer)
    tokenizer.backend_tokenizer.post_processor = ByteLevel()  # adds none of its own, as GPT-2's
    bare = dataclasses.replace(classifier, tokenizer=tokenizer)
    for texts, place in (([""], 0), (["w10", "w20", ""], 2)):
        with pytest.raises(DataError, match=rf"texts: expected one token.*received '' at {place}"):
            bare.predict(texts)
    assert len(bare.predict(["w10"])) == 1


def test_texts_of_like_length_stand_in_one_batch(classifier: Classifier) -> None:
    seen: list[tuple[int, int]] = []
    handle = classifier.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        classifier.logits(["w10 " * (1 + index % 2 * 20) for index in range(12)], batch_size=6)
    finally:
        handle.remove()
    assert [shape[0] for shape in seen] == [6, 6] and seen[0][1] < seen[1][1] / 3


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "t5", "gpt2"])
def test_a_merged_classifier_predicts_the_same_with_fewer_modules(name: str, tmp_path: Path) -> None:
    tiny_folder(tmp_path / "model", name)
    train, texts = write_rows(tmp_path / "train.csv", 48), ["w10 w50", "w20 " + "w60 " * 9, "w30"]
    words: dict[str, Any] = {"lr": 0.05, "stages": 1, "epochs": 1, "preset": "wide"}
    tuned = tiny_tune(tmp_path / "model", tmp_path / "tuned", train, **words).output
    plain, merged = load(tuned, device="cpu"), load(tuned, device="cpu").merged()
    assert not isinstance(merged.model, PeftModel)
    assert np.abs(plain.logits(texts) - merged.logits(texts)).max() < 1e-5
    is_cut = any(module._forward_pre_hooks for module in merged.model.modules())
    assert is_cut == (name in FIRST_TOKEN)


def test_half_precision_keeps_the_order_and_stays_close(place: Path) -> None:
    whole = load(place / "tuned").merged()
    texts = [" ".join(f"w{5 + (index * 7 + k) % 40}" for k in range(1 + index % 7)) for index in range(40)]
    half, difference = whole.halved(texts, batch_size=8)
    logits = half.logits(texts, batch_size=8)
    assert logits.dtype == np.float32 and half.dtype == "bfloat16" and whole.dtype == "float32"
    alone = np.concatenate([half.logits([text]) for text in texts])
    # Rounding depends on the batch, the order does not; rows that stood elsewhere would not correlate.
    assert np.corrcoef(logits[:, 0], alone[:, 0])[0, 1] > 0.9
    found, expected = (
        [list(p.probabilities.values()) for p in one.predict(texts, batch_size=8)] for one in (half, whole)
    )
    assert difference == pytest.approx(np.abs(np.subtract(found, expected)).max())
    assert 0 < difference < 1e-2


def test_memory_that_holds_one_model_alone_is_no_matter_of_batches(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    whole = load(place / "tuned").merged()
    monkeypatch.setattr("hadamard_adapter.tuning.classifier.cast_frozen", full)
    with pytest.raises(SettingsError, match="a second one in bfloat16"):
        whole.halved(["w10"])


def test_what_cannot_be_folded_stays_beside_the_weights(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "model", "t5")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=2)
    model = get_peft_model(base, HadamardConfig(task_type="SEQ_CLS", train_shift=True))
    randomize(model, "default", 1)
    model.save_pretrained(tmp_path / "tuned")
    plain, merged = (load(tmp_path / "tuned", str(tmp_path / "model"), "cpu") for _ in range(2))
    merged = merged.merged()
    assert isinstance(merged.model, PeftModel)
    assert np.array_equal(plain.logits(["w10"]), merged.logits(["w10"]))


def test_a_loaded_classifier_is_the_tuned_model_of_plain_peft(place: Path, classifier: Classifier) -> None:
    torch.manual_seed(7)
    base = AutoModelForSequenceClassification.from_pretrained(place / "model", num_labels=2)
    plain = PeftModel.from_pretrained(base, place / "tuned").eval()
    batch = classifier.tokenizer("w10 w50", return_tensors="pt")
    with torch.no_grad():
        assert np.array_equal(plain(**batch).logits.numpy(), classifier.logits(["w10 w50"]))


def test_the_head_of_stage_1_loads_by_itself(place: Path, classifier: Classifier) -> None:
    alone = load(place / "tuned" / "head", device="cpu")
    assert alone.task == classifier.task
    assert not np.array_equal(alone.logits(["w10"]), classifier.logits(["w10"]))


def test_as_many_pairs_as_texts_are_expected(classifier: Classifier) -> None:
    with pytest.raises(SettingsError, match="expected 2 second texts"):
        dataclasses.replace(classifier, columns=PAIR).predict(["w10", "w11"], ["w12"])


def test_a_text_in_place_of_a_list_and_a_batch_of_none_are_refused(classifier: Classifier) -> None:
    unchecked: Any = inspect.unwrap(Classifier.logits_and_cuts)  # tests check types before the code does
    for texts in ("a fine film", [None]):
        with pytest.raises(SettingsError, match="texts: expected a list of texts, received"):
            unchecked(classifier, texts)
    with pytest.raises(SettingsError, match="batch_size: expected a number from 1 on, received 0"):
        classifier.predict(["w10"], batch_size=0)


PAIR, SINGLE = Columns("sentence1", "sentence2", "label"), Columns("text", None, "label")
COLUMNS: dict[str, tuple[Columns, tuple[str, ...], dict[str, str], Columns | str]] = {
    "those of training": (PAIR, ("id", "sentence2", "sentence1"), {}, Columns("sentence1", "sentence2")),
    "the pair of training beside a named text": (
        PAIR,
        ("a", "sentence2"),
        {"text": "a"},
        Columns("a", "sentence2"),
    ),
    "both named": (PAIR, ("a", "b"), {"text": "a", "pair": "b"}, Columns("a", "b")),
    "the usual pair": (PAIR, ("premise", "hypothesis"), {}, Columns("premise", "hypothesis")),
    "the text of training beside another pair": (
        Columns("text", "pair"),
        ("text", "text_pair"),
        {},
        Columns("text", "text_pair"),
    ),
    "no pair for a pair": (PAIR, ("a", "b"), {"text": "a"}, "expected a second text.*only 'a'.*--pair"),
    "a text alone for a pair": (PAIR, ("sentence1", "id"), {}, "expected a second text.*'sentence2'.*--pair"),
    "a text of a pair": (SINGLE, ("sentence1", "sentence2"), {"text": "sentence1"}, Columns("sentence1")),
    "a pair for a text": (
        SINGLE,
        ("text", "b"),
        {"pair": "b"},
        "--pair 'b': expected one text.*leave --pair",
    ),
    "a usual pair for a text": (SINGLE, ("sentence1", "sentence2"), {}, "expected one text.*name.*--text"),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_rows_have_a_second_text_if_and_only_if_training_had_one(case: str, classifier: Classifier) -> None:
    trained, names, options, expected = COLUMNS[case]
    table = Table("x.csv", names, [{name: "w10 w11" for name in names}], [2])
    of_those = dataclasses.replace(classifier, columns=trained)
    if isinstance(expected, Columns):
        assert of_those.columns_in(table, **options) == expected
        return
    with pytest.raises(HadamardError, match=expected):
        of_those.columns_in(table, **options)


def test_second_texts_are_expected_where_training_had_them(classifier: Classifier) -> None:
    with pytest.raises(SettingsError, match=r"pairs: expected no second texts.*received 1 second texts"):
        classifier.predict(["w10"], ["w11"])
    with pytest.raises(SettingsError, match=r"pairs: expected a second text for every text.*received none"):
        dataclasses.replace(classifier, columns=PAIR).predict(["w10"])


def test_an_evaluation_agrees_with_its_predictions(place: Path, classifier: Classifier) -> None:
    found = evaluate(place / "tuned", str(place / "dev.csv"), device="cpu")
    rows = [line.split(",") for line in (place / "dev.csv").read_text().splitlines()[1:]]
    said = [prediction.label for prediction in classifier.predict([text for text, _ in rows])]
    wrong = [index for index, (_, label) in enumerate(rows) if said[index] != label]
    assert found.n_rows == 32 and found.scores["accuracy"] == 1 - len(wrong) / 32
    assert [error["row"] for error in found.errors] == [index + 2 for index in wrong]
    assert [[error["label"], error["text"]] for error in found.errors] == [rows[i][::-1] for i in wrong]
    assert np.array(found.confusion).sum() == 32
    assert sum(row["support"] for row in found.per_class.values()) == 32


def test_an_evaluation_finds_the_columns_of_the_training_and_names_those_that_lack(
    place: Path, tmp_path: Path
) -> None:
    lines = (place / "dev.csv").read_text().splitlines()
    swapped = [",".join(["note", *line.split(",")[::-1]]) for line in lines]
    (tmp_path / "dev.csv").write_text("\n".join(["id,label,text", *swapped[1:]]))
    found = evaluate(place / "tuned", str(tmp_path / "dev.csv"), device="cpu")
    assert found.scores == evaluate(place / "tuned", str(place / "dev.csv"), device="cpu").scores
    with pytest.raises(DataError, match=r"(?s)txet.*id.*label.*text"):
        evaluate(place / "tuned", str(tmp_path / "dev.csv"), text="txet", device="cpu")


def test_an_adapter_for_another_base_model_is_refused_with_both_fingerprints(
    place: Path, copy: Path, tmp_path: Path
) -> None:
    other = tiny_folder(tmp_path / "other", seed=1)
    found = fingerprint(AutoModelForSequenceClassification.from_pretrained(other))
    expected = json.loads((copy / "adapter_config.json").read_text())["base_fingerprint"]
    with pytest.raises(AdapterError, match=rf"(?s){expected}.*{found}.*names, shapes and"):
        load(copy, model=str(other))


def test_a_base_model_of_another_width_is_refused(copy: Path, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "wide", hidden_size=64)
    with pytest.raises(AdapterError, match=r"width 64, the adapter's tensors: .*32"):
        load(copy, model=str(other))
    change_config(copy, base_fingerprint=None)
    with pytest.raises(AdapterError, match="another width"):
        load(copy, model=str(other))


def test_a_base_model_that_has_moved_is_named_and_can_be_passed(place: Path, copy: Path) -> None:
    change_config(copy, base_model_name_or_path="/gone/model")
    with pytest.raises(AdapterError, match=r"/gone/model.*if it has moved, pass --model"):
        load(copy)
    assert load(copy, model=str(place / "model")).predict(["w10"])


def test_a_truncated_file_is_refused(copy: Path) -> None:
    file = copy / "adapter_model.safetensors"
    os.truncate(file, file.stat().st_size - 8)
    with pytest.raises(AdapterError, match="damaged"):
        load(copy)


def change_run(folder: Path, **changes: Any) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGED_RUNS: dict[str, dict[str, Any]] = {
    "a task that lacks its kind": {"task": {"name": "x"}},
    "a task that is a word": {"task": "x"},
    "a task of labels that are none": {
        "task": vars(Task("x", "regression", (), ("rmse",))) | {"label_names": 3}
    },
    "a task of an unknown kind": {"task": vars(Task("x", "ranking", (), ("rmse",)))},
    "columns that are a list": {"columns": ["text"]},
    "columns without a text": {"columns": {"pair": None}},
    "a length in letters": {"max_length": "long"},
}


@pytest.mark.parametrize("case", DAMAGED_RUNS)
def test_a_damaged_run_file_is_refused(case: str, copy: Path) -> None:
    change_run(copy, **DAMAGED_RUNS[case])
    with pytest.raises(AdapterError, match=r"run\.json' is damaged"):
        load(copy)


@pytest.mark.parametrize("content", ["{", "[1]", "3"])
def test_a_run_file_that_is_no_object_is_refused(content: str, copy: Path) -> None:
    (copy / "run.json").write_text(content)
    with pytest.raises(AdapterError, match=r"run\.json' is damaged"):
        load(copy)


def test_what_a_newer_version_adds_is_left_alone(copy: Path, classifier: Classifier) -> None:
    run = json.loads((copy / "run.json").read_text())
    change_run(copy, new=1, task=run["task"] | {"new": [1]}, columns=run["columns"] | {"new": None})
    newer = load(copy, device="cpu")
    assert (newer.task, newer.columns) == (classifier.task, classifier.columns)


UNFIT_CONFIGS: dict[str, dict[str, Any]] = {
    "a pattern that is none": {"target_modules": "("},
    "names that are numbers": {"target_modules": [3]},
    "norms that are a number": {"norm_modules": 3},
}


@pytest.mark.parametrize("case", UNFIT_CONFIGS)
def test_a_config_that_does_not_fit_the_model_is_refused(case: str, copy: Path) -> None:
    change_config(copy, **UNFIT_CONFIGS[case])
    with pytest.raises(AdapterError, match=r"(does not fit|is damaged|lacks)"):
        load(copy)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "run.json"])
def test_a_file_that_must_not_be_read_is_told_as_such(name: str, copy: Path) -> None:
    (copy / name).chmod(0)
    with unprivileged(copy), pytest.raises(AdapterError, match=rf"{name}' cannot be read: Permission denied"):
        load(copy)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_a_pickle_file_is_refused_without_being_read(
    name: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (copy / "adapter_model.safetensors").unlink()
    (copy / name).write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(AdapterError, match="pickle"):
        load(copy)
    assert not Path("ran").exists()


def test_a_tensor_that_lacks_or_is_strange_is_refused(copy: Path) -> None:
    tensors = load_file(copy / "adapter_model.safetensors")
    name = next(name for name in tensors if "hadamard_scale" in name)
    save_file({**tensors, "strange": torch.zeros(2)}, copy / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="holds 'strange'"):
        load(copy)
    save_file(
        {key: tensor for key, tensor in tensors.items() if key != name}, copy / "adapter_model.safetensors"
    )
    with pytest.raises(AdapterError, match=rf"lacks '{name}'"):
        load(copy)


def test_a_folder_without_an_adapter_and_another_method_are_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        load(tmp_path / "nothing")
    change_config(copy, peft_type="LORA")
    with pytest.raises(AdapterError, match="expected an adapter of type 'HADAMARD', received 'LORA'"):
        load(copy)
    (copy / "adapter_config.json").write_text("{broken")
    with pytest.raises(AdapterError):
        load(copy)


def test_an_adapter_made_by_plain_peft_loads_by_its_config(
    place: Path, copy: Path, classifier: Classifier
) -> None:
    (copy / "run.json").unlink()
    by_config = load(copy, device="cpu")
    assert by_config.task.label_names == classifier.task.label_names
    assert np.array_equal(by_config.logits(["w10"]), classifier.logits(["w10"]))
