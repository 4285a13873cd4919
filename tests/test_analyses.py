"""The paper's analyses: laws of the functions over arrays, and the commands on tiny adapters."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter_help import adapted
from bench_help import add
from command import hadamard, tuned
from hadamard_adapter.analysis import knobs, outputs, patterns, prune, sharing
from hadamard_adapter.analysis.offsets import flat, layer_of, made_with, read_offsets, stacked, tasks_of
from hadamard_adapter.errors import AdapterError, SettingsError
from hadamard_adapter.offset_name import is_offset
from hadamard_adapter.tasks import Examples
from hadamard_adapter.tuning import load
from hadamard_adapter.tuning.resume import open_workspace
from models import tiny_inputs, tiny_model
from tuning_help import give_code, tiny_folder

NAME = "base_model.model.bert.encoder.layer.{}.attention.output.dense.hadamard_{}"
RANDOM = np.random.default_rng(0).normal(size=(6, 40))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A copy of the tiny adapter with the sign of every offset changed."""
    folder = tmp_path / "other"
    folder.mkdir()
    for path in tuned().adapter.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "adapter_model.safetensors")
    changed = {name: -t if ".hadamard_" in name else t for name, t in tensors.items()}
    save_file(changed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


# Adapters as arrays


def test_a_layer_that_an_adapter_leaves_out_is_a_row_of_zeros() -> None:
    one = {NAME.format(index, "shift"): torch.full((3,), 1.0 + index) for index in range(3)}
    two = {NAME.format(1, "shift"): torch.ones(3), "classifier.weight": torch.ones(2, 3)}
    (array,) = stacked([one, two]).values()
    assert array.shape == (2, 3, 3)
    assert array[0, :, 0].tolist() == [1.0, 2.0, 3.0] and array[1, :, 0].tolist() == [0.0, 1.0, 0.0]


def test_every_offset_of_a_file_is_in_the_table_once() -> None:
    tensors = load_file(tuned().adapter / "adapter_model.safetensors")
    offsets = [t for name, t in tensors.items() if ".hadamard_" in name]
    found = flat(read_offsets([tuned().adapter]))
    assert found.shape == (1, sum(t.numel() for t in offsets))
    assert np.square(found).sum() == pytest.approx(sum(float(t.square().sum()) for t in offsets), rel=1e-5)


def test_vectors_of_two_widths_are_refused() -> None:
    with pytest.raises(AdapterError, match=r"expected one length, received \[2, 3\]"):
        stacked([{NAME.format(0, "scale"): torch.ones(n)} for n in (2, 3)])


# Patterns


def test_principal_components_keep_all_distances_and_shares_sum_to_one() -> None:
    points, shares = patterns.principal_components(RANDOM)
    assert points.shape == (6, 5) and shares.sum() == pytest.approx(1)
    assert (np.diff(shares) <= 0).all()
    np.testing.assert_allclose(
        np.linalg.norm(points[:, None] - points[None], axis=-1),
        np.linalg.norm(RANDOM[:, None] - RANDOM[None], axis=-1),
    )


def test_components_do_not_depend_on_where_the_adapters_lie() -> None:
    moved, _ = patterns.principal_components(RANDOM + 5.0)
    np.testing.assert_allclose(moved, patterns.principal_components(RANDOM)[0], atol=1e-10)


# Outputs


def made_by(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Outputs before, and after an element-wise polynomial of that degree."""
    rng = np.random.default_rng(degree)
    x = rng.normal(size=(200, 5))
    return x, x + sum(rng.normal(size=5) * x**power for power in range(degree + 1))


@pytest.mark.parametrize(("degree", "first"), [(0, "shift"), (1, "linear"), (2, "quadratic"), (3, "cubic")])
def test_a_change_is_explained_by_the_fit_of_its_degree_and_by_no_lower_one(degree: int, first: str) -> None:
    x, y = made_by(degree)
    found = {
        name: outputs.explained(x[100:], y[100:], fit(x[:100], y[:100], x[100:]))
        for name, fit in outputs.FITS.items()
    }
    names = ["shift", "linear", "quadratic", "cubic"]
    assert all(found[name] > 1 - 1e-9 for name in names[names.index(first) :])
    assert all(found[name] < 0.999 for name in names[: names.index(first)])


def test_a_full_map_explains_what_mixes_the_dimensions_and_no_element_wise_fit_does() -> None:
    x, _ = made_by(1)
    y = x[:, ::-1] + 1.0
    found = outputs.fits_of_layers(x[None], y[None], 100)
    assert found["full map"][0] == pytest.approx(1) and found["cubic"][0] < 0.8


def test_no_change_is_explained_by_nothing() -> None:
    x, _ = made_by(0)
    assert outputs.explained(x, x, x + 1) == 0.0


@pytest.mark.parametrize("name", ["bert", "mpnet", "distilbert", "deberta-v2"])
def test_attention_outputs_are_those_of_the_tokens_that_are_not_padding(name: str) -> None:
    model, batch = tiny_model(name), tiny_inputs(name)
    whole = outputs.attention_outputs(model, [batch])
    assert whole.shape == (2, int(batch["attention_mask"].sum()), 32)
    rows = [
        {key: v[i : i + 1, : int(batch["attention_mask"][i].sum())] for key, v in batch.items()}
        for i in range(4)
    ]
    np.testing.assert_allclose(outputs.attention_outputs(model, rows), whole, atol=1e-5)
    assert not any(vars(module)["_forward_hooks"] for module in model.modules())


# Pruning


def test_kept_layers_are_the_best_and_every_smaller_set_is_within_the_larger() -> None:
    scores = [0.3, -0.1, 0.3, 0.9]
    sets = [set(prune.kept_layers(scores, n, range(4))) for n in range(5)]
    assert [len(one) for one in sets] == [0, 1, 2, 3, 4] and sets[2] == {0, 3}
    assert all(small <= large for small, large in itertools.pairwise(sets))


def test_a_curve_asks_for_each_set_of_layers_once() -> None:
    asked: list[tuple[int, ...]] = []

    def evaluate(layers: tuple[int, ...]) -> float:
        asked.append(layers)
        return float(len(layers))

    found = prune.prune_curve({"a": [1.0, 2.0], "b": [1.0, 2.0]}, evaluate, [0, 1])
    assert found["a"] == found["b"] and asked == [(0, 1), (1,), ()]


@pytest.fixture(scope="module")
def rows() -> Examples:
    texts = [f"w{10 + index % 3 + 10 * (index % 2)} w{30 + index}" for index in range(12)]
    return Examples(texts, None, [index % 2 for index in range(12)])


def test_without_layers_is_the_base_model_there_and_leaves_no_trace(rows: Examples) -> None:
    classifier = load(tuned().adapter, device="cpu")
    before = classifier.logits(rows.texts)
    with prune.without_layers(classifier.model, [0, 1]):
        bare = classifier.logits(rows.texts)
    assert not np.allclose(bare, before, atol=1e-4)
    again = load(tuned().adapter, device="cpu")
    assert np.array_equal(again.logits(rows.texts), before)
    with prune.without_layers(again.model, [0, 1]):
        assert np.array_equal(again.logits(rows.texts), bare)
    assert np.array_equal(again.logits(rows.texts), before)


def test_scores_of_layers_are_zero_where_the_adapter_is(rows: Examples) -> None:
    classifier = load(tuned().adapter, device="cpu")
    for name, parameter in classifier.model.named_parameters():
        if ".hadamard_" in name and layer_of(name.removesuffix(".default")) == 1:
            parameter.data.zero_()
    found = prune.layer_scores(classifier, rows)
    assert set(found) == set(prune.CRITERIA)
    assert all(values[1] == 0.0 and values[0] != 0.0 for values in found.values()), found


def test_layers_without_an_adapter_are_neither_ranked_nor_kept(rows: Examples) -> None:
    classifier = load(tuned().adapter, device="cpu")
    names = [name for name, _ in classifier.model.named_parameters() if ".hadamard_" in name]
    for name in names:
        if layer_of(name.removesuffix(".default")) == 0:
            module, kind = name.removesuffix(".default").rsplit(".", 1)
            del getattr(classifier.model.get_submodule(module), kind)["default"]
    assert prune.adapted_layers(classifier.model) == [1]


def test_a_curve_of_upper_layers_names_them() -> None:
    found = prune.prune_curve({"zero": [0.2, -0.1, 0.3]}, lambda _: 0.0, [3, 4, 5])["zero"]
    assert [entry["layers"] for entry in found] == [[3, 4, 5], [3, 5], [5], []]


def test_fisher_is_half_of_the_mean_square_of_the_row_gradients_times_the_offsets(rows: Examples) -> None:
    classifier = load(tuned().adapter, device="cpu")
    found = prune.layer_scores(classifier, rows)["fisher"]
    parameters = {n: p for n, p in classifier.model.named_parameters() if ".hadamard_" in n}
    expected = np.zeros(2)
    for text, label in zip(rows.texts, rows.labels or [], strict=True):
        classifier.model.zero_grad()
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        batch = classifier.tokenizer([text], return_tensors="pt")
        classifier.model(**batch, labels=torch.tensor([label])).loss.backward()
        for name, p in parameters.items():
            assert p.grad is not None
            slope = float((p.grad * p.detach()).square().sum())
            expected[layer_of(name.removesuffix(".default"))] += slope / 24
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_rankings_that_are_opposite_disagree() -> None:
    opposite = [[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]
    assert prune.rank_agreement(opposite, ["a", "b"]) == {"within_task": None, "between_tasks": -1.0}
    assert prune.rank_agreement(opposite, ["a", "a"]) == {"within_task": -1.0, "between_tasks": None}
    for undefined in ([[1.0, 2.0]], [[1.0, 2.0], [1.0, 1.0]], [[1.0, 2.0], [1.0, 2.0, 3.0]]):
        found = prune.rank_agreement(undefined, ["a", "b"][: len(undefined)])
        assert found == {"within_task": None, "between_tasks": None}


def test_rankings_of_one_task_and_of_two_are_told_apart(tmp_path: Path) -> None:
    other = tmp_path / "other" / "train.csv"
    other.parent.mkdir()
    shutil.copyfile(tuned().train, other)
    files = {"a": str(tuned().train), "b": str(tuned().train), "c": str(other)}
    folders = [str(trained_on(tmp_path / name, train)) for name, train in files.items()]
    path = Path(folders[2]) / "adapter_model.safetensors"
    weights = load_file(path)
    sizes = [
        sum(t.square().sum() for key, t in weights.items() if is_offset(key) and layer_of(key) == layer)
        for layer in (0, 1)
    ]
    smaller = int(sizes[1] < sizes[0])  # of the third it is the larger one
    grown = {
        key: t * (100 if is_offset(key) and layer_of(key) == smaller else 1) for key, t in weights.items()
    }
    save_file(grown, path, metadata={"format": "pt"})
    words = ("--rows", 12, "--json", tmp_path / "p.json")
    found = hadamard("prune", "--adapters", ",".join(folders), *words)
    assert found.code == 0, found.err
    agreement = numbers(tmp_path / "p.json")["agreement"]["offset"]
    assert agreement == {"within_task": 1.0, "between_tasks": -1.0} and "seeds of one task" in found.out


@pytest.mark.parametrize(("n_rows", "n"), [(799, 400), (1199, 400), (5, 9), (1, 1)])
def test_rows_that_rank_layers_are_spread_over_all(n_rows: int, n: int) -> None:
    found = [int(text) for text in prune.spread_rows(Examples([str(i) for i in range(n_rows)]), n).texts]
    assert len(found) == min(n, n_rows) == len(set(found))
    assert (found[0], found[-1]) == (0, n_rows - 1)
    assert max(np.diff(found), default=0) <= np.ceil((n_rows - 1) / max(1, n - 1))


# Sharing


def test_a_vector_is_the_adapter_and_back_and_the_head_stays() -> None:
    tensors = load_file(tuned().adapter / "adapter_model.safetensors")
    back = sharing.as_tensors(sharing.vector_of(tensors), tensors)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    with pytest.raises(SettingsError, match="offsets, received 3"):
        sharing.as_tensors(np.zeros(3), tensors)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_a_basis_is_orthonormal_and_the_best_of_its_size(k: int) -> None:
    directions = sharing.basis(RANDOM, k)
    np.testing.assert_allclose(directions @ directions.T, np.eye(k), atol=1e-10)
    kept = np.square(sharing.coefficients(RANDOM, directions)).sum()
    assert kept == pytest.approx(np.square(np.linalg.svd(RANDOM, compute_uv=False)[:k]).sum())
    chance = np.linalg.qr(np.random.default_rng(1).normal(size=(40, k)))[0].T
    assert kept > np.square(sharing.coefficients(RANDOM, chance)).sum()


def test_as_many_directions_as_adapters_hold_all_of_them_and_no_more_are_given() -> None:
    np.testing.assert_allclose(sharing.kept_share(RANDOM, sharing.basis(RANDOM, 6)), 1.0)
    with pytest.raises(SettingsError, match="expected 1 to 6"):
        sharing.basis(RANDOM, 7)


def test_a_task_without_part_in_the_basis_is_not_helped_by_its_own_other_seed() -> None:
    vectors, tasks = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), ["a", "a", "b"]
    np.testing.assert_array_equal(sharing.share_of_unseen(vectors, tasks, 1), 0.0)
    np.testing.assert_allclose(sharing.kept_share(vectors, sharing.basis(vectors, 2)), 1.0)
    assert np.isnan(sharing.share_of_unseen(vectors, tasks, 2))[:2].all()


# Commands


def numbers(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_patterns_of_opposite_adapters(other: Path, tmp_path: Path) -> None:
    words = ("--json", tmp_path / "p.json", "--plot", tmp_path / "p.svg")
    found = hadamard("analyse", "patterns", "--adapters", f"{tuned().adapter},{other}", *words)
    assert found.code == 0, found.err
    written = numbers(tmp_path / "p.json")
    kinds = [kind for kind in written["cosine"] if not kind.startswith("1 + ")]
    assert all(written["within_task"][kind] == -1.0 for kind in kinds)
    assert set(written["between_tasks"].values()) == {None}
    assert written["made_with"]["adapter"]["rows"]["train"] == 96
    assert (tmp_path / "p.svg").read_text(encoding="utf-8").count("adapter") >= 1


def trained_on(folder: Path, train: str) -> Path:
    """The tuned adapter in a folder, with another training file in its run.json."""
    shutil.copytree(tuned().adapter, folder)
    run = numbers(folder / "run.json")
    run["settings"]["train"] = train
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return folder


def test_names_with_dollars_are_drawn_and_adapters_of_zeros_too(tmp_path: Path) -> None:
    folders = [str(trained_on(tmp_path / name, f"my$^$x{name}/train.csv")) for name in ("a$^$", "b$")]
    patterns.patterns_picture(patterns.patterns_of_folders(folders)).savefig(tmp_path / "p.svg")
    for name in ("b$", "a$^$"):
        path = tmp_path / name / "adapter_model.safetensors"
        zeros = {key: t * (not is_offset(key)) for key, t in load_file(path).items()}
        save_file(zeros, path, metadata={"format": "pt"})
        sharing.sharing_picture(sharing.sharing_of_folders(folders)).savefig(tmp_path / "s.svg")


def test_tasks_of_own_files_are_told_apart_by_their_training_file(tmp_path: Path) -> None:
    files = ("mood/train.csv", "tone/train.csv", "/far/mood/train.csv")
    folders = [str(trained_on(tmp_path / name, train)) for name, train in zip("abc", files, strict=True)]
    assert tasks_of(folders) == ["mood/train", "tone/train", "mood/train"]
    assert patterns.patterns_of_folders(folders)["between_tasks"]["all offsets"] == 1.0
    assert sharing.sharing_of_folders(folders)["tasks"] == tasks_of(folders)
    run = numbers(tmp_path / "c/run.json")
    run["settings"].update(task="cola", train=None)
    run["task"]["name"] = "cola"
    (tmp_path / "c/run.json").write_text(json.dumps(run), encoding="utf-8")
    assert tasks_of(folders) == ["mood/train", "tone/train", "cola"]


def test_files_that_differ_are_tasks_that_differ_in_as_many_folders_as_it_takes(tmp_path: Path) -> None:
    files = ("/far/cola/data/train.csv", "/far/rte/data/train.csv", "/far/cola/data/train.csv")
    folders = [trained_on(tmp_path / name, train) for name, train in zip("abc", files, strict=True)]
    assert tasks_of(folders) == ["cola/data/train", "rte/data/train", "cola/data/train"]
    assert made_with(folders[0])["task"] == "data/train" and "/far" not in json.dumps(made_with(folders[0]))


@pytest.mark.parametrize("changes", [{"settings": 3}, {"settings": {}}, {"task": "x"}])
def test_a_damaged_run_file_tells_no_task(changes: dict[str, Any], tmp_path: Path) -> None:
    path = trained_on(tmp_path / "a", "train.csv") / "run.json"
    path.write_text(json.dumps(numbers(path) | changes), encoding="utf-8")
    with pytest.raises(AdapterError, match=r"run\.json' is damaged"):
        tasks_of([path.parent])


def test_prune_runs_no_code_of_a_model_that_the_adapter_alone_allows(tmp_path: Path) -> None:
    shutil.copytree(tuned().model, tmp_path / "model")
    shutil.copytree(tuned().adapter, tmp_path / "adapter")
    give_code(tmp_path / "model")
    run, adapter = (numbers(tmp_path / "adapter" / name) for name in ("run.json", "adapter_config.json"))
    run["settings"] |= {"allow_remote_code": True, "model": str(tmp_path / "model")}
    adapter["base_model_name_or_path"] = str(tmp_path / "model")
    for name, content in (("run.json", run), ("adapter_config.json", adapter)):
        (tmp_path / "adapter" / name).write_text(json.dumps(content), encoding="utf-8")
    found = hadamard("prune", "--adapters", tmp_path / "adapter")
    assert found.code == 2 and "code of its own" in found.err and "this code ran" not in found.err
    with pytest.raises(SystemExit, match="this code ran"):
        hadamard("prune", "--adapters", tmp_path / "adapter", "--allow-remote-code")


def test_a_pruned_adapter_is_the_adapter_without_these_layers(tmp_path: Path) -> None:
    out, words = tmp_path / "small", ("--json", tmp_path / "p.json", "--plot", tmp_path / "p.png")
    found = hadamard("prune", "--adapters", tuned().adapter, "--keep", 1, "--output", out, *words)
    assert found.code == 0, found.err
    one = numbers(tmp_path / "p.json")["adapters"]["adapter"]
    (gone,) = {0, 1} - set(one["kept"])
    texts = ["w10 w40", "w20 w41 w42"]
    whole = load(tuned().adapter, device="cpu")
    with prune.without_layers(whole.model, [gone]):
        expected = whole.logits(texts)
    np.testing.assert_array_equal(load(out, device="cpu").logits(texts), expected)
    assert not (out / "metrics.json").exists() and numbers(out / "run.json")["pruned"]["kept"] == one["kept"]
    assert [entry["n"] for entry in one["curve"]["zero"]] == [2, 1, 0]
    scored = hadamard("eval", "--adapter", out, "--data", tuned().dev, "--json")
    assert json.loads(scored.out)["accuracy"] == pytest.approx(one["kept_score"])
    assert (
        one["score"] == one["curve"]["zero"][0]["score"] and f"(all layers: {one['score']:.4f})" in found.out
    )


@pytest.mark.parametrize("by", ["offset", "zero", "fisher"])
def test_the_layer_that_is_kept_is_the_best_by_the_criterion_that_is_asked(by: str, tmp_path: Path) -> None:
    shutil.copytree(tuned().adapter, tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    # The first layer's offsets are the larger ones, and do nothing: its norm puts out what it did before.
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if ".hadamard_" in name and layer_of(name) == 0:
            tensor.zero_()
            tensor += 1e-4 if "shift" in name else 0
    words = ("--keep", 1, "--rows", 12, "--by", by, "--json", tmp_path / "p.json")
    kept = list[list[int]]()
    for factor in (1, 1e4):
        save_file({n: t * (factor if layer_of(n) == 0 else 1) for n, t in tensors.items()}, path)
        assert hadamard("prune", "--adapters", tmp_path / "a", *words).code == 0
        (one,) = numbers(tmp_path / "p.json")["adapters"].values()
        scores = dict(zip(one["layers"], one["scores"][by], strict=True))
        kept.append(one["kept"])
        assert one["kept"] == [max(scores, key=scores.__getitem__)]
    assert kept[0] == [1] and (by != "offset" or kept[1] == [0])


def test_layers_that_stay_can_be_tuned_again(tmp_path: Path) -> None:
    out = tmp_path / "again"
    words = ("--keep", 1, "--rows", 12, "--output", out, "--tune-again", "--json", tmp_path / "p.json")
    found = hadamard("prune", "--adapters", tuned().adapter, *words)
    assert found.code == 0, found.err
    again = numbers(tmp_path / "p.json")["adapters"]["adapter"]["again"]
    assert again["adapter_parameters"] * 2 == sum(
        t.numel()
        for name, t in load_file(tuned().adapter / "adapter_model.safetensors").items()
        if ".hadamard_" in name
    )
    assert {layer_of(n) for n in load_file(out / "adapter_model.safetensors")} - {None} == {*again["layers"]}
    words = ("--rows", 12, "--curve", "--json", tmp_path / "q.json")
    assert hadamard("prune", "--adapters", out, *words).code == 0
    (once_more,) = numbers(tmp_path / "q.json")["adapters"].values()  # the other layer is not in it
    assert once_more["layers"] == again["layers"] and {*map(len, once_more["scores"].values())} == {1}
    assert [entry["layers"] for entry in once_more["curve"]["zero"]] == [again["layers"], []]


def test_an_adapter_s_own_overwrite_drops_no_other_unfinished_run(tmp_path: Path) -> None:
    shutil.copytree(tuned().adapter, tmp_path / "a")
    run = numbers(tmp_path / "a" / "run.json")
    run["settings"]["overwrite"] = True
    (tmp_path / "a" / "run.json").write_text(json.dumps(run), encoding="utf-8")
    with open_workspace(tmp_path / "o", {"seed": 5}, False) as partial:
        (partial / "head").mkdir()
    words = ("--keep", 1, "--rows", 12, "--output", tmp_path / "o", "--tune-again")
    found = hadamard("prune", "--adapters", tmp_path / "a", *words)
    assert found.code == 2 and "holds an unfinished run of other settings" in found.err, found.err
    assert (partial / "head").is_dir()


def test_an_adapter_that_had_a_start_is_not_tuned_again_with_fewer_layers(tmp_path: Path) -> None:
    shutil.copytree(tuned().adapter, tmp_path / "a")
    run = numbers(tmp_path / "a" / "run.json")
    run["settings"]["start"] = str(tuned().adapter)
    (tmp_path / "a" / "run.json").write_text(json.dumps(run), encoding="utf-8")
    found = hadamard(
        "prune", "--adapters", tmp_path / "a", "--keep", 1, "--output", tmp_path / "o", "--tune-again"
    )
    assert found.code == 2 and "tuned with --start" in found.err and not (tmp_path / "o").exists()


def test_outputs_of_a_model_and_itself_do_not_change(tmp_path: Path) -> None:
    words = ("--tuned", tuned().model, "--data", tuned().train, "--json", tmp_path / "o.json")
    found = hadamard("analyse", "outputs", "--model", tuned().model, *words, "--plot", tmp_path / "o.svg")
    assert found.code == 0, found.err
    written = numbers(tmp_path / "o.json")["model"]
    assert (written["made_with"]["model"], written["made_with"]["data"]) == (
        str(tuned().model),
        str(tuned().train),
    )
    layers = written["layers"]
    assert layers["change"] == [0.0, 0.0] and layers["norm before"] == layers["norm after"]


@pytest.mark.parametrize("position", ["output", "input"])
def test_a_doubled_projection_doubles_its_outputs_and_leaves_its_inputs(
    position: str, tmp_path: Path
) -> None:
    """Of the first layer, whose change reaches the inputs of the second alone."""
    shutil.copytree(tuned().model, tmp_path / "double")
    path, name = tmp_path / "double" / "model.safetensors", "encoder.layer.0.attention.output.dense."
    weights = load_file(path)
    changed = {key: weight * (2 if name in key else 1) for key, weight in weights.items()}
    assert sum(name in key for key in changed) == 2
    save_file(changed, path, metadata={"format": "pt"})
    words = ("--tuned", tmp_path / "double", "--data", tuned().train, "--json", tmp_path / "o.json")
    found = hadamard("analyse", "outputs", "--model", tuned().model, *words, "--position", position)
    assert found.code == 0, found.err
    layers = numbers(tmp_path / "o.json")["double"]["layers"]
    factor = 2 if position == "output" else 1
    assert layers["norm after"][0] == pytest.approx(factor * layers["norm before"][0], rel=1e-5)
    assert layers["change"][0] == pytest.approx((factor - 1) * layers["norm before"][0], abs=1e-5)
    assert layers["change"][1] > 0.01
    if position == "output":
        assert layers["linear"][0] == pytest.approx(1, abs=1e-5) and layers["shift"][0] < 0.9


@pytest.mark.parametrize(
    ("kind", "expected"), [("roberta", "(roberta); name the model that"), ("nan", "puts out NaN")]
)
def test_outputs_of_another_kind_of_model_or_of_nan_are_refused(
    kind: str, expected: str, tmp_path: Path
) -> None:
    folder = tiny_folder(tmp_path / "tuned", "bert" if kind == "nan" else kind)
    if kind == "nan":
        weights = load_file(folder / "model.safetensors")
        empty = {name: torch.full_like(weight, torch.nan) for name, weight in weights.items()}
        save_file(empty, folder / "model.safetensors", metadata={"format": "pt"})
    words = ("--model", tuned().model, "--tuned", folder, "--data", tuned().train)
    found = hadamard("analyse", "outputs", *words)
    assert found.code == 2 and expected in found.err and found.err.count("error: ") == 1, found.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("patterns", "--adapters", "ADAPTER"), "two adapters or more"),
        (("patterns", "--adapters", "ADAPTER,ADAPTER"), "names that differ"),
        (("patterns", "--adapters", "ADAPTER,nowhere"), "no adapter in 'nowhere'"),
        (("sharing", "--adapters", "ADAPTER"), "two tasks or more"),
        (("outputs", "--model", "MODEL", "--tuned", "MODEL", "--data", "a.csv,b.csv"), "expected 1 files"),
        (
            ("outputs", "--model", "MODEL", "--tuned", "MODEL", "--data", "DEV", "--tokens", "40"),
            "; allow more by --tokens",
        ),
        (
            ("outputs", "--model", "MODEL", "--tuned", "MODEL", "--data", "DEV", "--max-length", "2"),
            "received 48; give more rows",
        ),
        (("prune", "--adapters", "ADAPTER", "--keep", "3"), "expected at most 2"),
        (("prune", "--adapters", "ADAPTER", "--tune-again"), "needs --output"),
        (("prune", "--adapters", "ADAPTER,x", "--output", "out"), "expected one adapter"),
        (("prune", "--adapters", "ADAPTER", "--plot", "x.pdf"), r"\.svg or \.png"),
        (("prune", "--adapters", "ADAPTER", "--output", "ADAPTER"), "is there already"),
        (
            ("prune", "--adapters", "ADAPTER", "--output", "new", "--keep", "0", "--tune-again"),
            "keep 1 or more",
        ),
    ],
)
def test_what_cannot_be_analysed_is_refused(words: tuple[str, ...], expected: str) -> None:
    places = {"ADAPTER": tuned().adapter, "MODEL": tuned().model, "DEV": tuned().dev}
    given = [",".join(str(places.get(part, part)) for part in word.split(",")) for word in words]
    found = hadamard(*([] if given[0] == "prune" else ["analyse"]), *given)
    assert found.code == 2 and expected.replace("\\", "") in found.err, found.err
    assert found.err.count("error: ") == 1 and "Traceback" not in found.err


def add_runs(folder: Path, method: str, scores: list[float], task: str = "mood") -> None:
    for seed, score in enumerate(scores):
        add(folder, method, seed, task=task, score=score)


@pytest.mark.parametrize("seed", range(3))
def test_the_knobs_shares_add_up_and_one_without_effect_has_none(seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=8)
    scores = dict(zip(knobs.COMBINATIONS, values.tolist(), strict=True))
    shares = knobs.shapley(scores)
    assert sum(shares.values()) == pytest.approx(scores[frozenset(knobs.KNOBS)] - scores[frozenset()])
    blind = {chosen: scores[chosen - {"norm"}] for chosen in scores}
    assert knobs.shapley(blind)["norm"] == pytest.approx(0)
    alike = {chosen: float(len(chosen - {"norm"})) for chosen in scores}
    assert knobs.shapley(alike) == pytest.approx({"scale": 1.0, "shift": 1.0, "norm": 0.0})


def test_the_knobs_of_a_bench_are_told_by_task_and_missing_ones_stay_empty(tmp_path: Path) -> None:
    gains = {"scale": 0.1, "shift": 0.2, "norm": 0.0}
    for chosen, method in knobs.COMBINATIONS.items():
        score = 0.5 + sum(gains[knob] for knob in chosen)
        add_runs(tmp_path, method, [score, score + 0.01, score + 0.03][: 2 if method == "head" else 3])
    for method in ("head", "hadamard-scale", "hadamard"):
        add_runs(tmp_path, method, [0.5, 0.6], task="other")
    for method in ("head", "hadamard"):
        add_runs(tmp_path, method, [0.5], task="third")
    words = ("--results", tmp_path, "--json", tmp_path / "k.json", "--plot", tmp_path / "k.svg")
    found = hadamard("analyse", "knobs", *words)
    assert found.code == 0 and "scale +0.1000, shift +0.2000, norm " in found.out, found.err
    tasks = json.loads((tmp_path / "k.json").read_text())["tasks"]
    whole, part = tasks["model, mood, 2 epochs"], tasks["model, other, 2 epochs"]
    assert set(tasks) == {"model, mood, 2 epochs", "model, other, 2 epochs"}  # one that trains says nothing
    assert whole["seeds"] == [0, 1] and whole["scores"]["scale + shift"]["2"] == pytest.approx(0.83)
    assert set(part["scores"]) == {"none", "scale", "scale + shift + norm"} and "shares" not in part
    assert (tmp_path / "k.svg").read_text().count("<svg") == 1
    for method in ("hadamard-scale", "hadamard"):
        add(tmp_path, method, 0, score=0.9, run={"select": "dev"}, more=1, extra=1)
    both = knobs.knobs_of_results(tmp_path)["tasks"]
    assert both["model, mood, 2 epochs"] == whole | {"scores": both["model, mood, 2 epochs"]["scores"]}
    assert set(both["model, mood, 2 epochs, epochs chosen on dev"]["scores"]) == {
        "scale",
        "scale + shift + norm",
    }
    found = hadamard("analyse", "knobs", "--results", tmp_path / "nowhere")
    assert found.code == 2 and "expected runs of two or more of hadamard, " in found.err


def test_an_offset_outside_the_layers_is_shared_and_no_layer_s(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        adapted("modernbert", seed=seed + 1).save_pretrained(str(tmp_path / name))
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    outside = [name for name in one if is_offset(name) and layer_of(name) is None]
    assert outside
    mean = sharing.as_tensors((sharing.vector_of(one) + sharing.vector_of(other)) / 2, one)
    for name in outside:
        torch.testing.assert_close(mean[name], (one[name] + other[name]) / 2)
    assert all(prune.dropped(one, range(99))[name] is one[name] for name in outside)
    folders = [str(tmp_path / name) for name in "ab"]
    sharing.save_basis(folders, 2, tmp_path / "basis.safetensors")
    directions = load_file(tmp_path / "basis.safetensors")
    rows = torch.cat([part.flatten(1) for part in directions.values()], dim=1)
    assert abs(float(rows[0] @ rows[1])) < 1e-5 * float(rows[0] @ rows[0])
