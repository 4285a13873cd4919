"""Replicas under Ray Serve: one dies under load, both follow the store, and nothing is left behind."""

import runpy
from pathlib import Path

import pytest

from command import assert_refused
from conftest import ROOT
from hadamard_adapter.serving import AdapterStore
from serve_help import LABELS, make_adapter
from tuning_help import tiny_folder

NO_RAY = "needs pip install '.[ray]' in a clone"


def test_two_replicas_follow_the_store_outlive_one_another_and_leave_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve", reason=NO_RAY)
    model = tiny_folder(tmp_path / "model")
    adapter = make_adapter(model, tmp_path / "mood", LABELS["mood"], 0)
    AdapterStore(tmp_path / "store").add("a0", adapter)
    measure = runpy.run_path(str(ROOT / "benchmarks" / "ray_cluster.py"))["measure"]
    found = measure(str(model), str(tmp_path / "store"), str(adapter), tmp_path / "log", 5.0)
    print(found)
    assert max(found["publish_s"]) < 2.5  # 2 s, and the time to ask
    kill = found["kill"]
    assert kill["answered_after_kill"] > 5 and set(kill["statuses"]) <= {"200", "429", "500", "503"}
    assert kill["failed_begun_before_kill"] + kill["failed_begun_after_kill"] <= kill["clients"]
    assert (found["exit_code"], found["processes_left"]) == (0, 0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--replicas", "2"], "--replicas belongs to --engine ray"),
        (["--replica-cpus", "0.5"], "--replica-cpus belongs to --engine ray"),
        (["--engine", "ray", "--replicas", "3-2"], "expected 2 or 1-4, received '3-2'"),
        (["--engine", "ray", "--replicas", "0"], "expected 2 or 1-4"),
        (["--engine", "ray", "--replicas", "many"], "expected 2 or 1-4"),
        (["--engine", "ray", "--port", "0"], "--port 0"),
        (["--engine", "ray", "--replica-cpus", "0"], "above 0"),
        (["--engine", "bicycle"], "bicycle"),
    ],
)
def test_options_that_do_not_fit_the_engine_are_refused(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(lambda: ["serve", "--model", "m", "--store", "s", *words], expected)


def test_a_model_that_cannot_be_served_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray.serve", reason=NO_RAY)
    monkeypatch.chdir(tmp_path)
    assert_refused(
        lambda: ["serve", "--model", "m", "--store", "s", "--engine", "ray"], "no tokenizer in 'm'"
    )
