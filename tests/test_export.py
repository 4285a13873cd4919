"""Merging into a plain transformers folder: exact, whole, and nobody's files lost."""

import errno
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hadamard_adapter.errors import AdapterError, SettingsError, TrainingError
from hadamard_adapter.tuning import export, load, merge
from hadamard_adapter.tuning.weights import WEIGHTS
from tuning_help import tiny_folder, tiny_tune, write_rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("export")
    tiny_folder(place / "model")
    write_rows(place / "train.csv", 64)
    tiny_tune(place / "model", place / "tuned", place / "train.csv", lr=0.05)
    return place


def test_a_merged_folder_predicts_as_before_in_plain_transformers(place: Path, tmp_path: Path) -> None:
    report = merge(place / "tuned", tmp_path / "plain")
    assert report.max_logit_difference < 1e-5 and report.dtype == "float32"
    assert report.size_bytes == (tmp_path / "plain" / "model.safetensors").stat().st_size
    chance = random.Random(0)
    texts = [" ".join(f"w{chance.randrange(5, 100)}" for _ in range(9)) for _ in range(8)]
    expected = torch.from_numpy(load(place / "tuned", device="cpu").logits(texts))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    with torch.no_grad():
        found = plain(**tokenizer(texts, return_tensors="pt", padding=True)).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_merged_folder_works_as_a_pipeline_with_the_label_names(place: Path, tmp_path: Path) -> None:
    merge(place / "tuned", tmp_path / "plain")
    (answer,) = pipeline("text-classification", str(tmp_path / "plain"), device="cpu")("w10 w50")
    assert answer["label"] == load(place / "tuned").predict(["w10 w50"])[0].label


def test_a_merge_into_bfloat16_reports_its_rounding(place: Path, tmp_path: Path) -> None:
    report = merge(place / "tuned", tmp_path / "plain", dtype="bfloat16")
    assert 0 < report.max_logit_difference < 0.5
    with safe_open(tmp_path / "plain" / "model.safetensors", "pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.bfloat16"}  # noqa: SIM118
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["dtype"] == "bfloat16"


def test_numbers_that_leave_the_range_of_half_precision_are_refused_and_nothing_is_written(
    place: Path, tmp_path: Path
) -> None:
    shutil.copytree(place / "tuned", tmp_path / "tuned")
    weights = load_file(tmp_path / "tuned" / WEIGHTS)
    (name,) = [name for name in weights if "scale" in name and ".0." in name][:1]
    weights[name] = torch.full_like(weights[name], 1e7)
    save_file(weights, tmp_path / "tuned" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(
        SettingsError, match=r"in float16 the merged model's numbers overflow; expected float32"
    ):
        merge(tmp_path / "tuned", tmp_path / "plain", dtype="float16")
    assert not (tmp_path / "plain").exists()


def test_a_model_that_cannot_compute_in_half_precision_is_refused_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    tiny_folder(tmp_path / "model", "deberta")
    write_rows(tmp_path / "train.csv", 32)
    tiny_tune(tmp_path / "model", tmp_path / "tuned", tmp_path / "train.csv", stages=1, epochs=1)
    with pytest.raises(
        SettingsError, match=r"dtype: this model cannot compute in bfloat16.*expected float32"
    ):
        merge(tmp_path / "tuned", tmp_path / "plain", dtype="bfloat16")
    assert not (tmp_path / "plain").exists() and merge(tmp_path / "tuned", tmp_path / "plain").size_bytes


def test_a_merge_that_computes_something_else_is_not_written(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hadamard_adapter.tuning.export.TOLERANCE", -1.0)
    with pytest.raises(AdapterError, match=r"differs by .* nothing was written"):
        merge(place / "tuned", tmp_path / "plain")
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_large_may_differ_by_their_own_rounding(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, n_probed, apart = export._probe, 0, 0.05

    def large(*given: Any) -> Any:
        nonlocal n_probed
        n_probed += 1
        return 1000 * probe(*given) / abs(probe(*given)).max() + (0.0 if n_probed == 1 else apart)

    monkeypatch.setattr(export, "_probe", large)
    assert merge(place / "tuned", tmp_path / "plain").max_logit_difference > 1e-3
    n_probed, apart = 0, 0.2
    with pytest.raises(AdapterError, match=r"differs by .* expected at most 0\.1;"):
        merge(place / "tuned", tmp_path / "other")


def test_a_merge_replaces_a_merge_only_when_told_and_never_anything_else(place: Path, tmp_path: Path) -> None:
    merge(place / "tuned", tmp_path / "plain")
    with pytest.raises(SettingsError, match="an earlier merge"):
        merge(place / "tuned", tmp_path / "plain")
    merge(place / "tuned", tmp_path / "plain", dtype="bfloat16", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(SettingsError, match="something else"):
        merge(place / "tuned", tmp_path / "mine", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "plain"]


def test_what_came_to_the_output_while_a_merge_worked_stays(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, original = tmp_path / "plain", export.load

    def loaded_beside_another(*args: Any) -> Any:
        target.mkdir()
        (target / "thesis.txt").write_text("mine")
        return original(*args)

    monkeypatch.setattr(export, "load", loaded_beside_another)
    with pytest.raises(SettingsError, match="holds something else"):
        merge(place / "tuned", target, overwrite=True)
    assert [path.name for path in target.iterdir()] == ["thesis.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


@pytest.mark.parametrize(("error", "raised"), [(errno.EIO, OSError), (errno.ENOSPC, TrainingError)])
def test_a_merge_that_fails_at_the_last_moment_leaves_the_old_one(
    error: int, raised: type[Exception], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "plain"
    merge(place / "tuned", target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    rename = os.rename

    def failing(source: Path, new: Path) -> None:
        if new == target and Path(source).name in ("merged", "ready"):
            raise OSError(error, os.strerror(error))
        rename(source, new)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(raised) as caught:
        merge(place / "tuned", target, dtype="bfloat16", overwrite=True)
    assert "checkpoint" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_an_unknown_dtype_and_a_folder_without_adapter_are_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="dtype: expected one of"):
        merge(place / "tuned", tmp_path / "plain", dtype="int3")
    with pytest.raises(AdapterError, match="no adapter"):
        merge(place / "model", tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


@pytest.mark.parametrize("name", ["gpt2", "roberta", "distilbert", "llama", "t5", "modernbert"])
def test_other_families_merge_exactly(name: str, tmp_path: Path) -> None:
    tiny_folder(tmp_path / "model", name)
    train = write_rows(tmp_path / "train.csv", 32)
    tiny_tune(tmp_path / "model", tmp_path / "tuned", train, stages=1, epochs=1, lr=0.05)
    assert merge(tmp_path / "tuned", tmp_path / "plain").max_logit_difference < 1e-5
