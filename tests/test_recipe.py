"""The recipe on tiny models: what each stage trains, what it leaves, what it refuses."""

import dataclasses
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, TrainerCallback

from hadamard_adapter.adapter.families import FAMILIES
from hadamard_adapter.errors import DataError, HadamardError, SettingsError
from hadamard_adapter.tuning import (
    PRESETS,
    TuneSettings,
    content,
    field_help,
    load,
    merge,
    models,
    parts,
    resolve,
    tune,
    workbench,
)
from hadamard_adapter.tuning.data import read_data, run_key
from hadamard_adapter.tuning.models import load_base, load_tokenizer, longest_input, tokenize
from hadamard_adapter.tuning.processes import deterministic_on, processes_on
from hadamard_adapter.tuning.settings import EPOCHS_BY_ROWS
from hadamard_adapter.tuning.stage import Stage, best_epoch, is_over, read_curve
from hadamard_adapter.tuning.training import training_arguments
from hadamard_adapter.tuning.workbench import class_weights
from models import BOS, EOS
from tuning_help import adapter_sha256, give_code, lay_out, silent, tiny_folder, tiny_tune, write_rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("recipe"), 64, 32)


def test_a_launcher_s_precision_is_not_that_of_the_settings(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for word in ("no", "bf16"):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", word)
        tiny_tune(place / "model", tmp_path / word, place / "train.csv", dtype="float32")
    assert adapter_sha256(tmp_path / "no") == adapter_sha256(tmp_path / "bf16")


@pytest.fixture(scope="module")
def tuned(place: Path) -> Path:
    """A result of two stages in the paper's setting."""
    output = place / "tuned"
    tiny_tune(place / "model", output, place / "train.csv", dev=str(place / "dev.csv"), preset="paper")
    return output


def short(place: Path, output: Path, **settings: Any) -> TuneSettings:
    """One stage, one epoch."""
    chosen: dict[str, Any] = {"stages": 1, "epochs": 1, "device": "cpu", "dtype": "float32", **settings}
    return TuneSettings(str(place / "model"), str(output), train=str(place / "train.csv"), **chosen)


def head_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "adapter_model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if ".hadamard_" not in name}


def offsets_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "adapter_model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if ".hadamard_" in name}


def test_a_result_holds_all_that_it_should(tuned: Path) -> None:
    expected = {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "metrics.json", "run.json", "curve.png", "README.md", "head",
    }  # fmt: skip
    assert {path.name for path in tuned.iterdir()} == expected
    metrics = json.loads((tuned / "metrics.json").read_text())
    run = json.loads((tuned / "run.json").read_text())
    assert metrics["selected_on"] == "dev"
    assert [(entry["stage"], entry["epoch"]) for entry in metrics["curve"]] == [
        ("head", 1), ("head", 2), ("adapter", 1), ("adapter", 2),
    ]  # fmt: skip
    assert metrics["dev"].keys() == metrics["stage1_dev"].keys()
    assert set(run["seconds"]) == {"head", "adapter"} and run["peak_memory_mb"] > 0
    assert run["settings"]["preset"] == "paper" and run["seed"] == 0
    assert len(run["data_fingerprint"]["train"]) == len(run["base_fingerprint"]) == 64
    assert (
        json.loads((tuned / "adapter_config.json").read_text())["base_fingerprint"] == run["base_fingerprint"]
    )


def test_stage_1_leaves_the_adapter_at_the_identity_and_stage_2_of_the_paper_keeps_the_head(
    tuned: Path,
) -> None:
    assert all(not tensor.any() for tensor in offsets_of(tuned / "head").values())
    assert all(tensor.any() for tensor in offsets_of(tuned).values())
    after, before = head_of(tuned), head_of(tuned / "head")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_the_head_trains_in_stage_2_of_the_wide_preset(place: Path, tmp_path: Path) -> None:
    tiny_tune(
        place / "model", tmp_path / "out", place / "train.csv", dev=str(place / "dev.csv"), preset="wide"
    )
    after, before = head_of(tmp_path / "out"), head_of(tmp_path / "out" / "head")
    assert not all(torch.equal(after[name], before[name]) for name in after)
    assert len(offsets_of(tmp_path / "out")) == 2 * 2 * 4  # layers, sites, offsets


def test_one_stage_trains_both(place: Path, tmp_path: Path) -> None:
    result = tiny_tune(place / "model", tmp_path / "out", place / "train.csv", stages=1, epochs=1)
    assert set(result.run["seconds"]) == {"both"} and result.metrics["stage1_dev"] is None
    assert not (tmp_path / "out" / "head").exists()
    assert all(tensor.any() for tensor in offsets_of(tmp_path / "out").values())


@pytest.mark.parametrize("name", ["bart", "modernbert"])
def test_a_merged_model_is_tuned_again_with_the_whole_of_its_head(
    name: str, place: Path, tmp_path: Path
) -> None:
    model = tiny_folder(tmp_path / "model", name)
    write_rows(tmp_path / "three.csv", 30, label_of=lambda text: f"class-{len(text) % 3}")
    first = tiny_tune(model, tmp_path / "first", tmp_path / "three.csv", epochs=1, head_epochs=1)
    merge(first.output, tmp_path / "plain")
    for rows in (tmp_path / "three.csv", place / "train.csv"):  # as many labels as before, and fewer
        again = tiny_tune(tmp_path / "plain", tmp_path / rows.stem, rows, epochs=1, head_epochs=1)
        assert head_of(again.output).keys() == head_of(first.output).keys()
        start = load_file(tmp_path / "plain" / "model.safetensors")
        same = [
            key for key, tensor in head_of(again.output / "head").items()
            if torch.equal(tensor, start[key.removeprefix("base_model.model.")])
        ]  # fmt: skip
        assert not same  # stage 1 has trained it all


def test_a_stage_without_anything_to_train_is_refused_with_a_way_out(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_folder(tmp_path / "model", "bart")
    plain = merge(
        tiny_tune(model, tmp_path / "first", place / "train.csv", epochs=1).output, tmp_path / "plain"
    )
    (row,) = FAMILIES["bart"]
    monkeypatch.setitem(FAMILIES, "bart", (dataclasses.replace(row, head=()),))
    with pytest.raises(SettingsError, match=r"stage 1, head: expected a head to train.*use stages 1"):
        tiny_tune(Path(plain.output), tmp_path / "second", place / "train.csv")
    again = tiny_tune(Path(plain.output), tmp_path / "third", place / "train.csv", stages=1, epochs=1)
    assert again.metrics["head_parameters"] == 0


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    place: Path, tuned: Path, tmp_path: Path
) -> None:
    for seed in (0, 1):
        tiny_tune(
            place / "model", tmp_path / str(seed), place / "train.csv", dev=str(place / "dev.csv"),
            preset="paper", seed=seed,
        )  # fmt: skip
    assert adapter_sha256(tmp_path / "0") == adapter_sha256(tuned) != adapter_sha256(tmp_path / "1")


def test_a_finished_run_says_so_and_keeps_every_file(place: Path, tuned: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tuned.rglob("*")}
    said: list[str] = []
    settings = TuneSettings(
        str(place / "model"), str(tuned), train=str(place / "train.csv"), dev=str(place / "dev.csv"),
        preset="paper", head_epochs=2, epochs=2, batch_size=8, head_batch_size=8, device="cpu",
        dtype="float32",
    )  # fmt: skip
    result = tune(settings, say=said.append)
    assert said[-1].startswith("finished already")
    assert result.metrics["dev"] and {path: path.stat().st_mtime_ns for path in tuned.rglob("*")} == before


def test_other_settings_on_a_finished_folder_are_refused_unless_overwritten(
    place: Path, tmp_path: Path
) -> None:
    train = place / "train.csv"
    tiny_tune(place / "model", tmp_path / "out", train, stages=1, epochs=1)
    before = adapter_sha256(tmp_path / "out")
    with pytest.raises(SettingsError, match=r"seed 0 there, 1 now"):
        tiny_tune(place / "model", tmp_path / "out", train, stages=1, epochs=1, seed=1)
    assert adapter_sha256(tmp_path / "out") == before
    tiny_tune(place / "model", tmp_path / "out", train, stages=1, epochs=1, seed=1, overwrite=True)
    assert adapter_sha256(tmp_path / "out") != before


def test_the_same_content_by_another_name_is_the_same_run(
    place: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed = shutil.copyfile(place / "train.csv", tmp_path / "rows.csv")
    monkeypatch.chdir(place)
    chosen: dict[str, Any] = {
        "preset": "paper",
        "head_epochs": 2,
        "epochs": 2,
        "batch_size": 8,
        "head_batch_size": 8,
        "dtype": "float32",
    }
    chosen |= {"dev": "dev.csv", "text": "text", "device": "cpu"}
    said: list[str] = []
    tune(TuneSettings("model", str(tuned), train=str(renamed), **chosen), say=said.append)
    assert said[-1].startswith("finished already")
    renamed.write_text(renamed.read_text().replace(",good", ",well"))
    with pytest.raises(SettingsError, match="labels"):
        tune(TuneSettings("model", str(tuned), train=str(renamed), **chosen | {"dev": None}), say=silent)


def test_a_model_whose_content_is_not_known_is_told_apart_by_its_name(place: Path) -> None:
    data = read_data(TuneSettings("m", "o", train=str(place / "train.csv")))
    keys = [run_key(TuneSettings(name, "o", train="t"), data, 1) for name in ("no/one", "no/other")]
    assert keys[0] != keys[1] and keys[0]["model_content"] == "unknown"


def test_other_weights_under_the_same_path_are_noticed(place: Path, tmp_path: Path) -> None:
    model, output, train = tiny_folder(tmp_path / "model"), tmp_path / "out", place / "train.csv"
    tiny_tune(model, output, train, stages=1, epochs=1)
    tiny_folder(tmp_path / "model", seed=7)
    with pytest.raises(SettingsError, match="model_content"):
        tiny_tune(model, output, train, stages=1, epochs=1)
    partial = output.rename(tmp_path / "out.partial")
    key = json.loads((partial / "run.json").read_text())["key"]
    shutil.rmtree(partial)
    partial.mkdir()
    (partial / "settings.json").write_text(json.dumps(key))
    (partial / "both").mkdir()
    with pytest.raises(SettingsError, match="unfinished run of other settings"):
        tiny_tune(model, output, train, stages=1, epochs=1)


@pytest.mark.parametrize("is_sample", [False, True])
def test_a_long_file_is_told_apart_by_all_of_it_or_by_samples(
    is_sample: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "SHORT", 10)
    monkeypatch.setattr(content, "BLOCK", 2)
    seen = set()
    for size, last in ((200, b"a"), (200, b"b"), (201, b"a")):
        (tmp_path / "model.safetensors").write_bytes(b"x" * (size - 1) + last)
        seen.add(content.base_content(str(tmp_path), is_sample))
    assert len(seen) == 3 and content.base_content(str(tmp_path), is_sample) in seen
    between = bytearray(b"x" * 200 + b"a")
    between[5] = ord("y")  # no sample holds it
    (tmp_path / "model.safetensors").write_bytes(between)
    assert (content.base_content(str(tmp_path), is_sample) in seen) == is_sample


def test_overwrite_never_replaces_what_is_not_ours(place: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SettingsError, match="something else"):
        tiny_tune(place / "model", tmp_path, place / "train.csv", overwrite=True)


def test_without_a_dev_file_a_part_of_train_is_set_aside_and_the_run_says_so(
    place: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    settings = short(place, tmp_path / "out")
    result = tune(settings, say=said.append)
    assert any("no dev file: 7 rows (10 %) set aside, stratified, seed 0" in line for line in said)
    assert result.run["rows"] == {"train": 57, "dev": 7, "dev_is": "rows set aside"}


@pytest.mark.parametrize(
    ("n_known", "told"),
    [
        (0, ()),
        (1, ("1 dev row with the text of a training row: dev scores are flattered",)),
        (3, ("3 dev rows with the text of a training row: dev scores are flattered",)),
    ],
)
def test_dev_rows_with_a_training_rows_text_and_pair_are_counted(
    n_known: int, told: tuple[str, ...], tmp_path: Path
) -> None:
    train = write_rows(tmp_path / "train.csv", 20, pair=True)
    header, *rows = train.read_text(encoding="utf-8").splitlines()
    fresh = [row.replace("w40 w41", "w40 w42") for row in rows]
    dev = tmp_path / "dev.csv"
    dev.write_text("\n".join([header, *rows[:n_known], *fresh[n_known:6]]), encoding="utf-8")
    assert read_data(TuneSettings("m", "o", train=str(train), dev=str(dev))).notes == told


def test_classes_that_dev_lacks_and_large_numbers_are_told(tmp_path: Path) -> None:
    one = tmp_path / "one.csv"
    one.write_text("text,label\n" + "".join(f"w{i},{'ab'[i % 2]}\n" for i in range(20)) + "w,rare\n")
    assert read_data(TuneSettings("m", "o", train=str(one))).notes == (
        "no dev row of rare: dev scores do not tell how well that is learned",
    )
    one.write_text("text,label\n" + "".join(f"w{i},{('1', '0', '1.0')[i % 3]}\n" for i in range(30)))
    assert read_data(TuneSettings("m", "o", train=str(one))).notes == (
        "labels '1' and '1.0' count as two: if they are one, write them alike",
    )
    for factor, n_notes in ((1, 0), (1000, 1)):
        rows = write_rows(tmp_path / "n.csv", 40, label_of=lambda text, by=factor: by * len(text) / 8)
        notes = read_data(TuneSettings("m", "o", train=str(rows), problem_type="regression")).notes
        assert len(notes) == n_notes and all(note.startswith("labels have mean ") for note in notes)


def test_a_stage_of_one_step_trains(place: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "one.csv", 8)
    tiny_tune(place / "model", tmp_path / "out", rows, dev=str(rows), epochs=1, head_epochs=1)
    assert all(bool(tensor.any()) for tensor in offsets_of(tmp_path / "out").values())
    first = head_of(tmp_path / "out" / "head")
    tiny_tune(place / "model", tmp_path / "more", rows, dev=str(rows), epochs=1, head_epochs=1, head_lr=1e-9)
    start = head_of(tmp_path / "more" / "head")
    assert any(not torch.allclose(first[name], start[name], atol=1e-6) for name in first)


def test_paths_and_lists_are_settings_too(place: Path, tmp_path: Path, unchecked: None) -> None:
    given: Any = {"output": tmp_path / "out", "train": place / "train.csv", "layers": [1]}
    settings = TuneSettings(str(place / "model"), epochs=1, head_epochs=1, device="cpu", **given)
    assert (settings.output, settings.layers) == (str(tmp_path / "out"), (1,))
    assert tune(settings, say=silent).run["settings"]["train"] == str(place / "train.csv")


def test_quiet_says_nothing(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = short(place, tmp_path / "out", quiet=True)
    tune(settings)
    assert capfd.readouterr() == ("", "")


def test_rows_that_were_cut_are_counted_and_told(place: Path, tmp_path: Path) -> None:
    said: list[str] = []
    settings = short(place, tmp_path / "out", dev=str(place / "dev.csv"), max_length=6)
    result = tune(settings, say=said.append)
    n_cut = result.run["n_truncated"]["train"]
    lines = (place / "train.csv").read_text().splitlines()[1:]
    assert n_cut == sum(len(line.split(",")[0].split()) + 2 > 6 for line in lines) > 0
    assert any(f"{n_cut} train rows are longer than 6 tokens" in line for line in said)


@pytest.mark.parametrize(("pair", "least"), [(False, 3), (True, 5)])
def test_a_row_is_never_cut_to_special_tokens_alone(tmp_path: Path, pair: bool, least: int) -> None:
    tiny_folder(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.csv", 24, pair=pair)
    few: dict[str, Any] = {"epochs": 1, "head_epochs": 1}
    message = rf"max_length: expected {least} or more, .* received {least - 1}"
    with pytest.raises(SettingsError, match=message):
        tiny_tune(tmp_path / "model", tmp_path / "out", rows, max_length=least - 1, **few)
    tiny_tune(tmp_path / "model", tmp_path / "out", rows, max_length=least, **few)


def test_a_gpu_computes_the_same_twice_and_nothing_of_it_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)

    def flags() -> tuple[bool, bool, bool]:
        cudnn = torch.backends.cudnn
        return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark

    before = flags()
    with deterministic_on(torch.device("cpu")):
        assert flags() == before and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with pytest.raises(KeyError), deterministic_on(torch.device("cuda")):
        assert flags() == (True, True, False) and os.environ["CUBLAS_WORKSPACE_CONFIG"]
        assert torch.is_deterministic_algorithms_warn_only_enabled()  # cuBLAS may have begun without it
        raise KeyError
    assert flags() == before and not torch.is_deterministic_algorithms_warn_only_enabled()


def test_a_run_is_on_its_own_device_whatever_an_earlier_one_had() -> None:
    state = processes_on(torch.device("cpu"))
    state.device = torch.device("meta")  # as if the earlier run had had another
    assert PartialState().device == torch.device("meta")
    assert processes_on(torch.device("cpu")).device == PartialState().device == torch.device("cpu")


class Recorder:
    """A display that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def start(self, stage: str, n_steps: int, step: int) -> None:
        self.told.append((stage, n_steps, step))

    def step(self, step: int, loss: float | None) -> None:
        self.told.append(step)

    def epoch(self, epoch: int, scores: dict[str, float]) -> None:
        self.told.append(f"epoch {epoch}")

    def end(self) -> None:
        self.told.append("end")


def test_progress_is_told_of_every_step_and_epoch(place: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    settings = short(place, tmp_path / "out", dev=str(place / "dev.csv"), epochs=2)
    tune(settings, say=silent, progress=recorder)
    assert recorder.told == [("both", 4, 0), 1, 2, "epoch 1", 3, 4, "epoch 2", "end"]


class Losses(Recorder):
    """A display that remembers the losses only."""

    def step(self, step: int, loss: float | None) -> None:
        self.told.append(loss)


@pytest.mark.parametrize("problem_type", ["single_label_classification", "regression"])
def test_accumulated_batches_train_as_one_whole_batch_does(
    problem_type: str, place: Path, tmp_path: Path
) -> None:
    is_regression = problem_type == "regression"
    train = write_rows(
        tmp_path / "train.csv", 66, label_of=(lambda text: len(text) / 30) if is_regression else None
    )
    losses, curves, adapters = [], [], []
    for batch, accumulation in ((8, 1), (4, 2), (2, 4)):
        recorder, output = Losses(), tmp_path / f"{batch}x{accumulation}"
        result = tiny_tune(
            place / "model", output, train, recorder, max_grad_norm=0.1, stages=1, epochs=1, batch_size=batch,
            grad_accumulation=accumulation, problem_type=problem_type,
        )  # fmt: skip
        curves.append(result.metrics["curve"][0]["loss"])
        losses.append([loss for loss in recorder.told if isinstance(loss, float)])
        adapters.append(load_file(output / "adapter_model.safetensors"))
    assert len(losses[0]) == len(losses[2]) == 8
    for loss, curve, adapter in zip(losses[1:], curves[1:], adapters[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-4)
        assert curve == pytest.approx(curves[0], rel=1e-4)
        for name, tensor in adapter.items():
            torch.testing.assert_close(tensor, adapters[0][name], atol=1e-4, rtol=1e-3)


class Gradients(Losses):
    """Sees each step's rows, the length of each of its batches, and its whole gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.gradients, self.n_rows = list[int](), list[torch.Tensor](), 0
        self.lengths = list[list[int]]()
        self.parts = list[int]()
        self.tokens = list[tuple[int, int]]()

    def watch(self, trainer: Any) -> None:
        steps = self

        def count(model: Any, args: Any, kwargs: dict[str, Any]) -> None:
            if model.training:
                steps.n_rows += len(kwargs["input_ids"])
                steps.parts.append(kwargs["input_ids"].shape[1])
                steps.tokens.append((kwargs["input_ids"].numel(), kwargs["input_ids"].shape[1]))

        class Callback(TrainerCallback):
            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                members = [p for group in trainer.optimizer.param_groups for p in group["params"]]
                steps.gradients.append(torch.cat([p.grad.flatten().clone() for p in members]))
                steps.rows.append(steps.n_rows)
                steps.lengths.append(steps.parts)
                steps.n_rows, steps.parts = 0, []

            def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                hook.remove()

        hook = trainer.model.register_forward_pre_hook(count, with_kwargs=True)
        trainer.add_callback(Callback())


def gradients_of(place: Path, output: Path, train: Path, **settings: Any) -> Gradients:
    """Of a run at rates so low that the weights stay those of the start, and without clipping."""
    seen, rates = Gradients(), dict.fromkeys(("lr", "stage2_head_lr"), 1e-30)
    few: dict[str, Any] = {"dev": str(place / "dev.csv"), "max_grad_norm": 1e30, **rates, **settings}
    tiny_tune(place / "model", output, train, seen, **few)
    return seen


def assert_alike(gradients: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """As gradients of the same rows whose sums were computed in another order."""
    for one, other in zip(expected, gradients, strict=True):
        assert (one - other).norm() <= 1e-4 * one.norm() and one.norm() > 0


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (2, 4)])
def test_micro_batches_have_the_gradient_and_the_rows_of_the_plain_batch(
    batch: int, accumulation: int, place: Path, tmp_path: Path
) -> None:
    """22 rows in steps of 8, the last of 6."""
    train = write_rows(tmp_path / "train.csv", 22)
    plain, micro = (
        gradients_of(place, tmp_path / f"{size}", train, stages=1, batch_size=size, grad_accumulation=n)
        for size, n in ((8, 1), (batch, accumulation))
    )
    assert plain.rows == micro.rows == [8, 8, 6] * 2
    assert_alike(micro.gradients, plain.gradients)
    assert not torch.equal(plain.gradients[0], plain.gradients[1])


def test_a_stage_1_whose_cache_is_left_out_has_its_steps_in_parts_of_like_length(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """22 rows in steps of 8, the last of 6."""
    monkeypatch.setattr(parts, "OVERHEAD_TOKENS", 2)
    train = write_rows(tmp_path / "train.csv", 22)
    cached, uncached = (
        gradients_of(place, tmp_path / f"{size_gb}", train, epochs=1, head_lr=1e-30, cache_gb=size_gb)
        for size_gb in (1.0, 1e-9)  # of which none fits
    )
    assert cached.rows == uncached.rows == [8, 8, 6] * 3
    assert [len(step) for step in cached.lengths] == [1] * 9
    assert min(len(step) for step in uncached.lengths[:6]) > 1
    assert [len(step) for step in uncached.lengths[6:]] == [1] * 3  # of like length already
    assert_alike(uncached.gradients, cached.gradients)


def test_random_rows_in_parts_of_like_length_have_the_gradient_of_the_plain_batch(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """66 rows in steps of 8, the last of 2."""
    train, seen = write_rows(tmp_path / "train.csv", 66), list[Gradients]()
    for overhead, by_length in ((10**6, False), (2, False), (2, True)):
        monkeypatch.setattr(parts, "OVERHEAD_TOKENS", overhead)
        output = tmp_path / f"{overhead}{by_length}"
        seen.append(gradients_of(place, output, train, stages=1, group_by_length=by_length))
    plain, in_parts, grouped = seen
    assert plain.rows == in_parts.rows == grouped.rows == [*[8] * 8, 2] * 2
    assert [len(step) for step in plain.lengths] == [len(step) for step in grouped.lengths] == [1] * 18
    assert sum(len(step) > 1 for step in in_parts.lengths) >= 14
    assert [step[0] for step in in_parts.lengths] == [step[0] for step in plain.lengths]  # the longest row
    assert_alike(in_parts.gradients, plain.gradients)
    assert not torch.allclose(plain.gradients[0], plain.gradients[9], rtol=1e-3)  # shuffled anew
    assert not torch.allclose(plain.gradients[0], grouped.gradients[0], rtol=1e-3)


@pytest.mark.parametrize("by_length", [True, False])
def test_few_tokens_at_once_have_the_gradient_and_the_rows_of_the_plain_batch(
    by_length: bool, place: Path, tmp_path: Path
) -> None:
    """66 rows in steps of 8, the last of 2; in pairs of batches where a step has two."""
    train, steps = write_rows(tmp_path / "train.csv", 66), dict[Any, Gradients]()
    for most in (None, 24):
        for n in (1, 2):
            more: dict[str, Any] = {"batch_size": 8 // n, "grad_accumulation": n}
            output = tmp_path / f"{most} {n}"
            steps[most, n] = gradients_of(
                place, output, train, stages=1, group_by_length=by_length, micro_batch_tokens=most, **more
            )
    plain = steps[None, 1]
    for (most, _), found in steps.items():
        assert found.rows == plain.rows == [*[8] * 8, 2] * 2
        assert_alike(found.gradients, plain.gradients)
        if most is not None:
            assert min(len(step) for step in found.lengths[:8]) > 1
            assert all(n <= max(most, longest) for n, longest in found.tokens)
    assert max(n for n, _ in plain.tokens) > 24


@pytest.mark.parametrize("more", [{}, {"cache_gb": 0.0}, {"layers": (1,)}, {"group_by_length": False}])
def test_no_pass_of_a_run_has_more_tokens_at_once_than_it_may(
    more: dict[str, Any], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps, evaluation, caches, and trials of short cuts."""
    most, seen = 48, list[tuple[bool, int, int]]()

    def count(model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        seen.append((torch.is_grad_enabled(), ids.numel(), len(ids)))

    original = workbench.load_base

    def loaded(*args: Any, **kwargs: Any) -> Any:
        model = original(*args, **kwargs)
        model.base_model.register_forward_pre_hook(count, with_kwargs=True)
        return model

    monkeypatch.setattr(workbench, "load_base", loaded)
    train = write_rows(tmp_path / "train.csv", 66)
    few: dict[str, Any] = {
        "dev": str(place / "dev.csv"),
        "batch_size": 32,
        "micro_batch_tokens": most,
        **more,
    }
    tiny_tune(place / "model", tmp_path / "out", train, **few)
    assert {has_gradient for has_gradient, *_ in seen} == {True, False}
    for has_gradient, n_tokens, n_rows in seen:
        assert n_tokens <= (1 if has_gradient else 2) * most, (has_gradient, n_rows)


@pytest.mark.parametrize(("most", "n_rows"), [(None, 16), (400, 16), (50, 5), (10, 1), (1, 1)])
def test_dev_is_evaluated_with_twice_the_rows_and_at_most_twice_the_tokens(
    most: int | None, n_rows: int, tmp_path: Path
) -> None:
    rows = [{"input_ids": [1] * n, "labels": 0} for n in (3, 20)]
    stage = Stage("both", 1, 8, {}, rows, rows, collate=lambda rows: {}, micro_batch_tokens=most)
    settings = TuneSettings(
        model="m", output="o", train="t", device="cpu", schedule="linear", dtype="float32"
    )
    assert training_arguments(stage, settings, tmp_path).per_device_eval_batch_size == n_rows


class Steps(Losses):
    """Sees each step's rates, and the norm of its gradient after clipping."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[dict[float, float]] = []
        self.norms: list[float] = []
        self.decays = set[float]()

    def watch(self, trainer: Any) -> None:
        steps = self

        class Callback(TrainerCallback):
            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                groups = trainer.optimizer.param_groups
                steps.rates.append({group["initial_lr"]: group["lr"] for group in groups})
                steps.decays |= {group["weight_decay"] for group in groups}
                grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
                steps.norms.append(float(torch.nn.utils.get_total_norm(grads)))

        trainer.add_callback(Callback())


SCHEDULES = {
    "linear": lambda share: 1 - share,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "constant_with_warmup": lambda share: 1.0,
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_part_has_its_rate_decay_and_clipping_in_every_step(
    schedule: str, place: Path, tmp_path: Path
) -> None:
    """64 rows, batches of 8, two epochs: 16 steps, of which a quarter warms up."""
    seen, bases = Steps(), {"scale_lr": 1e-3, "shift_lr": 3e-3, "norm_lr": 4e-3, "stage2_head_lr": 2e-3}
    tiny_tune(
        place / "model", tmp_path / "out", place / "train.csv", seen, stages=1, weight_decay=0.05,
        warmup=0.25, max_grad_norm=1e-3, schedule=schedule, **bases,
    )  # fmt: skip
    assert len(seen.rates) == 16 and seen.decays == {0.05}
    for step, rates in enumerate(seen.rates):
        factor = step / 4 if step < 4 else SCHEDULES[schedule]((step - 4) / 12)
        assert rates == pytest.approx({base: base * factor for base in bases.values()}, rel=1e-6, abs=1e-12)
    assert max(seen.norms) == pytest.approx(1e-3, rel=1e-2)


def test_early_stopping_ends_a_stage_that_no_longer_gets_better(place: Path, tmp_path: Path) -> None:
    result = tiny_tune(
        place / "model", tmp_path / "out", place / "train.csv", dev=str(place / "dev.csv"), stages=1,
        epochs=50, lr=1e-12, stage2_head_lr=1e-12, early_stopping=2,
    )  # fmt: skip
    assert len(result.metrics["curve"]) < 10


def test_a_head_that_only_correlates_is_no_start_for_stage_2(place: Path, tmp_path: Path) -> None:
    train, dev = (
        write_rows(tmp_path / name, 48, label_of=lambda text: 10 + len(text) % 7 / 50, seed=seed)
        for seed, name in enumerate(("train.csv", "dev.csv"))
    )
    result = tiny_tune(
        place / "model",
        tmp_path / "out",
        train,
        dev=str(dev),
        problem_type="regression",
        head_epochs=8,
        epochs=1,
    )
    head = [entry for entry in result.metrics["curve"] if entry["stage"] == "head"]
    chosen = head[result.metrics["best_epoch"]["head"] - 1]
    assert chosen["dev_loss"] == min(entry["dev_loss"] for entry in head)
    assert chosen["scores"]["pearson"] < max(
        entry["scores"]["pearson"] for entry in head
    )  # noise is no start
    assert result.metrics["stage1_dev"] == chosen["scores"]


@pytest.mark.parametrize(
    ("problem_type", "label_of"),
    [
        ("regression", lambda text: len(text.split()) / 3),
        (
            "multi_label_classification",
            lambda text: "|".join(["long"] * (len(text) > 20) + ["w10"] * ("w1" in text)),
        ),
    ],
)
def test_other_kinds_of_task_train_and_predict(
    problem_type: str, label_of: Any, place: Path, tmp_path: Path
) -> None:
    train = write_rows(tmp_path / "train.csv", 64, label_of=lambda text: label_of(text) or "none")
    tiny_tune(place / "model", tmp_path / "out", train, problem_type=problem_type, stages=1, epochs=1)
    (prediction,) = load(tmp_path / "out").predict(["w10 w50"])
    if problem_type == "regression":
        assert prediction.label is None and isinstance(prediction.value, float)
    else:
        assert isinstance(prediction.label, tuple) and set(prediction.probabilities) >= {"long", "none"}


def test_pairs_train_and_predict(place: Path, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.csv", 48, pair=True)
    tiny_tune(place / "model", tmp_path / "out", train, stages=1, epochs=1)
    assert load(tmp_path / "out").predict(["w10"], ["w40"])[0].label in ("bad", "good")


@pytest.mark.parametrize("name", ["gpt2", "llama", "roberta", "distilbert", "t5"])
def test_other_families_train_even_decoders_without_a_padding_token(name: str, tmp_path: Path) -> None:
    tiny_folder(tmp_path / "model", name, with_pad=name not in ("gpt2", "llama"))
    train = write_rows(tmp_path / "train.csv", 32)
    tiny_tune(tmp_path / "model", tmp_path / "out", train, stages=2, head_epochs=1, epochs=1)
    classifier = load(tmp_path / "out")
    alone = classifier.logits(["w10"])
    beside_longer = classifier.logits(["w10", "w30 w31 w32 w33 w34 w35"])[:1]
    assert abs(alone - beside_longer).max() < 1e-5, "padding changes a prediction"


@pytest.mark.parametrize("name", ["bart", "t5", "roberta"])
def test_a_text_that_spells_a_special_token_trains_and_predicts(name: str, tmp_path: Path) -> None:
    tiny_folder(tmp_path / "model", name)
    train = write_rows(tmp_path / "train.csv", 32)
    train.write_text(train.read_text() + "w10 </s> w11,good\nw20<pad><s> w21,bad\n")
    tiny_tune(tmp_path / "model", tmp_path / "out", train, stages=1, epochs=1)
    classifier = load(tmp_path / "out")
    plain = classifier.logits(["w10 w11"])
    assert abs(classifier.logits(["w10 </s> w11"]) - plain).max() > 0  # pieces of `</s>` are words


@pytest.mark.parametrize("is_a_word", [False, True], ids=["its pieces are words", "it is a word"])
def test_no_text_becomes_a_special_token(is_a_word: bool, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder(tmp_path))
    if is_a_word:  # as in T5's vocabulary
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rows = tokenize(tokenizer, ["w10 </s> w11 <pad>"] * 2, ["w12 <s> <mask>", "w12"], max_length=64).rows
    whole = tokenize(tokenizer, ["w10 w11"], ["w12"], max_length=64).rows[0]["input_ids"]
    for row in rows:
        special = [id for id in row["input_ids"] if id in tokenizer.all_special_ids and id != 3]
        assert special == [BOS, EOS, EOS]
        assert [id for id in row["input_ids"] if id not in (3, 4)] == whole
        assert len(row["attention_mask"]) == len(row["input_ids"])


def test_rows_are_cut_alike_however_many_are_tokenised_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder(tmp_path))
    texts, pairs = [f"w{10 + n} " * (1 + 3 * n % 7) for n in range(7)], ["w12 w13"] * 7
    whole = [tokenize(tokenizer, texts, second, max_length=8) for second in (None, pairs)]
    monkeypatch.setattr(models, "ROWS_AT_ONCE", 2)
    assert [tokenize(tokenizer, texts, second, max_length=8) for second in (None, pairs)] == whole
    assert 0 < whole[0].n_truncated < 7 and tokenize(tokenizer, [], None, 8).rows == []


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("between", [" ", " " * 400])
def test_a_text_that_is_far_too_long_is_cut_before_it_is_tokenised_to_the_same_tokens(
    between: str, side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder(tmp_path), truncation_side=side)
    given, encode = list[int](), models._encode

    def counted(tokenizer: Any, texts: list[str], *args: Any, **more: Any) -> Any:
        given.extend(map(len, texts))
        return encode(tokenizer, texts, *args, **more)

    long = between.join(f"w{5 + index % 50}" for index in range(2000))
    texts = [long, "w10", long[:300], "w11 " * 99, "w11 " * 40, "w11 w12 " * 15]
    pairs = ["w12", long, "w10", "w11 " * 30, "w13 " * 30, long]
    lengths = (8, 9, 10)
    found = [tokenize(tokenizer, texts, second, n) for second in (None, pairs) for n in lengths]
    monkeypatch.setattr(models, "CHARACTERS_A_TOKEN", 10**9)
    assert [tokenize(tokenizer, texts, second, n) for second in (None, pairs) for n in lengths] == found
    monkeypatch.undo()
    monkeypatch.setattr(models, "_encode", counted)
    tokenize(tokenizer, [long] * 3, None, max_length=9)
    assert max(given) == (9 * models.CHARACTERS_A_TOKEN if between == " " else len(long))


def test_many_classes_set_more_aside_and_the_line_says_how_much(tmp_path: Path) -> None:
    rows = "".join(f"w{n},class {n // 3}\n" for n in range(60))
    (tmp_path / "train.csv").write_text("text,label\n" + rows)
    how = read_data(TuneSettings("m", "o", train=str(tmp_path / "train.csv"))).how_split
    assert "20 rows (33 %, where 10 % would be less than a row of each class) set aside" in how


def test_layers_may_be_a_range(unchecked: None) -> None:
    layers: Any = range(3, 6)
    assert TuneSettings("m", "o", train="t.csv", layers=layers).layers == (3, 4, 5)


def test_balanced_class_weights_average_one_over_the_rows(tmp_path: Path) -> None:
    train = write_rows(
        tmp_path / "train.csv", 40, label_of=lambda text: "rare" if "w10" in text else "common"
    )
    settings = TuneSettings("m", "o", train=str(train), class_weights="balanced")
    data = read_data(settings)
    weights = class_weights(settings, data)
    assert weights is not None and class_weights(TuneSettings("m", "o", train=str(train)), data) is None
    of_rows = weights[torch.tensor(data.train.labels)]
    assert of_rows.mean() == pytest.approx(1)
    assert weights[data.task.label_names.index("rare")] > weights[data.task.label_names.index("common")]


def test_balanced_class_weights_are_what_a_run_trains_with(place: Path, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "rows.csv", 48, label_of=lambda text: "rare" if "w10" in text else "common")
    for words in ("none", "balanced"):
        tiny_tune(place / "model", tmp_path / words, train, stages=1, epochs=1, class_weights=words)
    assert adapter_sha256(tmp_path / "none") != adapter_sha256(tmp_path / "balanced")


def test_balanced_class_weights_need_classes(tmp_path: Path, place: Path) -> None:
    train = write_rows(tmp_path / "train.csv", 40, label_of=lambda text: len(text) / 7)
    with pytest.raises(SettingsError, match="class_weights"):
        tiny_tune(place / "model", tmp_path / "out", train, class_weights="balanced")


IGNORED_BY_A_TASK: tuple[dict[str, Any], ...] = (
    *({name: "x"} for name in ("dev", "dev_split", "train_split", "text", "pair", "label")),
    *({"problem_type": "regression"}, {"threshold": 0.3}, {"quoting": True}),
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "epochs: expected a number from 1 on, received -1"),
        ({"epochs": 1.5}, "epochs: expected a whole number, received 1.5"),
        ({"grad_accumulation": True}, "grad_accumulation: expected a whole number, received True"),
        ({"lr": 0}, "lr: expected a number above 0, received 0"),
        *(
            ({name: value}, f"^{name}: expected a number, received '{value}'")
            for name, value in (("lr", "1e-3"), ("epochs", "3"), ("average", "0.9"))
        ),
        ({"dev_fraction": 1.0}, "dev_fraction"),
        ({"preset": "deep"}, "preset: expected one of"),
        ({"train": None}, "expected either train=FILE or task=NAME"),
        ({"train": None, "task": "cola"}, "needs data=FOLDER"),
        ({"warmup": 1.5}, "warmup"),
        ({"model": ""}, "model: expected a name or a path"),
        ({"stages": 3}, "stages: expected one of"),
        ({"seed": 2**32}, r"seed: expected a number below 2\*\*32, received 4294967296"),
        ({"layers": ()}, r"layers: expected one or more, received none; leave it out"),
        ({"sites": ()}, r"sites: expected one or more, received none; leave it out"),
        ({"dev": "d.csv", "dev_fraction": 0.2}, "dev_fraction: expected none beside rows for dev"),
        ({"stages": 1, "head_epochs": 3}, "head_epochs: expected none beside stages=1.*received 3; leave"),
        ({"stages": 1, "head_lr": 0.1}, "head_lr: expected none beside stages=1"),
        ({"stages": 1, "head_batch_size": 4}, "head_batch_size: expected none beside stages=1"),
        ({"stages": 1, "freeze_head": True}, "freeze_head: expected none beside stages=1"),
        ({"preset": "paper", "stage2_head_lr": 0.1}, "stage2_head_lr: expected none beside a head that is"),
        ({"data": "glue"}, "data: expected none beside train='t.csv'.*pass task with it, or leave it out"),
        *(
            (
                {"train": None, "task": "cola", "data": "glue", **ignored},
                f"{next(iter(ignored))}: expected none",
            )
            for ignored in IGNORED_BY_A_TASK
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")  # a choice that is none is a wrong type too
def test_settings_out_of_range_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TuneSettings(**{"model": "m", "output": "o", "train": "t.csv"} | settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "tpu"}, "device: expected one of"),
        ({"max_length": 65}, "max_length: expected at most 64"),
        ({"model": "no/such/folder"}, "no model in 'no/such/folder'.*or a name on the Hugging Face hub"),
        ({"train": "no.csv"}, "no.csv"),
        ({"text": "txet"}, "txet.*text"),
        ({"sites": ("attn",)}, "sites"),
        ({"threshold": 0.3}, "threshold: expected none for single_label_classification.*leave it out"),
    ],
)
def test_what_does_not_fit_is_told_before_training(
    settings: dict[str, Any], message: str, place: Path, tmp_path: Path
) -> None:
    chosen: dict[str, Any] = {
        "model": str(place / "model"), "output": str(tmp_path / "out"), "train": str(place / "train.csv"),
        "device": "cpu",
    } | settings  # fmt: skip
    with pytest.raises(HadamardError, match=message):
        tune(TuneSettings(**chosen), say=silent)
    assert not (tmp_path / "out").exists()


def test_a_dev_label_that_train_lacks_is_told(place: Path, tmp_path: Path) -> None:
    dev = write_rows(tmp_path / "dev.csv", 8, label_of=lambda text: "ugly")
    with pytest.raises(DataError, match="ugly"):
        tiny_tune(place / "model", tmp_path / "out", place / "train.csv", dev=str(dev))


def test_a_model_stored_as_pickle_is_refused(place: Path, tmp_path: Path) -> None:
    tiny_folder(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(SettingsError, match=r"pytorch_model\.bin.*pickle"):
        tiny_tune(tmp_path / "model", tmp_path / "out", place / "train.csv")


def test_a_model_with_code_of_its_own_is_refused(place: Path, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    give_code(folder, f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(SettingsError, match="code of its own, which is refused"):
        tiny_tune(folder, tmp_path / "out", place / "train.csv")
    assert not (tmp_path / "ran").exists()


def test_code_of_a_model_runs_where_it_is_allowed(place: Path, tmp_path: Path) -> None:
    """Its classes are BERT's under another name, which no family has."""
    folder = tiny_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    model = "AutoModelForSequenceClassification"
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", model: "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(
        "from transformers import BertConfig, BertForSequenceClassification\n"
        "class Config(BertConfig):\n    model_type = 'mine'\n"
        "class Model(BertForSequenceClassification):\n    config_class = Config\n"
    )
    with pytest.raises(HadamardError, match="'mine'"):
        tiny_tune(folder, tmp_path / "out", place / "train.csv", allow_remote_code=True)
    task = read_data(TuneSettings("m", "o", train=str(place / "train.csv"))).task
    assert "mine" in load_base(str(folder), task, 1, True).__module__


def test_roberta_takes_fewer_tokens_than_it_has_positions(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "roberta")
    task = read_data(TuneSettings("m", "o", train=str(write_rows(tmp_path / "t.csv", 20)))).task
    tokenizer = load_tokenizer(str(folder))
    assert longest_input(load_base(str(folder), task, 1), tokenizer) == 64 - 2


def test_a_model_of_one_type_of_tokens_gets_no_other_and_gpt2s_padding_is_on_the_right(
    tmp_path: Path,
) -> None:
    """As RoBERTas with BERT's tokenizer have it, and GPT-2's that generated."""
    folder = tiny_folder(tmp_path / "model", "roberta", type_vocab_size=1)
    given = AutoTokenizer.from_pretrained(folder)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    given.model_input_names = given.init_kwargs["model_input_names"] = names
    given.padding_side = given.init_kwargs["padding_side"] = "left"
    given.save_pretrained(folder)
    given = AutoTokenizer.from_pretrained(folder)
    assert (given.model_input_names, given.padding_side) == (names, "left")
    tokenizer = load_tokenizer(str(folder))
    tokenizer.save_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    rows = tokenize(tokenizer, ["w10", "w10 w20 w21"], ["w11", "w12"], 20).rows
    assert all(row.keys() == {"input_ids", "attention_mask"} for row in rows)
    assert tokenizer.pad(rows)["attention_mask"][0][-2:] == [0, 0]


def test_every_setting_has_its_docstring() -> None:
    help_of = field_help(TuneSettings)
    assert set(help_of) == set(TuneSettings.__dataclass_fields__)
    assert all(text.endswith(".") for text in help_of.values())


@pytest.mark.parametrize(("field", "column"), [("head_epochs", 1), ("epochs", 2)])
def test_the_help_says_the_epochs_of_the_table(field: str, column: int) -> None:
    first, *others, last = EPOCHS_BY_ROWS
    words = [f"{first[column]} up to {first[0]:,} training rows"]
    words += [f"{row[column]} up to {row[0]:,}" for row in others]
    assert f"None: {', '.join(words)}, else {last[column]}." in field_help(TuneSettings)[field]


@pytest.mark.parametrize("field", ["lr", "head_lr", "stage2_head_lr"])
def test_the_help_says_the_rate_of_every_preset(field: str) -> None:
    (said,) = re.findall(r"the preset's, ([\de-]+)\.", field_help(TuneSettings)[field])
    assert {getattr(preset, field) for preset in PRESETS.values()} == {float(said)}


def test_tune_takes_another_delimiter(place: Path, tmp_path: Path) -> None:
    rows = {name: (place / f"{name}.csv").read_text() for name in ("train", "dev")}
    for name, text in rows.items():
        (tmp_path / f"{name}.csv").write_text(text.replace(",", "|"))
    words: dict[str, Any] = {"stages": 1, "epochs": 1}
    files = [
        {"train": folder / "train.csv", "dev": str(folder / "dev.csv"), "delimiter": delimiter}
        for folder, delimiter in ((place, None), (tmp_path, "|"))
    ]
    results = [
        tiny_tune(place / "model", tmp_path / f"out-{index}", **given, **words)
        for index, given in enumerate(files)
    ]
    assert results[0].metrics["dev"] == results[1].metrics["dev"]
    assert results[1].run["settings"]["delimiter"] == "|"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_given_setting_wins_over_preset_and_table(preset: Any) -> None:
    given = resolve(TuneSettings("m", "o", train="t", preset=preset, lr=0.1, epochs=7, freeze_head=True), 100)
    assert (given.lr, given.scale_lr, given.epochs, given.freeze_head) == (0.1, 0.1, 7, True)
    by_table = resolve(TuneSettings("m", "o", train="t", preset=preset), 100)
    assert by_table.sites == PRESETS[preset].sites
    assert resolve(by_table, 100) == by_table
    one_stage = resolve(TuneSettings("m", "o", train="t", preset=preset, stages=1), 100)
    assert (one_stage.freeze_head, one_stage.head_lr, resolve(one_stage, 100)) == (False, None, one_stage)
    assert (by_table.head_epochs, by_table.epochs) == EPOCHS_BY_ROWS[0][1:]


def test_the_best_epoch_is_the_highest_score_then_the_lowest_loss_then_the_first() -> None:
    def entry(epoch: int, value: float, loss: float, metric: str = "accuracy") -> dict[str, Any]:
        return {"epoch": epoch, "dev_loss": loss, "scores": {metric: value}}

    curve = [entry(1, 0.5, 1), entry(2, 0.7, 2), entry(3, 0.7, 1), entry(4, 0.7, 1)]
    assert best_epoch(curve, "accuracy")["epoch"] == 3
    assert best_epoch([entry(1, 0.5, 1, "rmse"), entry(2, 0.7, 1, "rmse")], "rmse")["epoch"] == 1
    assert best_epoch([entry(1, float("nan"), 1), entry(2, 0.1, 1)], "accuracy")["epoch"] == 2
    flat = [entry(epoch, 0.5, 1) for epoch in (1, 2, 3)]
    assert is_over(flat, 10, "accuracy", 2) and not is_over(flat[:2], 10, "accuracy", 2)
    assert is_over(flat, 3, "accuracy", 0) and not is_over(flat, 4, "accuracy", 0)


def test_the_training_loss_of_an_epoch_is_the_mean_over_its_steps() -> None:
    history = [
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 4.0},
        {"step": 3, "eval_loss": 0.5, "eval_accuracy": 0.6, "eval_runtime": 1.0},
        {"step": 6, "loss": 1.5},
        {"step": 6, "eval_loss": 0.4, "eval_accuracy": 0.7},
        {"step": 6, "train_loss": 2.0},
    ]
    curve = read_curve(history)
    assert [entry["loss"] for entry in curve] == [2.0, 1.5]
    assert [entry["scores"] for entry in curve] == [{"accuracy": 0.6}, {"accuracy": 0.7}]


def test_without_dropout_the_backbone_trains_as_if_it_had_none(tmp_path: Path) -> None:
    train, shas = write_rows(tmp_path / "train.csv", 48), {}
    for name, rate, dropout in (("none", 0.0, True), ("off", 0.5, False), ("on", 0.5, True)):
        rates = {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate, "classifier_dropout": 0.0}
        model = tiny_folder(tmp_path / f"model-{name}", **rates)
        settings: dict[str, Any] = {"dropout": dropout, "cache_gb": 0, "epochs": 1, "head_epochs": 1}
        tiny_tune(model, tmp_path / name, train, **settings)
        shas[name] = adapter_sha256(tmp_path / name)
    assert shas["off"] == shas["none"] != shas["on"]
