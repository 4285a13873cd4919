"""Laws of shared adapters: tuning starts where it is told to, and stays in the directions it is given."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from command import hadamard
from hadamard_adapter.analysis.prune import settings_and_data
from hadamard_adapter.analysis.sharing import save_basis, save_mean, vector_of
from hadamard_adapter.errors import AdapterError, SettingsError
from hadamard_adapter.offset_name import is_offset, split
from hadamard_adapter.tasks import score
from hadamard_adapter.tuning import Progress, TuneSettings, load, training
from hadamard_adapter.tuning import shortcuts as shortcuts_room
from hadamard_adapter.tuning import together as together_room
from hadamard_adapter.tuning.averaging import averaged
from hadamard_adapter.tuning.shared import (
    BasisAdamW,
    coefficients_in,
    read_basis,
    trained_offsets,
    write_basis,
)
from hadamard_adapter.tuning.together import OneTaskBlocks, tune_together
from hadamard_adapter.tuning.weights import WEIGHTS
from tuning_help import Stop, adapter_sha256, give_code, mean_of, silent, tiny_folder, tiny_tune, write_rows

ENDS: tuple[Any, ...] = (
    lambda text: str("w1" in text),
    lambda text: str("w2" in text),
    lambda text: str(len(text) > 24),
)
"""What the labels of three tasks ask."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, three tasks and their adapters."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("shared")
    tiny_folder(folder / "model")
    for index, label_of in enumerate(ENDS):
        rows = write_rows(folder / f"{index}.csv", 64, seed=index, label_of=label_of)
        tiny_tune(folder / "model", folder / str(index), rows, epochs=2, lr=0.05)
    return folder


def folders(place: Path, *names: int) -> list[str]:
    return [str(place / str(name)) for name in names or (0, 1, 2)]


def vector(folder: Path | str) -> np.ndarray:
    return vector_of(load_file(Path(folder) / WEIGHTS))


def tuned(place: Path, output: Path, **settings: Any) -> dict[str, Any]:
    settings.setdefault("epochs", 1)
    return tiny_tune(place / "model", output, place / "0.csv", **settings).metrics


def test_a_mean_is_the_mean_of_the_offsets_and_has_no_head(place: Path, tmp_path: Path) -> None:
    save_mean(folders(place), tmp_path / "mean")
    expected = np.mean([vector(folder) for folder in folders(place)], axis=0)
    np.testing.assert_allclose(vector(tmp_path / "mean"), expected, rtol=1e-6)
    tensors = load_file(tmp_path / "mean" / WEIGHTS)
    assert all(map(is_offset, tensors))
    assert json.loads((tmp_path / "mean" / "shared.json").read_text()) == {"mean_of": ["0", "1", "2"]}


def test_tuning_starts_from_the_offsets_that_it_is_given(place: Path, tmp_path: Path) -> None:
    """With a rate of next to nothing it stays there; stage 1 has seen the model with these offsets."""
    save_mean(folders(place, 1, 2), tmp_path / "mean")
    tuned(place, tmp_path / "near", start=str(tmp_path / "mean"), lr=1e-12)
    np.testing.assert_allclose(vector(tmp_path / "near"), vector(tmp_path / "mean"), atol=1e-6)
    assert not np.allclose(vector(tmp_path / "mean"), 0, atol=1e-3)
    tuned(place, tmp_path / "base", lr=1e-12)
    near, base = (load_file(tmp_path / name / "head" / WEIGHTS) for name in ("near", "base"))
    assert any(not torch.equal(near[name], base[name]) for name in near if ".hadamard_" not in name)


def test_an_adapter_on_a_basis_stays_in_its_span(place: Path, tmp_path: Path) -> None:
    save_basis(folders(place), 2, tmp_path / "basis.safetensors")
    metrics = tuned(place, tmp_path / "out", basis=str(tmp_path / "basis.safetensors"), lr=0.05)
    basis = read_basis(str(tmp_path / "basis.safetensors"))
    rows = np.stack([vector_of({n: part[j] for n, part in basis.directions.items()}) for j in range(2)])
    own = vector(tmp_path / "out")
    found, *_ = np.linalg.lstsq(rows.T, own, rcond=None)
    np.testing.assert_allclose(rows.T @ found, own, atol=1e-6)
    np.testing.assert_allclose(metrics["coefficients"], found, atol=1e-5)
    assert metrics["adapter_parameters"] == 2 and np.abs(found).max() > 1e-3
    assert load(tmp_path / "out").predict(["w10"])  # an adapter like any other


def test_directions_are_orthogonal_and_as_long_as_adapters_on_average(place: Path, tmp_path: Path) -> None:
    shares = save_basis(folders(place), 3, tmp_path / "basis.safetensors")
    np.testing.assert_allclose(shares, 1.0, rtol=1e-5)  # as many directions as adapters
    basis = read_basis(str(tmp_path / "basis.safetensors"))
    rows = np.stack([vector_of({n: part[j] for n, part in basis.directions.items()}) for j in range(3)])
    mean_square = np.mean([np.square(vector(folder)).sum() for folder in folders(place)])
    np.testing.assert_allclose(rows @ rows.T, mean_square * np.eye(3), atol=1e-4 * mean_square)
    offsets, _ = split(load_file(place / "0" / WEIGHTS))
    own = coefficients_in(basis.directions, offsets)
    for name, part in basis.directions.items():
        torch.testing.assert_close(torch.tensordot(own, part, dims=1), offsets[name], atol=1e-5, rtol=1e-4)


def test_a_step_on_a_basis_is_adamw_in_the_coefficients() -> None:
    """The same loss as a function of the coefficients themselves, on plain AdamW."""
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(6, 2, generator=generator))
    target = torch.randn(6, generator=generator)
    directions = {"a": (2 * q[:4].T).contiguous(), "b": (2 * q[4:].T).contiguous()}
    offsets = {name: torch.nn.Parameter(torch.zeros(n)) for name, n in (("a", 4), ("b", 2))}
    plain = torch.nn.Parameter(torch.zeros(2))
    ours = BasisAdamW(offsets, directions, 0.1, decay=0.9, weight_decay=0.01)
    steps: list[torch.Tensor] = []
    theirs = torch.optim.AdamW([plain], lr=0.1, weight_decay=0.01)
    for _ in range(20):
        loss = (torch.cat([offsets["a"], offsets["b"]]) - target).pow(4).sum()
        for parameter in offsets.values():
            parameter.grad = None
        loss.backward()
        ours.step()
        steps.append(ours.coefficients.detach().clone())
        theirs.zero_grad()
        (2 * q @ plain - target).pow(4).sum().backward()
        theirs.step()
    assert plain.abs().min() > 0.1
    torch.testing.assert_close(ours.coefficients.data, plain.data, atol=1e-4, rtol=1e-4)
    last = {name: parameter.detach().clone() for name, parameter in offsets.items()}
    with averaged(ours):
        for name, parameter in offsets.items():
            expected = torch.tensordot(mean_of(steps, 0.9).float(), directions[name], dims=1)
            torch.testing.assert_close(parameter.data, expected, atol=1e-5, rtol=1e-4)
            assert not torch.allclose(parameter, last[name], atol=1e-3)
    assert all(torch.allclose(parameter, last[name]) for name, parameter in offsets.items())


@pytest.mark.parametrize("name", ["start", "basis"])
def test_a_run_is_told_by_the_content_it_starts_from_not_by_its_path(
    place: Path, tmp_path: Path, name: str
) -> None:
    def make(target: Path, *names: int) -> str:
        if name == "start":
            save_mean(folders(place, *names), target)
            return str(target)
        save_basis(folders(place, *names), 2, target.with_suffix(".safetensors"))
        return str(target.with_suffix(".safetensors"))

    tuned(place, tmp_path / "a", **{name: make(tmp_path / "first", 0, 1)})
    before = adapter_sha256(tmp_path / "a")
    tuned(place, tmp_path / "a", **{name: make(tmp_path / "copy", 0, 1)})  # finished already
    tuned(place, tmp_path / "b", **{name: str(next(tmp_path.glob("copy*")))})
    assert adapter_sha256(tmp_path / "b") == before == adapter_sha256(tmp_path / "a")
    for other in ({name: make(tmp_path / "other", 1, 2)}, {}):
        with pytest.raises(SettingsError, match="other settings"):
            tuned(place, tmp_path / "a", **other)


class Stopping(Progress):
    """Stops a run within stage 2."""

    stage = ""

    def start(self, stage: str, n_steps: int, step: int) -> None:
        self.stage = stage

    def epoch(self, epoch: int, scores: dict[str, float]) -> None:
        if self.stage == "adapter" and epoch == 2:
            raise Stop


def test_a_stopped_run_on_a_basis_goes_on_to_the_same_adapter(place: Path, tmp_path: Path) -> None:
    save_basis(folders(place), 2, tmp_path / "basis.safetensors")
    settings: dict[str, Any] = {"basis": str(tmp_path / "basis.safetensors"), "epochs": 3, "lr": 0.05}
    rows = place / "0.csv"
    with pytest.raises(Stop):
        tiny_tune(place / "model", tmp_path / "out", rows, Stopping(), **settings)
    tiny_tune(place / "model", tmp_path / "out", rows, **settings)
    tiny_tune(place / "model", tmp_path / "whole", rows, **settings)
    assert adapter_sha256(tmp_path / "out") == adapter_sha256(tmp_path / "whole")


def two_tasks(place: Path, **settings: Any) -> list[TuneSettings]:
    """The settings of tasks 0 and 1."""
    return [
        TuneSettings(str(place / "model"), str(i), str(place / f"{i}.csv"), quiet=True, **settings)
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def together(place: Path) -> dict[str, Any]:
    """Three tasks with one adapter: two of classes, one of numbers."""
    rows = write_rows(place / "length.csv", 48, seed=5, label_of=lambda text: len(text) / 8)
    kinds = {"first": place / "0.csv", "second": place / "1.csv", "length": rows}
    common: dict[str, Any] = {"epochs": 3, "head_epochs": 2, "lr": 0.02, "batch_size": 16, "dtype": "float32"}
    types: dict[str, Any] = {"length": "regression"}
    settings = [
        TuneSettings(
            str(place / "model"),
            name,
            str(path),
            problem_type=types.get(name),
            device="cpu",
            quiet=True,
            **common,
        )
        for name, path in kinds.items()
    ]
    return tune_together(settings, place / "together", silent)


def test_one_adapter_for_several_tasks_has_the_same_offsets_and_own_heads(together: dict[str, Any]) -> None:
    tensors = {name: load_file(result.output / WEIGHTS) for name, result in together.items()}
    first, _ = split(tensors["first"])
    assert any(bool(tensor.any()) for tensor in first.values())
    for own in tensors.values():
        assert all(torch.equal(own[name], tensor) for name, tensor in first.items())
    heads = {name: own.keys() - first.keys() for name, own in tensors.items()}
    assert any(not torch.equal(tensors["first"][n], tensors["second"][n]) for n in heads["first"])


def test_each_folder_of_tasks_tuned_together_scores_as_its_metrics_say(
    together: dict[str, Any], place: Path
) -> None:
    for result in together.values():
        metrics, curve = result.metrics, result.metrics["curve"]
        chosen = metrics["best_epoch"]["adapter"]
        entry = next(e for e in curve if e["stage"] == "adapter" and e["epoch"] == chosen)
        assert metrics["dev"] == entry["scores"] and len([e for e in curve if e["stage"] == "adapter"]) == 3
        loaded = load(result.output)
        settings, data = settings_and_data(result.output)
        found = score(loaded.task, loaded.logits(data.dev.texts, data.dev.pairs), data.dev.labels or [])
        assert found == pytest.approx(metrics["dev"], abs=1e-6)
        assert settings.output == str(result.output)
    means = [
        sum(r.metrics["curve"][-3 + e]["scores"][r.metrics["metric"]] for r in together.values())
        for e in range(3)
    ]
    assert means.index(max(means)) + 1 == together["first"].metrics["best_epoch"]["adapter"]


def test_the_epoch_whose_mean_score_is_best_is_what_all_tasks_get(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores are made to fall, so that the first epoch is the best."""
    seen: list[dict[str, torch.Tensor]] = []

    def falling(bench: Any) -> tuple[dict[str, float], float]:
        seen.append({name: p.detach().clone() for name, p in trained_offsets(bench.model).items()})
        return {name: -float(len(seen)) for name in bench.data.task.metrics}, 0.0

    monkeypatch.setattr("hadamard_adapter.tuning.together._scored", falling)
    results = tune_together(two_tasks(place, epochs=2, lr=0.05), tmp_path, silent)
    assert len(seen) == 4 and any(not torch.equal(seen[0][name], seen[-1][name]) for name in seen[0])
    for result in results.values():
        own = load_file(result.output / WEIGHTS)
        assert all(torch.equal(own[name], tensor) for name, tensor in seen[0].items())


def test_tasks_together_draw_rows_as_the_settings_say(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def blocks(rows: Any, rows_a_step: int, seed: int, by_length: bool) -> Any:
        seen.append(by_length)
        return original(rows, rows_a_step, seed, by_length)

    original = together_room.OneTaskBlocks
    monkeypatch.setattr(together_room, "OneTaskBlocks", blocks)
    for by_length in (True, False):
        settings = two_tasks(place, epochs=1, device="cpu", group_by_length=by_length)
        tune_together(settings, tmp_path / str(by_length), silent)
    assert seen == [True, False]


def test_the_batches_of_a_step_of_tasks_together_are_of_one_task(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[set[int]] = []
    trainer: Any = together_room._TogetherTrainer
    original = trainer.get_batch_samples

    def seen(self: Any, *args: Any, **kwargs: Any) -> Any:
        batches, n = original(self, *args, **kwargs)
        steps.append({int(batch["task"]) for batch in batches})
        return batches, n

    monkeypatch.setattr(trainer, "get_batch_samples", seen)
    settings = two_tasks(place, epochs=2, batch_size=8, grad_accumulation=2, device="cpu")
    tune_together(settings, tmp_path / "out", silent)
    assert {*map(frozenset, steps)} == {frozenset({0}), frozenset({1})}


def test_tasks_together_keep_less_for_backward_where_the_settings_say_so(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    original = shortcuts_room.checkpointed

    def seen(model: Any) -> Any:
        asked.append(any(".hadamard_" in name for name, p in model.named_parameters() if p.requires_grad))
        return original(model)

    monkeypatch.setattr(shortcuts_room, "checkpointed", seen)
    results: list[Any] = []
    for is_on in (False, True):
        settings = two_tasks(place, epochs=1, device="cpu", gradient_checkpointing=is_on)
        found = tune_together(settings, tmp_path / str(is_on), silent)
        results.append(load_file(found["0"].output / WEIGHTS))
    assert asked.count(True) == 2  # the models of stage 2, in which the adapter trains
    torch.testing.assert_close(results[0], results[1])


def test_tasks_together_compute_few_tokens_at_once_where_the_settings_say_so(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, n_parts = list[Any](), list[int]()
    original = training.parts_of

    def counted(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        n_parts.append(len(found))
        return found

    monkeypatch.setattr(training, "parts_of", counted)
    for most in (None, 16):
        settings = two_tasks(place, epochs=1, device="cpu", dtype="float32", micro_batch_tokens=most)
        found = tune_together(settings, tmp_path / str(most), silent)
        results.append(load_file(found["0"].output / WEIGHTS))
        assert (max(n_parts, default=0) > 1) == (most is not None)
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-5)


def test_tasks_are_shared_by_their_own_rows_or_not_at_all(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in (0, 1):  # typed in folders of their own: both say train.csv
        (tmp_path / f"in{index}").mkdir()
        shutil.copy(place / f"{index}.csv", tmp_path / f"in{index}" / "train.csv")
        monkeypatch.chdir(tmp_path / f"in{index}")
        tiny_tune(place / "model", tmp_path / str(index), Path("train.csv"), epochs=1)
    words = ("share", "train", "--adapters", f"{tmp_path / '0'},{tmp_path / '1'}", "--output", "together")
    found = hadamard(*words)
    assert found.code == 2 and "0' was tuned on other rows than 'train.csv' holds now" in found.err
    for index in (0, 1):
        run = json.loads((tmp_path / str(index) / "run.json").read_text())
        run["settings"]["train"] = str(tmp_path / f"in{index}" / "train.csv")
        (tmp_path / str(index) / "run.json").write_text(json.dumps(run))
    found = hadamard(*words, "--epochs", 1)
    assert found.code == 0, found.err
    assert sorted(path.name for path in Path("together").iterdir()) == ["0", "1"]


def test_sharing_runs_no_code_of_a_model_that_an_adapter_alone_allows(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "model", tmp_path / "model")
    for name in ("0", "1"):
        shutil.copytree(place / name, tmp_path / name)
        run = json.loads((tmp_path / name / "run.json").read_text())
        run["settings"] |= {"model": str(tmp_path / "model"), "allow_remote_code": True}
        (tmp_path / name / "run.json").write_text(json.dumps(run))
    give_code(tmp_path / "model")
    words = ("share", "train", "--adapters", f"{tmp_path / '0'},{tmp_path / '1'}", "--output", tmp_path / "t")
    found = hadamard(*words)
    assert found.code == 2 and "--allow-remote-code" in found.err
    with pytest.raises(SystemExit, match="this code ran"):
        hadamard(*words, "--allow-remote-code")


@pytest.mark.parametrize("where", ["write_final", "publish"])
def test_tasks_together_that_were_stopped_late_end_with_the_same_command(
    where: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = two_tasks(place, epochs=1)
    n_calls, original = [0], getattr(together_room, where)

    def stopped(*args: Any) -> None:
        n_calls[0] += 1
        if n_calls[0] == 2:
            raise KeyboardInterrupt
        original(*args)

    monkeypatch.setattr(together_room, where, stopped)
    with pytest.raises(KeyboardInterrupt):
        tune_together(settings, tmp_path / "out", silent)
    monkeypatch.undo()
    if where == "publish":  # all is trained: nothing is trained again
        monkeypatch.setattr(together_room, "_train", None)
    found = tune_together(settings, tmp_path / "out", silent)
    one, other = (split(load_file(result.output / WEIGHTS))[0] for result in found.values())
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0", "1"]


def test_a_step_of_tasks_together_sees_rows_of_one_task_and_an_epoch_all_rows() -> None:
    rows = [{"task": index % 3 // 2, "input_ids": [0] * (1 + index % 7)} for index in range(50)]
    sampler = OneTaskBlocks(rows, 8, seed=0)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert len(orders[-1]) == len(sampler) and set(orders[-1]) == set(range(50))
        blocks = [orders[-1][at : at + 8] for at in range(0, len(sampler), 8)]
        assert all(len({rows[index]["task"] for index in block}) == 1 for block in blocks)
    assert orders[0] == orders[2] != orders[1]


def test_what_does_not_fit_is_refused_before_any_training(place: Path, tmp_path: Path) -> None:
    save_mean(folders(place), tmp_path / "mean")
    save_basis(folders(place), 2, tmp_path / "basis.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "else.safetensors")
    tiny_folder(tmp_path / "model", seed=1)
    mean, basis, rows = str(tmp_path / "mean"), str(tmp_path / "basis.safetensors"), place / "0.csv"
    cases: list[tuple[str, dict[str, Any]]] = [
        ("tune with the sites, layers and norms", {"start": mean, "sites": ("attention",)}),
        ("tune with the sites, layers and norms", {"basis": basis, "layers": (1,)}),
        ("no basis", {"basis": str(tmp_path / "none")}),
        ("received another", {"basis": str(tmp_path / "else.safetensors")}),
        ("no adapter in", {"start": str(tmp_path / "none")}),
        ("was tuned with position 'output'", {"start": mean, "position": "input"}),
        ("was tuned with position 'output'", {"basis": basis, "position": "input"}),
    ]
    for message, settings in cases:
        with pytest.raises(AdapterError, match=message):
            tiny_tune(place / "model", tmp_path / "out", rows, epochs=1, **settings)
    other: dict[str, Any]
    for other in ({"start": mean}, {"basis": basis}):
        with pytest.raises(AdapterError, match="belongs to another base model"):
            tiny_tune(tmp_path / "model", tmp_path / "out", rows, epochs=1, **other)
    assert not (tmp_path / "out").exists()
    more: dict[str, Any]
    for more in ({"start": mean}, {"scale_lr": 0.1}):
        with pytest.raises(SettingsError, match="expected none beside basis"):
            TuneSettings("m", "o", train="t", basis=basis, **more)
    for position in ("input", "output"):
        tuned(place, tmp_path / position, position=position, sites=("attention",))
    with pytest.raises(AdapterError, match=r"same position, received .*input' \(input\) and .*\(output\)"):
        save_mean([str(tmp_path / "input"), str(tmp_path / "output")], tmp_path / "both")
    on_basis = [TuneSettings(str(place / "model"), name, str(rows), basis=basis) for name in "ab"]
    with pytest.raises(SettingsError, match="name one that was tuned without --basis first"):
        tune_together(on_basis, tmp_path / "both", silent)
    with pytest.raises(SettingsError, match=r"^--directions: expected 1 to 3"):
        save_basis(folders(place), 4, tmp_path / "wide.safetensors")
    save_basis(folders(place), 1, tmp_path / "new" / "newer" / "b.safetensors")
    assert (tmp_path / "new" / "newer" / "b.safetensors").is_file()


def test_a_basis_is_written_whole_and_read_back(place: Path, tmp_path: Path) -> None:
    save_basis(folders(place), 2, tmp_path / "a.safetensors")
    basis = read_basis(str(tmp_path / "a.safetensors"))
    write_basis(tmp_path / "b.safetensors", basis)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert basis.made_from == ("0", "1", "2") and basis.n == 2
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes()[:-8])
    with pytest.raises(AdapterError, match="damaged"):
        read_basis(str(tmp_path / "a.safetensors"))


def test_the_commands_make_what_tune_takes(place: Path, tmp_path: Path) -> None:
    names, basis = ",".join(folders(place)), tmp_path / "b.safetensors"
    found = hadamard("share", "basis", "--adapters", names, "--directions", 2, "--output", basis)
    assert found.code == 0 and "2 directions in" in found.err, found.err
    found = hadamard("share", "mean", "--adapters", names, "--output", tmp_path / "mean")
    assert found.code == 0, found.err
    words = (
        *("tune", "--model", place / "model", "--train", place / "0.csv"),
        *("--epochs", 1, "--head-epochs", 1),
    )
    found = hadamard(*words, "--start", tmp_path / "mean", "--output", tmp_path / "out")
    assert found.code == 0, found.err
    assert "tuned from `mean`" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    found = hadamard("share", "train", "--adapters", names, "--epochs", 1, "--output", tmp_path / "all")
    assert found.code == 0, found.err
    assert {path.name for path in (tmp_path / "all").iterdir()} == {"0", "1", "2"}
    found = hadamard("share", "train", "--adapters", names, "--epochs", 1, "--output", tmp_path / "all")
    assert found.code == 0 and "epoch 1" not in found.err, found.err  # finished already
    foreign = shutil.copytree(folders(place)[0], tmp_path / "foreign") / "adapter_config.json"
    foreign.write_text(json.dumps(json.loads(foreign.read_text()) | {"base_fingerprint": "another"}))
    two = ("--adapters", f"{folders(place)[1]},{foreign.parent}")
    for bad in (("share", "train", *two, "--output", tmp_path / "x"), ("prune", *two)):
        found = hadamard(*bad)
        assert found.code == 2 and "expected adapters of one base model" in found.err, found.err
    for bad in (
        ("share", "train", "--adapters", names, "--epochs", 2, "--output", tmp_path / "all"),
        ("share", "train", "--adapters", f"{tmp_path},{place}", "--output", tmp_path / "x"),
        ("share", "mean", "--adapters", folders(place)[0], "--output", tmp_path / "x"),
        ("share", "mean", "--adapters", ",".join([folders(place)[0]] * 2), "--output", tmp_path / "x"),
        ("share", "mean", "--adapters", names, "--output", tmp_path / "mean"),
        ("share", "basis", "--adapters", names, "--output", tmp_path / "x.bin"),
        (*words, "--start", tmp_path / "none", "--output", tmp_path / "x"),
    ):
        found = hadamard(*bad)
        assert found.code == 2 and found.err.count("error: ") == 1, found.err
        assert "Traceback" not in found.err and not (tmp_path / "x").exists()


def test_a_bad_number_is_named_as_it_was_typed(place: Path, tmp_path: Path) -> None:
    names, output = ",".join(folders(place)), ("--output", tmp_path / "x.safetensors")
    for verb, option, value, expected in (
        ("basis", "--directions", 0, "expected a number from 1 on, received 0"),
        ("basis", "--directions", 4, "expected 1 to 3, the number of independent adapters, received 4"),
        ("train", "--lr", -1, "expected a number above 0, received -1.0"),
        ("train", "--lr", "nan", "expected a number above 0, received nan"),
        ("train", "--epochs", 0, "expected a number from 1 on, received 0"),
    ):
        found = hadamard("share", verb, "--adapters", names, option, value, *output)
        assert found.code == 2 and f"error: {option}: {expected}" in found.err, found.err


def test_a_mean_is_no_adapter_to_prune_or_to_train_with_others(place: Path, tmp_path: Path) -> None:
    save_mean(folders(place), tmp_path / "mean")
    told = f"received a mean of adapters, .*no head and no rows.*hadamard tune --start {tmp_path / 'mean'}"
    others = f"{tmp_path / 'mean'},{folders(place)[0]}"
    for words in (
        ("prune", "--adapters", tmp_path / "mean"),
        ("share", "train", "--adapters", others, "--output", tmp_path / "x"),
    ):
        found = hadamard(*words)
        assert found.code == 2 and re.search(told, found.err), found.err
