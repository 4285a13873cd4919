"""Laws of the cache of frozen layers: cached = uncached, another model's or a broken file is never used."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapter_help import adapted
from hadamard_adapter.adapter.families import FAMILIES
from hadamard_adapter.tuning.precision import autocast, cast_frozen
from hadamard_adapter.tuning.prefix import cached_prefix, frozen_prefix
from hadamard_adapter.tuning.stage import Stage
from models import TINY
from stage_help import FIRST_TOKEN, TEXT, head_stage_model, outcome, stage_for
from tuning_help import silent, tiny_folder, tiny_tune, write_rows

TWO_STACKS_OR_SHARED = {"bart", "t5", "albert"}


def size_kb(stage: Stage, width: int = 32) -> float:
    """Of the hidden states of all tokens in float32."""
    return round(4 * width * sum(len(row["input_ids"]) for row in [*stage.train, *stage.dev]) / 1e3, 1)


def assert_cached_equals_uncached(model: Any, stage: Stage, folder: Path, n_layers: int) -> Stage:
    states: list[Any] = []
    hook = frozen_prefix(model)[0][-1].register_forward_hook(lambda _, args, output: states.append(output))
    expected = [outcome(model, stage, rows) for rows in (stage.train, stage.dev)]
    hook.remove()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with cached_prefix(model, stage, folder, {}, 1.0, silent) as cached:
        assert len(frozen_prefix(model)[0]) == n_layers
        assert isinstance(
            cached.train[0]["prefix"], np.memmap
        )  # read from the disk, so that memory is bounded
        assert model.state_dict().keys() == before.keys()
        for rows, state in zip((cached.train, cached.dev), states, strict=True):
            hidden = state[0] if isinstance(state, tuple) else state
            for row, one in zip(rows, hidden.detach(), strict=True):
                prefix = torch.as_tensor(row["prefix"])
                torch.testing.assert_close(prefix, one[: len(prefix)], atol=1e-5, rtol=1e-5)
        found = [outcome(model, cached, rows) for rows in (cached.train, cached.dev)]
    for (logits, gradients), (expected_logits, expected_gradients) in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, expected_logits, atol=1e-5, rtol=1e-5)
        assert gradients.keys() == expected_gradients.keys() and gradients
        for key, gradient in expected_gradients.items():
            assert (gradients[key] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, key
    assert torch.equal(outcome(model, stage, stage.train)[0], expected[0][0])  # the model is as it was
    return cached


@pytest.mark.parametrize("name", [name for name in TEXT if name not in TWO_STACKS_OR_SHARED])
def test_stage_1_from_cached_features_equals_stage_1_through_the_backbone(name: str, tmp_path: Path) -> None:
    model, stage = head_stage_model(name), stage_for(name)
    n_layers = model.config.num_hidden_layers
    cached = assert_cached_equals_uncached(model, stage, tmp_path, n_layers)
    is_first_only = all(len(row["prefix"]) == 1 for row in cached.train)
    assert is_first_only == (name in FIRST_TOKEN)


@pytest.mark.parametrize("name", [name for name in TEXT if name not in TWO_STACKS_OR_SHARED])
def test_stage_2_from_a_cached_prefix_equals_stage_2_through_all_layers(name: str, tmp_path: Path) -> None:
    model, stage = adapted(name, sites=["attention"], layers_to_transform=[1]), stage_for(name)
    cached = assert_cached_equals_uncached(model, stage, tmp_path, 1)
    assert [len(row["prefix"]) for row in cached.train] == [len(row["input_ids"]) for row in stage.train]


@pytest.mark.parametrize("name", ["bert", "roberta", "mpnet", "modernbert"])
@pytest.mark.parametrize("stage_number", [1, 2])
def test_in_bfloat16_the_cache_differs_by_rounding_alone(
    name: str, stage_number: int, tmp_path: Path
) -> None:
    stage = stage_for(name)
    model = head_stage_model(name) if stage_number == 1 else adapted(name, layers_to_transform=[1])
    cast_frozen(model, "bfloat16")
    with autocast(model.device, "bfloat16"):
        expected, expected_gradients = outcome(model, stage, stage.train)
        with cached_prefix(model, stage, tmp_path, {}, 1.0, silent, dtype="bfloat16") as cached:
            assert "prefix" in cached.train[0]
            found, gradients = outcome(model, cached, cached.train)
    assert (found - expected).abs().max() <= 4 * 2**-8 * expected.abs().max()  # 8 bits a number
    assert gradients and gradients.keys() == expected_gradients.keys()
    for key, gradient in expected_gradients.items():
        assert (gradients[key] - gradient).norm() <= 8 * 2**-8 * gradient.norm() + 1e-6, key


def test_every_family_is_in_the_table_of_tiny_models() -> None:
    assert {TINY[name].model_type for name in TINY} == set(FAMILIES)


@pytest.mark.parametrize("name", sorted(TWO_STACKS_OR_SHARED))
def test_shared_layers_and_two_stacks_are_left_out_and_it_is_said(name: str, tmp_path: Path) -> None:
    said: list[str] = []
    stage = stage_for(name)
    with cached_prefix(head_stage_model(name), stage, tmp_path, {}, 1.0, said.append) as cached:
        assert cached is stage
    assert said == ["no cache of frozen layers: the model's layers are shared, or stand in two stacks"]


def test_a_cache_above_its_limit_is_left_out_and_it_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    model, stage = adapted(layers_to_transform=[1]), stage_for("bert")
    with cached_prefix(model, stage, tmp_path, {}, 5e-6, said.append) as cached:
        assert cached is stage
    assert said == [f"no cache of frozen layers: it would take {size_kb(stage)} kB, cache_gb leaves 5.0 kB"]
    assert not list(tmp_path.iterdir())


def test_rows_without_a_mask_have_no_cache_and_it_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    stage = stage_for("bert")
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in stage.train]
    stage = dataclasses.replace(stage, train=rows, dev=rows)
    with cached_prefix(head_stage_model("bert"), stage, tmp_path, {}, 1.0, said.append) as cached:
        assert cached is stage
    reason = "the tokenizer gives no attention_mask, which tells tokens from padding"
    assert said == [f"no cache of frozen layers: {reason}"]


def test_a_cache_that_the_disk_has_no_room_for_is_left_out_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    model, stage = adapted(layers_to_transform=[1]), stage_for("bert")
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: full)
    with cached_prefix(model, stage, tmp_path / "cache", {}, 1.0, said.append) as cached:
        assert cached is stage
    reason = f"it would take {size_kb(stage)} kB, the disk has room for 0 bytes"
    assert said == [f"no cache of frozen layers: {reason}"]
    assert not list(tmp_path.iterdir())


def _other_key(folder: Path) -> dict[str, Any]:
    return {"base": "other"}


def _cut(folder: Path) -> dict[str, Any]:
    with (folder / "train.npy").open("r+b") as file:
        file.truncate(200)
    return {"base": "one"}


def _without_its_key(folder: Path) -> dict[str, Any]:
    (folder / "train.json").unlink()
    return {"base": "one"}


def _of_another_shape(folder: Path) -> dict[str, Any]:
    np.save(folder / "train.npy", np.zeros((3, 32), dtype=np.float32))
    return {"base": "one"}


@pytest.mark.parametrize("spoil", [_other_key, _cut, _without_its_key, _of_another_shape])
def test_a_cache_of_something_else_or_a_broken_one_is_made_anew(
    spoil: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    model, stage = head_stage_model("bert"), stage_for("bert")
    with cached_prefix(model, stage, tmp_path, {"base": "one"}, 1.0, silent) as cached:
        expected = np.concatenate([row["prefix"] for row in cached.train])
    wrong = np.full_like(np.load(tmp_path / "train.npy"), 7.0)
    np.save(tmp_path / "train.npy", wrong)
    with cached_prefix(model, stage, tmp_path, {"base": "one"}, 1.0, silent) as cached:
        assert (cached.train[0]["prefix"] == 7.0).all()  # a whole file with the right key is used as it is
    key = spoil(tmp_path)
    with cached_prefix(model, stage, tmp_path, key, 1.0, silent) as cached:
        assert np.array_equal(np.concatenate([row["prefix"] for row in cached.train]), expected)


def test_a_broken_cache_of_dev_rows_is_made_anew(tmp_path: Path) -> None:
    model, stage = head_stage_model("bert"), stage_for("bert")
    with cached_prefix(model, stage, tmp_path, {"base": "one"}, 1.0, silent) as cached:
        expected = np.concatenate([row["prefix"] for row in cached.dev])
    np.save(tmp_path / "dev.npy", np.full_like(np.load(tmp_path / "dev.npy"), 7.0))
    with (tmp_path / "dev.npy").open("r+b") as file:
        file.truncate(200)
    with cached_prefix(model, stage, tmp_path, {"base": "one"}, 1.0, silent) as cached:
        assert np.array_equal(np.concatenate([row["prefix"] for row in cached.dev]), expected)


def test_a_model_that_computes_something_else_with_it_is_noticed(tmp_path: Path) -> None:
    said: list[str] = []
    model, stage = head_stage_model("bert"), stage_for("bert")
    encoder, seen = model.get_base_model().bert.encoder, []
    encoder.layer[0].register_forward_hook(lambda module, args, output: seen.append(output))

    def odd(module: Any, args: Any, output: Any) -> Any:  # reads the first layer once more behind the last
        output.last_hidden_state = output.last_hidden_state + seen.pop()
        return output

    encoder.register_forward_hook(odd)
    with cached_prefix(model, stage, tmp_path, {}, 1.0, said.append) as cached:
        assert cached is stage
    assert said == ["no cache of frozen layers: with it this model computes something else"]


def test_the_recipe_reads_it_says_so_and_cleans_up(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "model")
    train = write_rows(tmp_path / "train.csv", 160)  # enough that grouping by length matters
    results, said = {}, {"with": list[str](), "without": list[str]()}
    for name, cache_gb in (("with", 4.0), ("without", 0.0)):
        more: dict[str, Any] = {"batch_size": 8, "head_batch_size": 8, "layers": (1,), "dropout": False}
        more |= {"lr": 1e-2, "head_lr": 1e-2}  # enough that scores move
        results[name] = tiny_tune(
            model, tmp_path / name, train, say=said[name].append, cache_gb=cache_gb, **more
        )
    cached = {
        name: [line for line in lines if "frozen layers put out" in line] for name, lines in said.items()
    }
    assert len(cached["with"]) == 2 and not cached["without"]  # stage 1 all layers, stage 2 the first one
    curves = {
        name: [[entry["loss"], entry["dev_loss"], *entry["scores"].values()] for entry in r.metrics["curve"]]
        for name, r in results.items()
    }
    np.testing.assert_allclose(curves["with"], curves["without"], rtol=1e-5)
    assert not (tmp_path / "with.partial").exists()
    assert set(json.loads((tmp_path / "with" / "run.json").read_text())["seconds"]) == {"head", "adapter"}
