"""Several learning rates and seeds in one process: each run as if alone, a head a seed, dev chooses."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers.utils import SAFE_WEIGHTS_NAME as WEIGHTS

from command import hadamard
from hadamard_adapter.analysis.prune import settings_and_data
from hadamard_adapter.errors import AdapterError, DataError, DivergedError, SettingsError
from hadamard_adapter.tasks import data_fingerprint
from hadamard_adapter.tuning import Progress, TuneResult, TuneSettings, load, workbench
from hadamard_adapter.tuning.models import tokenize
from hadamard_adapter.tuning.search import choose
from tuning_help import adapter_sha256, lay_out, tiny_tune

RATES = (0.003, 0.03)


class Told(Progress):
    """A progress that writes down which stages began, and can break off at one."""

    def __init__(self, break_at: int | None = None) -> None:
        self.stages: list[str] = []
        self.break_at = break_at

    def start(self, stage: str, n_steps: int, step: int) -> None:
        self.stages.append(stage)
        if len(self.stages) == self.break_at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("search"), 48)


def search(place: Path, output: Path, progress: Told | None = None, **settings: Any) -> TuneResult:
    few: dict[str, Any] = {"epochs": 1, "head_epochs": 1, "dev": str(place / "dev.csv")}
    given: dict[str, Any] = {"lr": RATES, "seeds": 2, **few, **settings}
    return tiny_tune(place / "model", output, place / "train.csv", progress=progress, **given)


def test_the_runs_of_a_search_share_their_tokens(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_texts: list[int] = []

    def counted(tokenizer: Any, texts: list[str], *more: Any) -> Any:
        n_texts.append(len(texts))
        return tokenize(tokenizer, texts, *more)

    monkeypatch.setattr(workbench, "tokenize", counted)
    search(place, tmp_path / "out")
    assert n_texts == [48, 24]  # once for all four runs


@pytest.fixture(scope="module")
def whole(place: Path) -> tuple[TuneResult, Told]:
    told = Told()
    return search(place, place / "whole", told), told


def test_every_run_of_a_search_is_as_if_alone(place: Path, whole: tuple[TuneResult, Told], tmp_path: Path):
    result = whole[0]
    runs = result.metrics["runs"]
    assert [(run["lr"], run["seed"]) for run in runs] == [(lr, seed) for seed in (0, 1) for lr in RATES]
    assert len({json.dumps(run["dev"]) for run in runs}) > 1
    for run in runs:
        output = tmp_path / f"{run['lr']}-{run['seed']}"
        alone = search(place, output, lr=run["lr"], seed=run["seed"], seeds=1)
        names = ("dev", "stage1_dev", "best_epoch")
        assert {name: run[name] for name in names} == {name: alone.metrics[name] for name in names}
        assert run["is_chosen"] == (adapter_sha256(output) == adapter_sha256(result.output))


def test_a_search_trains_one_head_a_seed_and_computes_frozen_layers_once(whole: tuple[TuneResult, Told]):
    stages = whole[1].stages
    assert [stages.count(name) for name in ("head", "adapter", "cache")] == [2, 4, 2]  # cache: train and dev


def test_a_search_computes_the_layers_below_the_first_adapted_one_once(place: Path, tmp_path: Path):
    told = Told()
    search(place, tmp_path / "out", told, layers=(1,))
    assert [told.stages.count(name) for name in ("head", "adapter", "cache")] == [2, 4, 4]  # of either stage


def test_what_a_checkpoint_lacks_below_the_layers_is_each_seed_s_own(place: Path, tmp_path: Path) -> None:
    """Stage 1 trains it, a head like any other, so what frozen layers make of it is no other seed's."""
    shutil.copytree(place / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model" / WEIGHTS)
    lacking = [name for name in weights if "token_type_embeddings" in name]
    save_file({name: weights[name] for name in weights if name not in lacking}, tmp_path / "model" / WEIGHTS)
    few: dict[str, Any] = {"epochs": 1, "head_epochs": 1, "dev": str(place / "dev.csv"), "lr": 0.03}
    few |= {"preset": "paper", "layers": (1,), "head_lr": 0.1}

    class Losses(Progress):
        def __init__(self) -> None:
            self.found: list[float | None] = []

        def step(self, step: int, loss: float | None) -> None:
            self.found.append(loss)

    def losses(output: str, **seeds: int) -> list[float | None]:
        seen = Losses()
        tiny_tune(tmp_path / "model", tmp_path / output, place / "train.csv", seen, **few, **seeds)
        return seen.found

    together, alone = losses("together", seeds=2), losses("alone", seed=1)
    assert lacking and alone and together[-len(alone) :] == alone


def test_a_search_says_that_dev_chose_among_runs(whole: tuple[TuneResult, Told]):
    result = whole[0]
    chosen = next(run for run in result.metrics["runs"] if run["is_chosen"])
    assert result.metrics["selected_on"] == "dev, best of 4 runs"
    assert "score on dev, best of 4 runs (24 rows" in (result.output / "README.md").read_text()
    assert (result.run["settings"]["lr"], result.run["seed"]) == (chosen["lr"], chosen["seed"])
    assert load(result.output).predict(["w10"])[0].label is not None


@pytest.mark.parametrize("break_at", [1, 4, 7])
def test_a_search_that_was_cut_off_ends_at_the_same_bytes(
    place: Path, whole: tuple[TuneResult, Told], tmp_path: Path, break_at: int
):
    assert len(whole[1].stages) == 8
    with pytest.raises(KeyboardInterrupt):
        search(place, tmp_path / "out", Told(break_at))
    told = Told()
    again = search(place, tmp_path / "out", told)
    assert adapter_sha256(again.output) == adapter_sha256(whole[0].output)
    assert len(told.stages) <= 8 - break_at + 3  # the cache of a stage is looked at again
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_finished_search_is_not_run_again_and_others_are_refused(
    place: Path, whole: tuple[TuneResult, Told]
):
    told = Told()
    assert search(place, whole[0].output, told).metrics == whole[0].metrics
    assert not told.stages
    with pytest.raises(SettingsError, match=r"lr \[0.003, 0.03\] there, \[0.003\] now|holds the result"):
        search(place, whole[0].output, lr=RATES[0])


def test_the_rate_with_the_best_mean_is_chosen_then_its_best_seed():
    def run(score: float, loss: float = 1.0, metric: str = "accuracy") -> dict[str, Any]:
        entry = {"stage": "adapter", "epoch": 1, "dev_loss": loss, "scores": {metric: score}}
        return {"metric": metric, "dev": {metric: score}, "curve": [entry]}

    rates = [0.1, 0.2, 0.1, 0.2]
    assert choose([run(0.4), run(0.7), run(0.9), run(0.8)], rates) == 3
    assert choose([run(0.7, 2.0), run(0.2), run(0.7, 1.0), run(0.2)], rates) == 2
    assert choose([run(0.8, 2.0), run(0.8, 0.1)], [0.1, 0.2]) == 1  # of rates, too
    assert choose([run(0.4, metric="rmse"), run(0.7, metric="rmse")], [0.1, 0.2]) == 0
    assert choose([run(0.4), None, run(0.6), run(0.9)], rates) == 2  # 0.2 diverged once
    assert choose([None, None, run(0.6), run(0.9)], rates) == 3  # as did 0.1


def test_a_rate_that_diverges_is_left_out_and_the_others_choose(
    place: Path, whole: tuple[TuneResult, Told], tmp_path: Path
):
    too_high: dict[str, Any] = {"max_grad_norm": 1e30, "warmup": 0.0}
    said: list[str] = []
    result = search(place, tmp_path / "out", lr=(0.03, 3e37), epochs=2, say=said.append, **too_high)
    good, bad = result.metrics["runs"][::2], result.metrics["runs"][1::2]
    assert all("dev" in run for run in good) and sum(run["is_chosen"] for run in good) == 1
    assert all(re.fullmatch(r".*(loss is|not finite).*", run["error"]) for run in bad)
    assert result.run["settings"]["lr"] == 0.03 and load(result.output).predict(["w10"])[0].label is not None
    assert sum(line.startswith("it is left out: ") for line in said) == 2 and "  lr 3e+37: 2 diverged" in said
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    told = Told()
    search(place, tmp_path / "out", told, lr=(0.03, 3e37), epochs=2, **too_high)
    assert not told.stages
    with pytest.raises(DivergedError, match=r"all 2 runs diverged, the last one: .*lower learning rates"):
        search(place, tmp_path / "none", lr=(2e37, 3e37), epochs=2, seeds=1, **too_high)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": (0.1, -1.0)}, "lr: expected a number above 0, received -1.0"),
        ({"lr": (0.1, 0.1)}, r"lr: expected rates that differ, received \(0.1, 0.1\)"),
        ({"lr": ()}, "lr: expected one or more, received none"),
        ({"seeds": 0}, "seeds: expected a number from 1 on, received 0"),
        ({"seed": 2**32 - 2, "seeds": 3}, "seed: expected a number below"),
    ],
)
def test_rates_and_seeds_out_of_range_are_told(settings: dict[str, Any], message: str):
    with pytest.raises(SettingsError, match=message):
        TuneSettings("m", "o", train="t.csv", **settings)


def test_the_command_searches_and_shows_the_runs(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(place))
    words = ("--model=~/model", "--train", place / "train.csv", "--dev", place / "dev.csv")
    few = ("--epochs", 1, "--head-epochs", 1, "--batch-size", 8, "--lr", "3e-3,3e-2", "--seeds", 2)
    found = hadamard("tune", *words, *few, "--output", tmp_path / "out")
    assert found.code == 0, found.err
    assert "run 4 of 4: lr 0.03, seed 1" in found.err
    assert "dev accuracy by learning rate: mean ± sd (2)" in found.err.replace("(n)", "(2)")
    assert "chosen on dev: lr 0.0" in found.err
    refused = hadamard("tune", *words, "--lr", "0.1,fast", "--output", tmp_path / "other")
    assert refused.code == 2 and "0.001,0.003, received '0.1,fast'" in refused.err


def test_the_rows_that_chose_are_read_again_whatever_the_seed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_bytes((place / "train.csv").read_bytes())
    monkeypatch.setattr("hadamard_adapter.tuning.search.choose", lambda metrics, rates: 1)
    result = tiny_tune(place / "model", tmp_path / "out", rows, lr=0.01, seeds=2, epochs=1, head_epochs=1)
    settings, data = settings_and_data(result.output)
    assert settings.seed == 1
    assert data_fingerprint(data.dev) == result.run["data_fingerprint"]["dev"]
    head, *others = rows.read_text().splitlines()
    rows.write_text("\n".join([head, *reversed(others)]) + "\n")
    with pytest.raises(DataError, match=r"tuned on other rows.*bring the rows back"):
        settings_and_data(result.output)
    (result.output / "run.json").write_text('{"key": null, "settings": []}')
    with pytest.raises(AdapterError, match=r"expected a run.json of `hadamard tune`"):
        settings_and_data(result.output)
