"""Laws of a stage's short cuts: none is taken for another run's, all caches stay within one limit."""

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from adapter_help import adapted
from hadamard_adapter.bench.spec import TaskSpec
from hadamard_adapter.bench.speed import VARIANTS
from hadamard_adapter.bench.speed.clock import Clock
from hadamard_adapter.bench.speed.run import SpeedRun, data_of, settings_of
from hadamard_adapter.files import read_json
from hadamard_adapter.tuning import TuneSettings, prefix, recipe, resolve
from hadamard_adapter.tuning.data import TuneData, read_data
from hadamard_adapter.tuning.shortcuts import shortcuts
from hadamard_adapter.tuning.stage import Stage
from hadamard_adapter.tuning.training import EpochSampler
from stage_help import stage_for
from tuning_help import Sees, lay_out, silent, tiny_folder, tiny_tune, write_rows


def rows_of(folder: Path, seed: int) -> tuple[TuneSettings, TuneData]:
    path = write_rows(folder / f"{seed}.csv", 24, seed=seed)
    settings = TuneSettings("m", "o", train=str(path), device="cpu", dtype="float32")
    data = read_data(settings)
    return resolve(settings, len(data.train)), data


def test_the_cache_of_other_rows_is_not_used_though_all_shapes_are_the_same(tmp_path: Path) -> None:
    model = adapted(layers_to_transform=[1])
    kept = list[np.ndarray]()
    for seed in (0, 1, 0):
        settings, data = rows_of(tmp_path, seed)
        stage = stage_for("bert")
        rows = [{**row, "input_ids": [(t + seed) % 30 + 5 for t in row["input_ids"]]} for row in stage.train]
        stage = dataclasses.replace(stage, train=rows)
        with shortcuts(model, stage, settings, data, {"base": "b"}, tmp_path / "cache", silent) as short:
            kept.append(np.concatenate([row["prefix"] for row in short.train]))
    assert kept[0].shape == kept[1].shape and not np.allclose(kept[0], kept[1])
    assert np.array_equal(kept[0], kept[2])


def test_a_run_says_what_its_cache_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[dict[str, Any]]()
    original = recipe.shortcuts

    def spy(model: Any, stage: Stage, settings: Any, data: Any, content: dict[str, Any], *rest: Any) -> Any:
        seen.append(content)
        return original(model, stage, settings, data, content, *rest)

    monkeypatch.setattr(recipe, "shortcuts", spy)
    train = write_rows(tmp_path / "train.csv", 24)
    for seed, length in ((0, 16), (1, 16), (0, 12)):
        folder = tiny_folder(tmp_path / f"model{seed}", seed=seed)
        tiny_tune(folder, tmp_path / f"{seed}-{length}", train, epochs=1, head_epochs=1, max_length=length)
    assert seen[0] == seen[1] and len({str(content) for content in seen}) == 3


def test_all_stages_caches_stay_within_the_limit_and_the_last_comes_first(tmp_path: Path) -> None:
    settings, data = rows_of(tmp_path, 0)
    model, stage, said = adapted(layers_to_transform=[1]), stage_for("bert"), list[str]()
    cache = tmp_path / "cache"
    with shortcuts(model, stage, settings, data, {}, cache, said.append) as short:
        assert short is not stage
    size_gb = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) / 1e9
    second = dataclasses.replace(stage, name="both")
    tight = dataclasses.replace(settings, cache_gb=1.5 * size_gb)
    for one, places in ((second, {"both"}), (stage, {stage.name}), (stage, {stage.name})):
        with shortcuts(model, one, tight, data, {}, cache, said.append) as short:
            assert short is not one and {place.name for place in cache.iterdir()} == places
    wide = dataclasses.replace(settings, cache_gb=2.5 * size_gb)
    with shortcuts(model, second, wide, data, {}, cache, said.append) as short:
        assert short is not second and {place.name for place in cache.iterdir()} == {"both", stage.name}
    narrow = dataclasses.replace(settings, cache_gb=0.5 * size_gb)
    with shortcuts(model, second, narrow, data, {}, cache, said.append) as short:
        assert short is second
    assert f"cache_gb leaves {0.5e6 * size_gb:.1f} kB" in said[-1]
    n_said = len(said)
    off = dataclasses.replace(settings, cache_gb=0.0)
    with shortcuts(model, stage, off, data, {}, tmp_path / "none", said.append) as short:
        assert short is stage and len(said) == n_said and not (tmp_path / "none").exists()


def test_dropout_leaves_the_cache_out_and_it_is_said_where_there_would_be_one(tmp_path: Path) -> None:
    settings, data = rows_of(tmp_path, 0)
    stage, said = stage_for("bert"), list[str]()
    settings = dataclasses.replace(settings, dropout=True)
    for layers in ([1], None):
        model = adapted(layers_to_transform=layers)
        with shortcuts(model, stage, settings, data, {}, tmp_path / "cache", said.append) as short:
            assert short is stage
    assert said == ["no cache of frozen layers: with dropout they compute something else in every epoch"]


@pytest.mark.parametrize("name", ["bert", "gpt2", "bart"])
def test_a_last_layer_that_is_not_cut_short_is_said(name: str, tmp_path: Path) -> None:
    settings, data = rows_of(tmp_path, 0)
    model, stage, said = adapted(name), stage_for(name), list[str]()
    settings = dataclasses.replace(settings, cache_gb=0.0)
    with shortcuts(model, stage, settings, data, {}, tmp_path / "cache", said.append):
        pass
    line = "the last layer computes all tokens: the head was not found to read the first one alone"
    assert said == ([] if name == "bert" else [line])


def test_one_process_without_a_cache_leaves_all_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that went on to the cache would wait for ever for the one that does not."""
    other = "the device has no memory for a trial of it in float32"
    monkeypatch.setattr(prefix, "gather_object", lambda found: [*found, (other, False)])
    model, train = tiny_folder(tmp_path / "model"), write_rows(tmp_path / "train.csv", 24)
    said, sees = list[str](), Sees(tmp_path)
    tiny_tune(model, tmp_path / "out", train, sees, said.append)
    assert [line for line in said if "cache" in line] == [f"no cache of frozen layers: {other}"]
    assert sees.found["head"] == []


@pytest.mark.parametrize("part", ["train", "dev"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ENODEV])
def test_a_disk_that_does_not_take_the_cache_is_said_and_the_run_ends_without_it_at_the_same_scores(
    number: int, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        if path.stem == part:
            raise OSError(number, os.strerror(number))

    model, train = tiny_folder(tmp_path / "model"), write_rows(tmp_path / "train.csv", 24)
    tiny_tune(model, tmp_path / "cached", train)
    monkeypatch.setattr(prefix, "_reserve", full)
    said, sees = list[str](), Sees(tmp_path)
    tiny_tune(model, tmp_path / "out", train, sees, said.append)
    refused = [line for line in said if "the disk did not take it" in line]
    assert len(refused) == 1 and refused[0].startswith("no cache of frozen layers: it would take ")
    assert sees.found["head"] == []  # no half of a cache stays on the full disk
    cached, out = (
        [one["dev_loss"] for one in read_json(tmp_path / name / "metrics.json")["curve"]]
        for name in ("cached", "out")
    )
    assert len(out) == 4 and out == pytest.approx(cached, rel=1e-5)


def test_another_error_of_the_disk_ends_the_run_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(prefix, "_reserve", broken)
    model, train = tiny_folder(tmp_path / "model"), write_rows(tmp_path / "train.csv", 24)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        tiny_tune(model, tmp_path / "out", train)
    monkeypatch.undo()
    tiny_tune(model, tmp_path / "out", train)
    assert (tmp_path / "out" / "metrics.json").exists()


class CountsHalf(Clock):
    """Sees the model while it trains."""

    n_half = n_whole = 0

    def watch(self, trainer: Any) -> None:
        super().watch(trainer)
        counts = self

        class Callback(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                linear = [m for m in trainer.model.modules() if isinstance(m, nn.Linear)]
                frozen = [m.weight for m in linear if not m.weight.requires_grad]
                counts.n_half = sum(weight.dtype == torch.bfloat16 for weight in frozen)
                counts.n_whole = len(frozen) - counts.n_half

        trainer.add_callback(Callback())


@pytest.mark.parametrize("variant", ["tune", "lora-ours-last-step", "lora-grouped"])
def test_frozen_weights_are_cast_once_on_our_path_whatever_the_method(variant: str, tmp_path: Path) -> None:
    place = lay_out(tmp_path)
    task = TaskSpec("mood", epochs=1, head_epochs=1, batch_size=16, train=str(place / "train.csv"),
                    dev=str(place / "dev.csv"))  # fmt: skip
    run = SpeedRun("pace", str(place / "model"), task, "glue", variant, 1e-3, "spec", 0, 0, None)
    clock, row = CountsHalf("accuracy", 0), VARIANTS[variant]
    (tmp_path / "work").mkdir()
    settings = dataclasses.replace(settings_of(run), dtype="bfloat16")
    row.path.train(row.method, settings, data_of(run), tmp_path / "work", clock)
    assert (clock.n_half > 0) == (variant != "lora-grouped")
    assert (clock.n_whole == 0) == (variant != "lora-grouped")


@pytest.mark.parametrize("is_shuffled", [False, True])
def test_an_epochs_order_is_the_seeds_and_the_epochs_alone_and_spares_padding(is_shuffled: bool) -> None:
    lengths = [int(n) for n in np.random.default_rng(0).integers(3, 60, 500)]

    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(lengths, 16, seed, is_shuffled)
        sampler.epoch = epoch
        return list(sampler)

    def padded(rows: list[int]) -> int:
        blocks = [rows[at : at + 16] for at in range(0, len(rows), 16)]
        return sum(len(block) * max(lengths[index] for index in block) for block in blocks)

    orders = {key: order(*key) for key in ((0, 0), (0, 1), (1, 0), (1, 1))}
    assert all(sorted(rows) == list(range(500)) for rows in orders.values())
    assert len({tuple(rows) for rows in orders.values()}) == 4 and order(0, 1) == orders[0, 1]
    assert max(map(padded, orders.values())) < 0.7 * padded(list(range(500)))
    assert all(
        lengths[rows[0]] == max(lengths) for rows in orders.values()
    )  # too little memory shows at once


@pytest.mark.parametrize("n_rows", [1, 15, 16, 17, 500])
def test_steps_that_are_shuffled_are_the_steps_of_transformers_in_another_order(n_rows: int) -> None:
    lengths = [int(n) for n in np.random.default_rng(0).integers(3, 60, n_rows)]
    steps = {
        is_shuffled: [rows[at : at + 16] for at in range(0, n_rows, 16)]
        for is_shuffled in (False, True)
        for rows in [list(EpochSampler(lengths, 16, 0, is_shuffled))]
    }
    assert sorted(steps[True]) == sorted(steps[False])
    assert [steps[True][0], len(steps[True][-1])] == [steps[False][0], len(steps[False][-1])]
    assert (steps[True] == steps[False]) == (n_rows < 48)


def test_shuffled_steps_do_not_end_an_epoch_with_the_shortest_rows() -> None:
    lengths = [int(n) for n in np.random.default_rng(0).integers(3, 60, 512)]

    def of_the_end(is_shuffled: bool) -> float:
        samplers = [EpochSampler(lengths, 16, seed, is_shuffled) for seed in range(20)]
        return float(np.mean([lengths[row] for sampler in samplers for row in list(sampler)[-16:]]))

    assert of_the_end(False) < 15 and abs(of_the_end(True) - np.mean(lengths)) < 8
