"""Runs of a bench: each once, none lost, whatever is killed, damaged, full or taken."""

import dataclasses
import errno
import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import sklearn
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

import hadamard_adapter
from bench_help import Silent, no_checkpoint, no_space, processes_of, spec_of, spec_text
from command import hadamard
from hadamard_adapter.analysis.table import read_groups
from hadamard_adapter.bench import execute, rows
from hadamard_adapter.bench import train as train_room
from hadamard_adapter.bench.executors import Executor, _share, in_this_process, on_slurm, pool
from hadamard_adapter.bench.plan import cells_of, due, estimated, total_seconds
from hadamard_adapter.bench.results import Results
from hadamard_adapter.bench.run import RECIPE, data_of, name_of, work_of
from hadamard_adapter.bench.schedule import Outcome, run_all, settle
from hadamard_adapter.bench.spec import ORDERS, Order, Spec, read_spec
from hadamard_adapter.bench.worker import MENDABLE, do_job, last_line, run_as_child, write_job
from hadamard_adapter.cli.board import BenchBoard
from hadamard_adapter.errors import LoadError, SettingsError, TrainingError
from hadamard_adapter.files import locked
from hadamard_adapter.methods import METHODS
from hadamard_adapter.tasks import Task, data_fingerprint
from hadamard_adapter.tuning.report import versions
from models import VOCAB_SIZE
from tuning_help import lay_out, silent, tiny_folder, tiny_tune, write_rows

PARTS = ("held_out", "dev")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("bench"))


def run(spec: Spec, folder: Path, executor: Executor | None = None) -> tuple[Outcome, Results]:
    results = Results(folder)
    return run_all(spec, results, executor or in_this_process(), Silent(), silent), results


def by_method(results: Results, purpose: str = "score") -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for record in results.records().values():
        if record["run"]["purpose"] == purpose:
            found.setdefault(record["run"]["method"], []).append(record)
    return found


def test_every_method_of_the_table_runs_and_says_what_it_trained(place: Path, tmp_path: Path) -> None:
    outcome, results = run(spec_of(place, " ".join(METHODS), seeds=1, epochs=1), tmp_path)
    assert (outcome.n_done, outcome.failed, outcome.lost) == (len(METHODS), {}, {})
    found = by_method(results)
    assert set(found) == set(METHODS)
    heads = set[int]()
    for records in found.values():
        (record,) = records
        assert record["status"] == "done" and 0 <= record["score"] <= 1
        assert len(record["predictions"].split()) == record["rows"]["dev"] == 24
        heads.add(record["head_parameters"])
    assert len(heads) == 2  # TF-IDF's coefficients, and the head that all the others share
    labels = results.labels(found["full"][0]["dev_fingerprint"])
    assert labels is not None and sorted(set(labels)) == [0.0, 1.0]
    predicted = [float(word) for word in found["full"][0]["predictions"].split()]
    right = sum(one == other for one, other in zip(labels, predicted, strict=True)) / 24
    assert found["full"][0]["scores"]["accuracy"] == pytest.approx(right)
    assert found["hadamard"][0]["layers"] and not found["full"][0]["layers"]


def test_the_weights_of_the_best_epoch_are_those_that_are_scored(place: Path, tmp_path: Path) -> None:
    """With dev as what chooses the epoch, the epoch's score and the final one are of the same rows."""
    spec = spec_of(
        place, "full bitfit lora vera houlsby ia3 ln-tuning hadamard-wide", 'select = "dev"', seeds=1
    )
    _, results = run(spec, tmp_path)
    for method, (record,) in by_method(results).items():
        assert record["score"] == pytest.approx(record["best"]["scores"][record["metric"]]), method


def test_a_run_that_exists_is_not_run_again_and_specs_share_runs(place: Path, tmp_path: Path) -> None:
    run(spec_of(place, "head bitfit"), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(before) == 4
    outcome, _ = run(spec_of(place, "bitfit attention-norm"), tmp_path)
    assert outcome.n_done == 2
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert not list((tmp_path / "work").iterdir())


def test_a_search_never_sees_dev_and_the_best_rate_is_used(place: Path, tmp_path: Path) -> None:
    spec = spec_of(place, "bitfit", "search = { rows = 40, extensions = 1 }", seeds=1)
    results = Results(tmp_path)
    run_all(spec, results, in_this_process(), Silent(), silent, "search")
    search = by_method(results, "search")["bitfit"]
    assert {record["run"]["lr"] for record in search} >= set(METHODS["bitfit"].grid)
    assert by_method(results) == {}
    run(spec, tmp_path)
    assert all("scores" not in r and "predictions" not in r and r["rows"]["train"] == 40 for r in search)
    (score,) = by_method(results)["bitfit"]
    best = max(search, key=lambda r: (r["score"], -r["best"]["dev_loss"], -r["run"]["lr"]))
    assert score["run"]["lr"] == best["run"]["lr"]
    held_out, dev = (
        data_fingerprint(getattr(rows.read_rows(spec.tasks[0], spec.data), part)) for part in PARTS
    )
    assert {record["settings"]["dev_data"] for record in (*search, score)} == {held_out} != {dev}
    assert {record["settings"].get("test_data") for record in search} == {None}
    assert score["settings"]["test_data"] == dev


@pytest.mark.parametrize("select", ["held-out", "dev"])
def test_the_rows_that_choose_are_none_that_are_trained_on_and_dev_where_it_is_asked_for(
    select: str, place: Path
) -> None:
    spec = spec_of(place, "bitfit", f'select = "{select}"\nsearch = {{ rows = 40 }}', seeds=1)
    (cell,) = cells_of(spec)
    for purpose in ("search", "score"):
        of_task, data = data_of(cell.run(purpose, 1, 0.001, 0))
        dev = set(of_task.dev.texts)
        chooser = of_task.dev if (purpose, select) == ("score", "dev") else of_task.held_out
        assert data.dev == chooser and not set(data.train.texts) & {*data.dev.texts, *dev}
        assert purpose == "score" or not dev & set(data.dev.texts)


@pytest.mark.parametrize(
    ("stages", "kind", "order", "expected"),
    [
        pytest.param(2, "classes", "length", ([1, 1], 0.699220), id="two stages, classes"),
        pytest.param(1, "classes", "length", ([1], 0.699734), id="one stage, classes"),
        pytest.param(2, "numbers", "length", ([4, 2], 6.122121), id="two stages, numbers"),
        pytest.param(2, "numbers", "groups", ([4, 1], 6.126761), id="groups at random"),
    ],
)
def test_a_change_that_moves_scores_counts_the_recipe_up(
    stages: int, kind: str, order: Order, expected: tuple[list[int], float], tmp_path: Path
) -> None:
    """Of weights that no library draws: epochs chosen and the last one's dev loss, as recipe 2 has them."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertModel(BertConfig(vocab_size=VOCAB_SIZE, **sizes))
    with torch.no_grad():
        for index, (name, parameter) in enumerate(model.named_parameters()):
            wave = torch.sin(torch.arange(parameter.numel()) * 1.7 + index).reshape(parameter.shape)
            parameter.copy_(wave * 0.3 + ("LayerNorm.weight" in name))
    tiny_folder(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    of_numbers = {"label_of": lambda text: f"{len(text) / 9:.2f}", "pair": True}
    data = write_rows(tmp_path / "train.csv", 64, **(of_numbers if kind == "numbers" else {}))
    more = {"head_epochs": 4, **ORDERS[order]} if stages == 2 else ORDERS[order]
    tiny_tune(tmp_path / "model", tmp_path / "out", data, stages=stages, epochs=4, lr=0.02, **more)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    epochs, loss = expected
    why = "scores have moved: count RECIPE up and write down what is found now"
    assert [*found["best_epoch"].values()] == epochs, why
    assert found["curve"][-1]["dev_loss"] == pytest.approx(loss, rel=2e-4), why
    assert RECIPE == 2


def test_a_loss_that_is_not_finite_is_a_failed_run_that_counts(place: Path, tmp_path: Path) -> None:
    spec = spec_of(place, "full", seeds=1)
    run_of = due(spec, {})[0]
    wild = dataclasses.replace(run_of, lr=1e30)
    results = Results(tmp_path)
    assert execute.execute(wild, results)
    record = results.records()[name_of(wild)]
    assert record["status"] == "failed" and "loss is" in record["error"]
    assert results.is_finished(name_of(wild))


@pytest.mark.parametrize("method", ["hadamard", "lora", "full"])
def test_rows_longer_than_the_model_takes_are_refused_whatever_the_method(
    method: str, place: Path, tmp_path: Path
) -> None:
    spec = spec_of(place, method, seeds=1)
    spec = dataclasses.replace(spec, tasks=(dataclasses.replace(spec.tasks[0], max_length=65),))
    (one,), results = due(spec, {}), Results(tmp_path)
    assert execute.execute(one, results)
    (record,) = results.records().values()
    assert record["status"] == "failed"
    assert re.search("max_length: expected at most 64.*received 65", record["error"])


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(LoadError("no model"), id="a node without internet whose cache has no weights"),
        pytest.param(OSError(errno.EIO, os.strerror(errno.EIO)), id="a disk that fails"),
    ],
)
def test_what_is_away_for_now_leaves_no_record_and_runs_again(
    error: Exception, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,), results = due(spec_of(place, "bitfit", seeds=1), {}), Results(tmp_path)

    def away(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(train_room, "load_base", away)
    with pytest.raises(LoadError, match=re.escape(str(error))):
        execute.execute(one, results)
    assert results.records() == {}
    monkeypatch.undo()
    assert execute.execute(one, results) and results.records()[name_of(one)]["status"] == "done"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_worker_whose_log_is_on_a_full_disk_has_a_reason_all_the_same(place: Path, tmp_path: Path) -> None:
    (one,), results = due(spec_of(place, "bitfit", seeds=1), {}), Results(tmp_path)
    path = write_job(name_of(one), one, results)
    job = json.loads(path.read_text(encoding="utf-8"))
    job["run"]["model"] = str(tmp_path / "nowhere")  # an error that the user can mend
    path.write_text(json.dumps(job), encoding="utf-8")
    share = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
    process = multiprocessing.get_context("spawn").Process(
        target=run_as_child, args=(str(path), "/dev/full", share)
    )
    process.start()
    process.join()
    assert process.exitcode == MENDABLE
    with pytest.raises(SettingsError, match="could not write why it ended; expected room on its disk"):
        settle(name_of(one), MENDABLE, last_line(Path("/dev/full.log")), results, Outcome(), print, str, {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("distilbert", ""),
        ("modernbert", "Hadamard: 288 parameters train in this model where its formula says 384"),
        ("bart", "expected an encoder of one stack of layers"),
    ],
)
def test_a_model_that_a_formula_does_not_count_fails_before_it_trains(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path, 32)
    shutil.rmtree(tmp_path / "model")
    tiny_folder(tmp_path / "model", name)
    (one,), results = due(spec_of(tmp_path, "hadamard", seeds=1, epochs=1), {}), Results(tmp_path / "r")
    if message:
        monkeypatch.setattr(execute, "train", None)
    assert execute.execute(one, results)
    record = results.records()[name_of(one)]
    assert record["status"] == ("failed" if message else "done") and message in record.get("error", "")


CANCELLED = json.dumps(
    {
        **{"format": 1, "status": "cancelled", "identity": "", "title": "", "error": "interrupted"},
        "run": {
            **{
                "purpose": "score",
                "model": "m",
                "method": "head",
                "lr": 0.1,
                "seed": 0,
                "select": "held-out",
            },
            **{"bf16": False, "dropout": False, "task": {"name": "mood"}},
        },
    }
)


@pytest.mark.parametrize(
    ("content", "expected", "is_run_again"),
    [
        ('{"format": 1, "sta', "written half", True),
        ('{"format": 99, "status": "done"}', "of another version", False),
        ('{"format": 1, "status": "odd", "run": {}, "identity": ""}', "damaged", True),
        (
            '{"format": 1, "status": "done", "run": {"purpose": "score"}, "identity": "", "title": ""}',
            "run.model",
            True,
        ),
        (CANCELLED, None, True),
    ],
)
def test_a_file_that_is_no_finished_record_is_told(
    place: Path, tmp_path: Path, content: str, expected: str | None, is_run_again: bool
) -> None:
    spec = spec_of(place, "head", seeds=1)
    name = name_of(due(spec, {})[0])
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / f"{name}.json").write_text(content, encoding="utf-8")
    results = Results(tmp_path)
    results.records()
    assert (expected or "") in results.problems.get(f"{name}.json", "")
    assert (expected is None) == (f"{name}.json" not in results.problems)
    if is_run_again:
        run(spec, tmp_path)
        assert json.loads((tmp_path / "runs" / f"{name}.json").read_text())["status"] == "done"
    else:
        with pytest.raises(SettingsError, match=r"another version.*Choose another --results"):
            run(spec, tmp_path)
        results.cancel(name, {"run": {}, "identity": "", "title": ""}, "interrupted")
        assert (tmp_path / "runs" / f"{name}.json").read_text() == content


def test_a_record_that_cannot_be_read_is_neither_done_again_nor_replaced(place: Path, tmp_path: Path) -> None:
    spec = spec_of(place, "head", seeds=1)
    name = name_of(due(spec, {})[0])
    (tmp_path / "runs").mkdir()
    path = tmp_path / "runs" / f"{name}.json"
    path.symlink_to(path)
    results = Results(tmp_path)
    assert not results.records() and "cannot be read" in results.problems[path.name]
    with pytest.raises(SettingsError, match=r"cannot be read.*move the file away"):
        run(spec, tmp_path)
    results.cancel(name, {"run": {}, "identity": "", "title": ""}, "interrupted")
    assert path.is_symlink()


def test_two_workers_may_keep_the_same_labels_at_once(tmp_path: Path) -> None:
    results = [Results(tmp_path) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        for number in range(40):
            list(threads.map(lambda one: one.write_labels(f"h{number}", "0 1"), results))  # noqa: B023
    assert results[0].labels("h39") == [0.0, 1.0]


def test_a_score_that_is_not_finite_is_a_failed_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "score", lambda *_: {"accuracy": float("nan")})
    _, results = run(spec_of(place, "tfidf", seeds=1), tmp_path)
    (record,) = results.records().values()
    assert record["status"] == "failed" and "accuracy: expected a finite number" in record["error"]
    assert not results.problems


def test_what_may_mislead_in_the_rows_is_said_once_a_task(place: Path, tmp_path: Path) -> None:
    path, train = tmp_path / "spec.toml", tmp_path / "train.csv"
    train.write_text(
        "text,label\n" + "".join(f"a film {i},{'good' if i % 2 else 'bad'}\n" for i in range(60))
    )
    (tmp_path / "dev.csv").write_bytes(train.read_bytes())
    path.write_text(
        f"""title = "copied"\nmodels = [{str(place / "model")!r}]\nmethods = ["tfidf"]\nseeds = 1\n[[tasks]]
        name = "copied"\ntrain = {str(train)!r}\ndev = {str(tmp_path / "dev.csv")!r}\n"""
    )
    found = hadamard("bench", path, "--results", tmp_path / "r")
    assert found.code == 0 and "copied: 60 dev rows with the text of a training row" in found.err, found.err


def test_a_worker_without_a_method_says_why(place: Path, tmp_path: Path) -> None:
    (one,) = due(spec_of(place, "tfidf", seeds=1), {})
    job = tmp_path / "job.json"
    job.write_text(
        json.dumps({"run": {**dataclasses.asdict(one), "method": "mine"}, "results": str(tmp_path / "r")})
    )
    code, told = do_job(str(job))
    assert code == MENDABLE and "no method 'mine' in a worker" in told


def test_an_error_that_nobody_expected_ends_its_run_alone(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(method: str, *others: Any) -> Any:
        if method == "head":
            raise ZeroDivisionError("of a library")
        return unchanged(method, *others)

    unchanged = execute.train
    monkeypatch.setattr(execute, "train", train)
    outcome, results = run(spec_of(place, "head bitfit", seeds=1, epochs=1), tmp_path)
    assert outcome.n_done == 1 and len(outcome.failed) == 1
    (record,) = by_method(results)["head"]
    assert re.fullmatch(r"ZeroDivisionError: of a library \(\w+\.py:\d+; perhaps a bug\)", record["error"])


def test_a_record_holds_what_its_identity_is_made_of(place: Path, tmp_path: Path) -> None:
    _, results = run(spec_of(place, "tfidf", seeds=1), tmp_path)
    for name, record in results.records().items():
        text = json.dumps(record["settings"], sort_keys=True)
        assert hashlib.sha256(text.encode()).hexdigest() == record["identity"]
        assert name.endswith(record["identity"][:10]) and record["settings"]["train_data"]


def test_a_record_of_a_clone_says_its_commit() -> None:
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a clone")
    log = ["git", "-C", str(root), "log", "-1", "--format=%h", "--abbrev=12", "--", "src"]
    commit = subprocess.run(log, capture_output=True, text=True, check=True).stdout.strip()
    found = versions()["hadamard-adapter"]
    assert found.removesuffix(".dirty") == f"{hadamard_adapter.__version__}+g{commit}"


def test_a_record_says_its_machine_and_another_machine_does_not_run_it_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(place, "tfidf", "search = { rows = 40, extensions = 0 }", seeds=1)
    monkeypatch.setattr(execute, "processor_name", lambda device: "one of yesterday")
    outcome, results = run(spec, tmp_path)
    for record in results.records().values():
        assert record["machine"] == {"processor": "one of yesterday", "threads": torch.get_num_threads()}
        assert record["versions"]["scikit-learn"] == sklearn.__version__
    monkeypatch.setattr(execute, "processor_name", lambda device: "one of today")
    assert outcome.n_done and run(spec, tmp_path)[0].n_done == 0


def test_a_fit_runs_once_whatever_the_number_of_seeds(place: Path) -> None:
    runs = due(spec_of(place, "tfidf head", seeds=3), {})
    assert [(run.method, run.seed) for run in runs] == [("tfidf", 0), ("head", 0), ("head", 1), ("head", 2)]


@pytest.mark.parametrize(("spread", "expected"), [(0.001, True), (0.1, False)])
@pytest.mark.parametrize("scale", [0.001, 1000.0])
def test_numbers_collapse_next_to_the_spread_of_their_labels(
    spread: float, expected: bool, scale: float
) -> None:
    task = Task("t", "regression", ("score",), ("pearson",))
    labels = scale * np.linspace(0, 1, 50)
    assert execute._is_collapsed(task, spread * labels, labels.tolist()) == expected


def test_the_right_label_of_all_rows_is_no_collapse() -> None:
    task = Task("t", "single_label_classification", ("a", "b"), ("accuracy",))
    assert not execute._is_collapsed(task, np.zeros(50), [0] * 50)
    assert execute._is_collapsed(task, np.zeros(50), [0, 1] * 25)


def test_specs_of_one_name_are_both_kept(place: Path, tmp_path: Path) -> None:
    results, paths = Results(tmp_path / "r"), [tmp_path / "a" / "s.toml", tmp_path / "b" / "s.toml"]
    for path in paths:
        path.parent.mkdir()
        path.write_text(spec_text(place, "head").replace('title = "', f'title = "{path.parent.name} '))
    first, second, again = (results.keep_spec(path) for path in (*paths, paths[0]))
    assert first.name == "s.toml" == again.name and second.name.startswith("s-")
    assert [copy.read_text() for copy in (first, second)] == [path.read_text() for path in paths]


def test_the_copy_of_a_spec_names_the_model_that_its_records_name(place: Path, tmp_path: Path) -> None:
    moved = tmp_path / "9f3ab2c"
    shutil.copytree(place / "model", moved)
    spec_of(place, "tfidf head", seeds=2, epochs=1)
    words = ("bench", place / "spec.toml", "--results", tmp_path / "r", "--model", moved)
    for _ in range(2):
        found = hadamard(*words)
        assert found.code == 0 and "the copy in specs/ is replaced" not in found.err, found.err
    (group,) = read_groups(Results(tmp_path / "r"))
    assert (group.model, {row.n_asked for row in group.rows}) == (moved.name, {1, 2})
    assert list(group.specs) == ["tiny"]


@pytest.mark.parametrize("models", ['[  # see [1]\n  "a", # "]"\n]', "['a]']", '[\n"a#b"\n]', "[]"])
def test_a_renamed_model_leaves_the_rest_of_a_spec_as_it_is(models: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(f'title = "t"\nmodels = {models}\nmethods = ["head"]  # [2]\n')
    copy = Results(tmp_path / "r").keep_spec(tmp_path / "s.toml", "mine")
    assert copy.read_text() == 'title = "t"\nmodels = ["mine"]\nmethods = ["head"]  # [2]\n'


def test_damaged_labels_are_told_and_written_anew(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.write_labels("f", "0 1 1")
    (path,) = (tmp_path / "labels").iterdir()
    path.write_text(path.read_text()[:9])
    assert results.labels("f") is None and "written half" in results.problems["f.json"]
    results.write_labels("f", "0 1 1")
    assert results.labels("f") == [0, 1, 1] and not results.problems
    assert results.labels("g") is None and "g.json" not in results.problems


def test_numbers_of_a_record_are_those_of_the_run() -> None:
    values = [1234567.25, np.float32(0.1), -3.0, 0.123456789]
    assert (
        np.float32(list(map(float, execute._words(values).split()))).tolist() == np.float32(values).tolist()
    )


@pytest.mark.parametrize("named", ["lora", "."])
def test_only_the_model_of_a_kept_spec_is_renamed(
    place: Path, tmp_path: Path, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.toml"
    text = spec_text(place, "lora head").replace(str(place / "model"), "lora").replace('"tiny"', '"lora"')
    path.write_text(text, encoding="utf-8")
    copy = Results(tmp_path / "r").keep_spec(path, "mine")
    assert copy.read_text(encoding="utf-8") == text.replace('models = ["lora"]', 'models = ["mine"]')
    monkeypatch.chdir(place / "model")
    model = "." if named == "." else place / "model"
    words = ("--results", tmp_path / "r2", "--data", place, "--model", model)
    path.write_text(text.replace('"lora", "head"', '"tfidf"'), encoding="utf-8")
    found = hadamard("bench", path, *words)
    assert found.code == 0, found.err
    assert 'models = ["model"]' in (tmp_path / "r2" / "specs" / "s.toml").read_text(encoding="utf-8")


def test_a_spec_that_replaces_another_of_its_title_says_so(place: Path, tmp_path: Path) -> None:
    words = ("bench", place / "spec.toml", "--results", tmp_path / "r")
    spec_of(place, "tfidf", seeds=1, epochs=1)
    assert "the copy in specs/ is replaced" not in hadamard(*words).err + hadamard(*words).err
    with (place / "spec.toml").open("a") as file:
        file.write("# a remark\n")
    assert "the copy in specs/ is replaced" not in hadamard(*words).err
    spec_of(place, "head", seeds=1, epochs=1)
    found = hadamard(*words)
    assert found.code == 0 and "the copy in specs/ is replaced" in found.err, found.err


def test_the_board_counts_what_is_done_running_and_to_come(place: Path, tmp_path: Path) -> None:
    spec = spec_of(place, "tfidf head", "search = { rows = 40 }", seeds=2, epochs=1)
    drawn = list[io.StringIO]()

    def caption() -> str:
        return " ".join(re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", " ", drawn[0].getvalue()).split())

    def shown(purpose: str) -> list[list[str]]:
        drawn.insert(0, io.StringIO())
        console = Console(file=drawn[0], force_terminal=True, width=120)
        records = Results(tmp_path).records()
        with BenchBoard(spec, console, 1, purpose) as board:
            board.show(due(spec, records)[-1:], records)
        found = [line for line in drawn[0].getvalue().splitlines() if "model mood" in line]
        lines = found[-2:]  # the last look
        return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]

    assert shown("all") == [
        ["model mood tfidf", "0", "", "5", "searched"],
        ["model mood head", "0", "1", "4", "searched"],
    ]
    assert shown("search")[1] == ["model mood head", "0", "1", "2", "searched"]
    assert "time left: about 0 s and 7 runs of unknown length" in caption()
    run(spec_of(place, "tfidf", "search = { rows = 40 }", seeds=2, epochs=1), tmp_path)
    name, n_done, *left, lr = shown("all")[0]
    assert name == "model mood tfidf" and int(n_done) >= 5 and left == ["", ""] and float(lr) > 0
    assert re.search(r"time left: about \d+ s", caption()) and "and 5 runs of unknown length" in caption()


def test_without_a_terminal_a_line_says_how_far_a_bench_is(place: Path, tmp_path: Path) -> None:
    spec_of(place, "head", seeds=2, epochs=1)
    found = hadamard("bench", place / "spec.toml", "--results", tmp_path)
    assert "1 running, 1 run to come; time left: about 0 s and 2 runs of unknown length" in found.err
    assert re.search(r"1 running, 0 runs to come; time left: about \d+ s\n", found.err)
    assert "to come" not in hadamard("bench", place / "spec.toml", "--results", tmp_path, "--quiet").err


def test_a_run_whose_record_is_there_before_its_process_ends_is_counted_once(
    place: Path, tmp_path: Path
) -> None:
    spec = spec_of(place, "head", seeds=2, epochs=1)
    runs = due(spec, {})
    run(spec, tmp_path)
    over = name_of(runs[0])
    console = Console(file=io.StringIO(), width=200)
    BenchBoard(spec, console, 2, "all").show(runs, {over: Results(tmp_path).records()[over]})
    assert "1 running, 0 runs to come" in console.file.getvalue()


def test_a_bench_that_is_killed_loses_at_most_one_run(place: Path, tmp_path: Path) -> None:
    spec = spec_of(place, "head bitfit", epochs=6)
    command = [sys.executable, "-m", "hadamard_adapter.cli", "bench", str(place / "spec.toml")]
    process = subprocess.Popen([*command, "--results", str(tmp_path)], stderr=subprocess.DEVNULL)
    results, deadline = Results(tmp_path), time.monotonic() + 100
    while not results.records() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {path.name: path.read_bytes() for path in (tmp_path / "runs").glob("*.json")}
    assert 1 <= len(kept) < 4
    outcome, results = run(spec, tmp_path)
    assert outcome.n_done == 4 - len(kept)
    assert all((tmp_path / "runs" / name).read_bytes() == content for name, content in kept.items())
    assert not results.problems and len(results.records()) == 4


def test_a_worker_that_dies_takes_no_other_run_with_it(place: Path, tmp_path: Path) -> None:
    spec = spec_of(place, "head bitfit", seeds=1, epochs=3)
    inner, killed = pool(2), list[int]()

    def start(run: Any, results: Results, slot: int) -> Any:
        started = inner.start(run, results, slot)
        if run.method == "head":
            os.kill(started.process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
            killed.append(slot)
        return started

    outcome, results = run(spec, tmp_path, Executor(2, start))
    assert len(killed) == 1 and outcome.n_done == 1
    assert ["signal 9" in how for how in outcome.lost.values()] == [True]
    statuses = {record["run"]["method"]: record["status"] for record in results.records().values()}
    assert statuses == {"head": "cancelled", "bitfit": "done"}
    outcome, results = run(spec, tmp_path)
    assert outcome.n_done == 1 and not outcome.lost


@dataclasses.dataclass
class Pretended:
    """A worker of which a test says what its polls find, and what stopping it does."""

    poll: Callable[[], int | None]
    stop: Callable[[], object] = lambda: None

    def last_words(self) -> str:
        return ""


def test_a_bench_that_is_interrupted_while_a_record_is_late_leaves_it_alone(
    place: Path, tmp_path: Path
) -> None:
    polled = Mock(side_effect=[0, 0, KeyboardInterrupt])
    executor = Executor(1, lambda run, results, slot: Pretended(polled))
    with pytest.raises(KeyboardInterrupt):
        run(spec_of(place, "head", seeds=1), tmp_path / "r", executor)
    assert not Results(tmp_path / "r").records()


@pytest.mark.parametrize("comes", [True, False])
def test_a_record_that_a_shared_disk_shows_late_is_waited_for_and_never_replaced(
    comes: bool, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, n_polls = spec_of(place, "head", seeds=1), [0]
    monkeypatch.setattr("hadamard_adapter.bench.schedule._LATE_S", 20.0 if comes else 0.5)

    def poll() -> int:
        n_polls[0] += 1
        if comes and n_polls[0] == 3:
            for path in (tmp_path / "elsewhere" / "runs").iterdir():
                shutil.copy(path, Results(tmp_path / "r").made("runs") / path.name)
        return 0

    def start(run: Any, results: Results, slot: int) -> Any:
        execute.execute(run, Results(tmp_path / "elsewhere"))
        return Pretended(poll, stop=pytest.fail)

    outcome, results = run(spec, tmp_path / "r", Executor(1, start))
    assert n_polls[0] > 1
    assert [outcome.n_done, len(outcome.lost), len(results.records())] == ([1, 0, 1] if comes else [0, 1, 0])
    assert comes or "its record is not to be seen" in next(iter(outcome.lost.values()))


def test_what_a_killed_run_on_another_device_left_is_no_failure(place: Path, tmp_path: Path) -> None:
    spec = spec_of(place, "hadamard", seeds=1)
    partial = Results(tmp_path).made("work") / name_of(due(spec, {})[0]) / "out.partial"
    partial.mkdir(parents=True)
    (partial / "settings.json").write_text('{"device": "cuda"}')
    outcome, _ = run(spec, tmp_path)
    assert (outcome.n_done, outcome.failed) == (1, {})


@pytest.mark.parametrize("others_gb", [0.3, 12.0])
def test_memory_that_other_processes_hold_is_no_word_on_a_method(
    others_gb: float, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    sizes = {
        "is_available": True,
        "get_device_name": "a GPU",
        "mem_get_info": (int(4e9), int(24e9)),
        "memory_reserved": int(20e9 - others_gb * 1e9),
        "reset_peak_memory_stats": None,
        "max_memory_allocated": 3 << 20,
    }
    for name, value in sizes.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(execute, "train", full)
    spec = spec_of(place, "head", seeds=1)
    if others_gb > 1:
        with pytest.raises(LoadError, match=r"other processes hold 12 GB of the GPU.*fewer --workers"):
            run(spec, tmp_path)
        assert not Results(tmp_path).records()
    else:
        outcome, results = run(spec, tmp_path)
        (record,) = results.records().values()
        assert len(outcome.failed) == 1 and record["peak_gpu_memory_mb"] == 3


@pytest.mark.skipif(not Path("/proc").exists(), reason="no /proc that lists processes")
def test_a_pool_that_is_terminated_leaves_no_worker_and_continues(place: Path, tmp_path: Path) -> None:
    spec = spec_of(place, "head bitfit", seeds=1, epochs=40)
    command = [sys.executable, "-m", "hadamard_adapter.cli", "bench", str(place / "spec.toml")]
    more = ["--results", str(tmp_path), "--executor", "pool"]
    process = subprocess.Popen([*command, *more], stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 100
    while len(list(tmp_path.glob("work/*/*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)  # until both runs have written more than their locks
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    while left := processes_of(process.pid):
        assert time.monotonic() < deadline + 60, left
        time.sleep(0.05)
    records = Results(tmp_path).records()
    assert [record["status"] for record in records.values()] == ["cancelled"] * 2
    outcome, _ = run(spec, tmp_path)
    assert outcome.n_done == 2 and not outcome.lost


@pytest.mark.parametrize(
    ("listed", "n_gpus", "expected"),
    [
        (None, 0, [None, None, None]),
        (None, 2, ["0", "1", "0"]),
        ("", 0, [None, None, None]),
        ("3", 1, [None, None, None]),  # a worker has what the bench has
        ("2,3", 2, ["2", "3", "2"]),
        ("GPU-8f2c, GPU-11aa", 2, ["GPU-8f2c", "GPU-11aa", "GPU-8f2c"]),
        ("4,1,-1,0", 2, ["4", "1", "4"]),
    ],
)
def test_workers_have_gpus_that_their_bench_has(
    monkeypatch: pytest.MonkeyPatch, listed: str | None, n_gpus: int, expected: list[str | None]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert [_share(slot, 3).get("CUDA_VISIBLE_DEVICES") for slot in range(3)] == expected


def test_slurms_jobs_do_the_runs(place: Path, tmp_path: Path) -> None:
    spec = spec_of(place, "head", seeds=1)
    outcome, _ = run(spec, tmp_path / "r", on_slurm(1, tmp_path / "jobs", cluster="local"))
    assert (outcome.n_done, outcome.lost) == (1, {})


def test_a_job_that_slurm_loses_is_told_and_done_again_by_the_same_command(
    place: Path, tmp_path: Path
) -> None:
    spec, inner = spec_of(place, "head", seeds=1), on_slurm(1, tmp_path / "jobs", cluster="local")

    def start(run: Any, results: Results, slot: int) -> Any:
        started = inner.start(run, results, slot)
        vars(started.job)["_results_timeout_s"] = 0.1  # how long to wait for a slow disk's file
        started.stop()  # as `scancel` does, or a node that goes down
        return started

    outcome, results = run(spec, tmp_path / "r", Executor(1, start))
    ((name, record),) = results.records().items()
    assert outcome.lost.keys() == {name} and record["status"] == "cancelled"
    assert run(spec, tmp_path / "r", inner)[0].n_done == 1


@pytest.mark.parametrize("is_taken", [True, False])
def test_slurm_is_asked_for_a_day_and_its_refusal_is_one_line(
    is_taken: bool, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs, kept = tmp_path / "bin", tmp_path / "script.sh"
    programs.mkdir()
    answer = f"cp $1 {kept}; echo Submitted batch job 7" if is_taken else "echo no such partition >&2; exit 1"
    for name, line in (("sbatch", answer), ("srun", "exit 0"), ("sacct", "exit 1"), ("scancel", "exit 0")):
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    executor, results = on_slurm(1, tmp_path / "jobs"), Results(tmp_path / "r")
    one = due(spec_of(place, "head", seeds=1), {})[0]
    if is_taken:
        executor.start(one, results, 0).stop()
        assert "#SBATCH --time=1440\n" in kept.read_text()
    else:
        with pytest.raises(SettingsError, match=r"no such partition.*SBATCH_PARTITION") as caught:
            executor.start(one, results, 0)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["pool", "slurm"])
def test_what_the_user_can_mend_is_said_wherever_the_run_was(place: Path, tmp_path: Path, where: str) -> None:
    own = lay_out(tmp_path / "own")
    inner = pool(1) if where == "pool" else on_slurm(1, tmp_path / "jobs", cluster="local")

    def start(run: Any, results: Results, slot: int) -> Any:
        name_of(run)  # reads the rows, as a bench has before it starts a run
        (own / "dev.csv").unlink()
        return inner.start(run, results, slot)

    with pytest.raises(SettingsError, match=r"^task 'mood': .*dev\.csv") as caught:
        run(spec_of(own, "head", seeds=1), tmp_path / "r", Executor(1, start))
    assert "submitit" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_that_another_process_has_is_waited_for(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(place, "head", seeds=1)
    work = Results(tmp_path).made("work") / name_of(due(spec, {})[0])
    work.mkdir()
    monkeypatch.setattr("hadamard_adapter.bench.schedule._BUSY_S", 0.1)
    with locked(work):
        shown = list[int]()

        class Impatient(Silent):
            def show(self, running: Any, records: Any) -> None:
                shown.append(len(running))
                if len(shown) > 6:
                    raise TimeoutError

        with pytest.raises(TimeoutError):
            run_all(spec, Results(tmp_path), in_this_process(), Impatient(), silent)
    assert not [r for r in Results(tmp_path).records().values() if r["status"] == "done"]
    assert run(spec, tmp_path)[0].n_done == 1


def test_a_full_disk_is_said_and_what_is_finished_stays(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(spec_of(place, "head", seeds=1), tmp_path)

    with monkeypatch.context() as patch:
        patch.setattr(execute, "train", no_checkpoint)
        with pytest.raises(TrainingError, match=r"no space left on the disk of .*what is finished is kept"):
            run(spec_of(place, "head bitfit", seeds=1), tmp_path)
    outcome, results = run(spec_of(place, "head bitfit", seeds=1), tmp_path)
    assert outcome.n_done == 1 and len(results.records()) == 2


def test_a_record_that_a_full_disk_does_not_take_is_no_lost_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(place, "head", seeds=1)
    with monkeypatch.context() as patch:
        patch.setattr(Results, "write", no_space)
        with pytest.raises(TrainingError, match=r"no space left on the disk of .*what is finished is kept"):
            run(spec, tmp_path)
    assert run(spec, tmp_path)[0].n_done == 1


def test_on_a_full_disk_all_workers_are_stopped(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = list[str]()

    def endless(run: Any, results: Results, slot: int) -> Any:
        def poll() -> int | None:
            if run.method == "bitfit":
                raise KeyboardInterrupt
            return None

        return Pretended(poll, stop=lambda: stopped.append(name_of(run)))

    monkeypatch.setattr(Results, "write", no_space)
    with pytest.raises(KeyboardInterrupt):
        run(spec_of(place, "head bitfit", seeds=1), tmp_path, Executor(2, endless))
    assert len(stopped) == 2


def test_the_plan_says_what_would_run_and_runs_nothing(place: Path, tmp_path: Path) -> None:
    spec_of(place, "head bitfit", "search = { rows = 40 }", seeds=2)
    words = ("bench", place / "spec.toml", "--results", tmp_path, "--plan")
    found = hadamard(*words)
    assert found.code == 0, found.err
    assert "model mood head: 0 finished; to run: 3 of a search, then 2; unknown" in found.out
    assert "10 runs; 0 of them" in found.out and not list(tmp_path.iterdir())
    run(spec_of(place, "head", "search = { rows = 40, extensions = 0 }", seeds=2), tmp_path)
    spec_of(place, "head bitfit", "search = { rows = 40, extensions = 0 }", seeds=2)
    found = hadamard(*words)
    assert "model mood head: 5 finished; to run: 0 at " in found.out
    assert "bitfit: 0 finished; to run: 3 of a search, then 2; about" in found.out
    assert "\n5 runs" in found.out and "\n3 runs" in hadamard(*words, "--purpose", "search").out
    assert "\n2 runs" in hadamard(*words, "--purpose", "score").out
    assert "finished run" not in found.out.rpartition("runs; ")[2]
    path = next((tmp_path / "runs").glob("*lr*-s1-*.json"))
    record = json.loads(path.read_text(encoding="utf-8"))
    record["versions"] |= {"torch": "1.0.1"}
    path.write_text(json.dumps(record), encoding="utf-8")
    assert "1 finished run had torch 1.0, transformers" in hadamard(*words).out


def test_a_run_that_was_broken_off_says_so_and_its_time_counts_nowhere(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(place, "head bitfit", seeds=1, epochs=3)
    results, whole = Results(tmp_path), train_room.train

    def interrupted(*arguments: Any) -> Any:
        whole(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(execute, "train", interrupted)
        run(spec, tmp_path)
    run(spec, tmp_path)
    ((_, head),) = [pair for pair in results.records().items() if pair[1]["run"]["method"] == "head"]
    ((name, other),) = [pair for pair in results.records().items() if pair[1]["run"]["method"] == "bitfit"]
    assert head["is_resumed"] and "is_resumed" not in other
    (group,) = read_groups(results)
    assert [row.seconds for row in group.rows] == [None, other["seconds"]]
    assert total_seconds(due(spec, {}), {name: head}) == (0.0, 2)


def test_a_run_s_peak_of_memory_is_its_own(place: Path, tmp_path: Path) -> None:
    taken = bytearray(300_000_000)
    del taken
    _, results = run(spec_of(place, "head", seeds=1, epochs=1), tmp_path)
    (record,) = results.records().values()
    if sys.platform == "linux":
        with Path("/proc/self/status").open(encoding="ascii") as file:
            now = next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024
        assert record["peak_memory_mb"] < now + 150


def test_an_estimate_is_of_runs_of_the_same_precision_where_there_are_some(place: Path) -> None:
    wanted = cells_of(spec_of(place, "bitfit", seeds=1))[0].run("score", 2, 0.001, 0)

    def ran(seconds: float, **changes: Any) -> dict[str, Any]:
        run = {"model": wanted.model, "method": "bitfit", "task": {"name": "mood"}, "bf16": False, **changes}
        return {"status": "done", "work": work_of(wanted), "seconds": seconds, "run": run}

    half = ran(10.0, bf16=True)
    assert total_seconds([wanted], {"a": half}) == (pytest.approx(10.0, rel=0.01), 0)
    other = ran(50.0, method="lora", task={"name": "tone"})  # of the precision, though of another method
    assert total_seconds([wanted], {"a": half, "b": other}) == (pytest.approx(50.0, rel=0.01), 0)


def test_a_record_of_a_method_of_another_version_does_not_stop_the_plan(place: Path, tmp_path: Path) -> None:
    _, results = run(spec_of(place, "head", seeds=1), tmp_path)
    ((name, record),) = results.records().items()
    results.write(f"{name}-later", {**record, "run": {**record["run"], "method": "of tomorrow"}})
    spec_of(place, "head bitfit", seeds=1)
    found = hadamard("bench", place / "spec.toml", "--results", tmp_path, "--plan")
    assert found.code == 0 and "1 runs; 1 of them take about" in found.out, found.err


def test_an_estimate_tells_the_fixed_part_from_that_of_each_row() -> None:
    costs = [(work, 20 + 0.002 * work) for work in (500, 2000, 2000, 60_000)]
    slow = [(2000, 300.0)]  # a neighbour had the machine
    assert estimated(30_000, [costs]) == pytest.approx(80, rel=0.01)
    assert estimated(30_000, [costs + slow]) == pytest.approx(80, rel=0.1)
    short, other = [(500, 50.0)], [(60_000, 600.0)]
    assert estimated(1000, [[], short, other]) == pytest.approx(100, rel=0.01)
    assert estimated(30_000, [[], short, other]) == pytest.approx(300, rel=0.01), "short runs say little"
    assert estimated(30_000, [short, []]) == pytest.approx(3000, rel=0.01)
    assert estimated(1000, [[], []]) is None


def test_a_look_at_what_is_due_reads_no_rows_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = spec_text(place, "full", "search = { rows = 40 }", seeds=1)
    head, task = text.split("[[tasks]]")
    tasks = [f"[[tasks]]{task.replace('mood', f'due-{index}')}" for index in range(9)]
    path = tmp_path / "spec.toml"
    path.write_text(head + "".join(tasks), encoding="utf-8")
    spec = read_spec(path)
    expected = due(spec, {})

    def refuse(settings: object) -> None:
        raise AssertionError("rows were read")

    monkeypatch.setattr(rows, "read_data", refuse)
    assert due(spec, {}) == expected


def test_a_bench_of_which_every_run_failed_is_an_error(place: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(place / "model", model)
    weights = load_file(model / "model.safetensors")
    save_file({name: torch.full_like(weight, torch.nan) for name, weight in weights.items()},
              model / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    path = tmp_path / "spec.toml"
    path.write_text(spec_text(place, "head bitfit", seeds=1).replace(str(place / "model"), str(model)))
    found = hadamard("bench", path, "--results", tmp_path / "r")
    assert found.code == 2 and found.err.count("error: ") == 1, found.err
    assert re.search(r"error: all 2 runs failed, the first one model-mood-\w+-.*: DivergedError: ", found.err)
    assert {record["status"] for record in Results(tmp_path / "r").records().values()} == {"failed"}
    again = hadamard("bench", path, "--results", tmp_path / "r")
    assert again.code == 0 and "failed before: 2; they stay so" in again.err, "nothing is left to run"
    assert (
        "1 finished (1 failed); to run: 0"
        in hadamard("bench", path, "--results", tmp_path / "r", "--plan").out
    )


def test_bad_input_is_one_line_and_exit_code_2(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    good = spec_text(place, "head bitfit", seeds=1)
    for text, words, message in [
        ("title = ", (), "not a TOML file"),
        (good.replace("bitfit", "bitfitt"), (), "did you mean"),
        (
            good.replace(f"{place / 'model'}", "no/such/model"),
            (),
            "no model in 'no/such/model': expected a folder",
        ),
        (good.replace('/model"', '/modell"'), (), f"modell'.*did you mean '{place / 'model'}'"),
        (good.replace("epochs = 2", "epochs = 2\nrows = 97"), (), "rows: expected at most 96.*received 97"),
        (good.replace("train.csv", "none.csv"), (), "none.csv"),
        (good, ("--executor", "cloud"), "'cloud' is not one of"),
        (good, ("--executor", "slurm"), "choose local or pool"),
        (good, ("--executor", "pool", "--workers", 0), "workers: expected a number from 1 on"),
        (good, ("--executor", "slurm", "--workers", 0), "workers: expected a number from 1 on"),
        (good, ("--workers", 3), "one after the other; pass --executor pool"),
        (good, ("--results", path), "expected a folder|is a file"),
    ]:
        path.write_text(text, encoding="utf-8")
        found = hadamard("bench", path, "--results", tmp_path / "r", *words)
        assert found.code == 2 and found.err.count("error: ") == 1, (message, found.err)
        assert re.search(message, found.err), found.err
        assert not (tmp_path / "r" / "specs").exists(), "a spec that was refused is kept"
