"""The command `hadamard`: what its verbs print, write and return."""

import contextlib
import csv
import dataclasses
import errno
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from command import Outcome, hadamard, tree_of, tuned
from hadamard_adapter import __version__
from hadamard_adapter.cli.console import data_console, plain_table
from hadamard_adapter.cli.eval import _matrix
from hadamard_adapter.cli.main import hadamard as group
from hadamard_adapter.cli.main import run
from hadamard_adapter.cli.options import CommaList, command_from
from hadamard_adapter.cli.reference import page
from hadamard_adapter.cli.tune import summary
from hadamard_adapter.tasks.tables import table_of
from hadamard_adapter.tuning import Classifier, Evaluation, TuneResult, TuneSettings
from models import TINY, tiny_config, tiny_model
from tuning_help import write_rows

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = sorted(group.commands)


def test_version_is_that_of_the_package() -> None:
    assert hadamard("--version").out == f"hadamard {__version__}\n"


def test_no_command_shows_the_help_of_all() -> None:
    shown = hadamard()
    assert shown.code == 0 and shown.err == ""
    assert all(f"\n  {name} " in shown.out for name in COMMANDS)
    assert hadamard("--help") == shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text_and_stands_in_the_reference(name: str) -> None:
    section = page().partition(f"## hadamard {name}\n")[2].partition("\n## ")[0]
    for parameter in group.commands[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help and len(parameter.help) > 15, parameter.opts
            assert f"`{parameter.opts[0]}" in section


def test_the_reference_page_is_up_to_date() -> None:
    remedy = "run: python -m hadamard_adapter.cli.reference > docs/cli.md"
    assert (ROOT / "docs" / "cli.md").read_text() == page(), remedy


def test_every_setting_of_a_run_is_an_option() -> None:
    options = {str(parameter.name) for parameter in group.commands["tune"].params}
    assert options == {field.name for field in dataclasses.fields(TuneSettings)} | {
        "quiet",
        "config",
        "debug",
    }


def test_tune_says_what_it_does_and_leaves_standard_output_alone() -> None:
    told = tuned().told
    assert (told.code, told.out) == (0, "")
    for words in (
        "single-label classification",
        "preset wide",
        "epoch 6, dev accuracy",
        "next     hadamard eval",
    ):
        assert words in told.err
    assert "trained  512 parameters of the adapter" in told.err


def test_tune_again_says_that_it_is_finished_and_changes_nothing() -> None:
    before = tree_of(tuned().adapter)
    again = hadamard(*tuned().words)
    assert again.code == 0 and "finished" in again.err
    assert tree_of(tuned().adapter) == before


def test_quiet_says_nothing_before_or_after_the_verb() -> None:
    silent = (0, "", "")
    for words in ((*tuned().words, "--quiet"), ("--quiet", *tuned().words)):
        assert dataclasses.astuple(hadamard(*words)) == silent


def test_eval_json_agrees_with_the_tables(tmp_path: Path) -> None:
    words = ("eval", "--adapter", tuned().adapter, "--data", tuned().dev)
    tables, found = hadamard(*words), hadamard(*words, "--json", "--errors", tmp_path / "wrong.csv")
    scores = json.loads(found.out)
    assert (tables.code, found.code, scores["n"]) == (0, 0, 24)
    assert f"accuracy     {scores['accuracy']:.4f}" in tables.out
    assert sum(map(sum, scores["confusion"])) == 24
    for label, row in zip(scores["labels"], scores["confusion"], strict=True):
        counts = "".join(
            f"{count:>{max(len(name), 1) + 2}}" for name, count in zip(scores["labels"], row, strict=True)
        )
        assert f"{label:<16}{counts}" in tables.out
    with (tmp_path / "wrong.csv").open() as file:
        wrong = list(csv.DictReader(file))
    assert len(wrong) == 24 - round(24 * scores["accuracy"])
    assert all(row["label"] != row["predicted"] for row in wrong)


def test_predict_keeps_every_column_and_agrees_with_the_library(tmp_path: Path) -> None:
    from hadamard_adapter import load

    rows = [{"id": str(index), "text": f"w{10 + index} w30", "note": 'a "b", c'} for index in range(9)]
    with (tmp_path / "in.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    words = ("--input", tmp_path / "in.csv", "--output", tmp_path / "out.jsonl", "--all-probabilities")
    assert hadamard("predict", "--adapter", tuned().adapter, "--dtype", "float32", *words).code == 0
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{name: row[name] for name in rows[0]} for row in written] == rows
    for row, expected in zip(
        written, load(tuned().adapter).predict([row["text"] for row in rows]), strict=True
    ):
        assert row["prediction"] == expected.label
        assert row["probability"] == row[f"probability_{expected.label}"]
        assert row["probability_bad"] == pytest.approx(expected.probabilities["bad"], abs=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.jsonl"]


def test_predict_replaces_no_cell_and_takes_names_that_it_does_not_add(tmp_path: Path) -> None:
    rows = [{"text": f"w{10 + index % 9} w30", "probability_of_rain": "0.5"} for index in range(513)]
    late = [*rows[:-1], {**rows[-1], "prediction": "mine"}]
    for name, content in (("rain", rows), ("late", late)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))

    def predict(name: str, *more: object) -> Outcome:
        words = ("--input", tmp_path / f"{name}.jsonl", "--output", tmp_path / "out.jsonl")
        return hadamard("predict", "--adapter", tuned().adapter, *words, *more)

    found = predict("late")
    assert found.code == 2 and "late.jsonl: has a column 'prediction' already" in found.err
    found = predict("rain", "--all-probabilities", "--prediction-column", "probability_good")
    assert found.code == 2 and "'probability_good' would be added twice" in found.err
    assert not (tmp_path / "out.jsonl").exists()
    assert predict("rain").code == 0
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["probability_of_rain"] == "0.5"


def test_a_matrix_that_is_too_wide_has_numbers_for_its_columns() -> None:
    names = tuple(f"a class with quite a long name, {letter}" for letter in "abcdefghi")
    counts = [[103 + row + column for column in range(9)] for row in range(9)]
    evaluation = Evaluation({}, {}, counts, names, 9, 0, [], 64)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        data_console().print(_matrix(evaluation, 120))
    lines = shown.getvalue().splitlines()
    assert lines[0].split() == ["true", "\\", "predicted", *map(str, range(9))]
    assert lines[1].split()[-9:] == [str(103 + column) for column in range(9)]
    assert lines[1].startswith("0 a class with quite")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_standard_output_is_utf8_whatever_the_locale(encoding: str) -> None:
    words = [sys.executable, "-m", "hadamard_adapter.cli", "predict", "--adapter", str(tuned().adapter)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    given = "text\nw10 東京\n".encode()
    found = subprocess.run(words, input=given, capture_output=True, env=environment, check=True)
    assert found.stdout.decode("utf-8").splitlines()[1].startswith("w10 東京,")


def test_predict_says_which_type_it_computed_in_and_falls_back_where_that_changes_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, tuple[str, str]] = {}
    words = ("predict", "--adapter", tuned().adapter, "--input", tuned().dev, "--device", "cpu")
    for case, dtype, tolerance in (
        *(("whole", "float32", 1e-2), ("half", "bfloat16", 1e-2)),
        *(("fallen back", "bfloat16", 0.0),),
    ):
        monkeypatch.setattr("hadamard_adapter.cli.half_precision.TOLERANCE", tolerance)
        outcome = hadamard(*words, "--output", tmp_path / "out.csv", "--dtype", dtype)
        assert outcome.code == 0, outcome.err
        found[case] = outcome.err, (tmp_path / "out.csv").read_text()
    assert "a second, float32)" in found["whole"][0] and "a second, bfloat16)" in found["half"][0]
    assert "more than 0: float32 instead" in " ".join(found["fallen back"][0].split())
    assert found["fallen back"][1] == found["whole"][1] != found["half"][1]


@pytest.mark.parametrize(
    ("where", "n_rows", "dtype"),
    [
        ("late", 512, "float32"),
        ("nowhere", 512, "bfloat16"),
        ("late", 511, "float32"),
        ("no", 511, "float32"),
    ],
)
def test_a_late_row_that_half_precision_moves_is_found_and_few_rows_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, n_rows: int, dtype: str
) -> None:
    """The only long row stands at place 400 of the first batch."""
    compared = list[str]()

    def halved(self: Any, texts: list[str], *args: Any) -> tuple[Any, float]:
        compared.extend(texts)
        return dataclasses.replace(self, dtype="bfloat16"), 0.006 if " ".join(["w30"] * 9) in texts else 0.004

    monkeypatch.setattr("hadamard_adapter.tuning.Classifier.halved", halved)
    monkeypatch.setattr("hadamard_adapter.tuning.precision.pick_dtype", lambda dtype, device: "bfloat16")
    texts = [" ".join(["w30"] * 9) if (where, row) == ("late", 400) else "w10" for row in range(n_rows)]
    given = "text\n" + "".join(f"{text}\n" for text in texts)
    found = hadamard("predict", "--adapter", tuned().adapter, "--output", tmp_path / "out.csv", stdin=given)
    assert found.code == 0 and f"a second, {dtype})" in found.err
    assert len(compared) == (256 if n_rows == 512 else 0)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_rows_that_half_precision_moves_are_found_wherever_they_stand(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five rows of a slow pipe, then a full batch, then one with long rows, as in a file sorted by length."""
    long, batches = " ".join(["w30"] * 9), list[str]()

    def halved(self: Any, texts: list[str], *args: Any) -> tuple[Any, float]:
        return dataclasses.replace(self, dtype="bfloat16"), 0.02 if long in texts else 0.0

    def logits_and_cuts(self: Any, texts: list[str], *args: Any) -> Any:
        batches.append(f"{len(texts)} {self.dtype}")
        logits, n_cut = original(self, texts, *args)
        moved = [1.0 if text == long and self.dtype == "bfloat16" else 0.0 for text in texts]
        return logits + np.float32(moved)[:, None] * np.float32([1, -1]), n_cut

    def arriving(*args: Any, **kwargs: Any) -> Any:
        for texts in (["w10"] * 5, ["w10"] * 512, [*["w20"] * 511, long], ["w10"] * 512):
            yield table_of("rows", ("text",), list(enumerate([{"text": text} for text in texts])))

    original = Classifier.logits_and_cuts
    monkeypatch.setattr(Classifier, "halved", halved)
    monkeypatch.setattr(Classifier, "logits_and_cuts", logits_and_cuts)
    monkeypatch.setattr("hadamard_adapter.tasks.iter_rows", arriving)
    monkeypatch.setattr("hadamard_adapter.tuning.precision.pick_dtype", lambda dtype, device: "bfloat16")
    words = ("--output", tmp_path / "out.csv", "--dtype", dtype)
    found = hadamard("predict", "--adapter", tuned().adapter, *words, stdin="text\nw10\n")
    assert found.code == 0, found.err
    first = "float32" if dtype == "auto" else "bfloat16"
    labelled = [batch for batch in batches if batch.split()[0] in ("5", "512")]
    assert labelled == [f"5 {first}", "512 bfloat16", "512 bfloat16", "512 float32", "512 float32"]
    compared = ["251 float32"] * (dtype == "bfloat16") + ["4 float32"]
    assert [batch for batch in batches if batch not in labelled] == compared
    assert "more than 0.01: float32 instead from there on" in " ".join(found.err.split())
    used = ["float32", "bfloat16", "float32"][dtype == "bfloat16" :]
    assert f"a second, {', then '.join(used)})" in " ".join(found.err.split())


def test_predict_from_standard_input_to_standard_output_is_data_alone() -> None:
    found = hadamard("predict", "--adapter", tuned().adapter, "--quiet", stdin="text,z\nw10 w50,1\n")
    header, row = found.out.splitlines()
    assert (found.code, found.err, header) == (0, "", "text,z,prediction,probability")
    assert row.startswith(("w10 w50,1,good,0.", "w10 w50,1,bad,0."))
    lines = hadamard(
        "predict", "--adapter", tuned().adapter, "--format", "jsonl", stdin='{"text": "w20", "z": [1]}\n'
    )
    assert json.loads(lines.out)["z"] == [1]


def test_keys_that_later_json_lines_lack_are_empty_cells(tmp_path: Path) -> None:
    rows = [{"text": "w10", "id": 1}] + 600 * [{"text": "w20"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.csv", "--quiet")
    found = hadamard("predict", "--adapter", tuned().adapter, *words)
    assert found.code == 0, found.err
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0].split(",")[:2] == ["text", "id"] and {line.split(",")[1] for line in lines[2:]} == {""}


def test_predictions_go_to_standard_output_where_messages_go_to_a_terminal() -> None:
    """As in `hadamard predict ... > out.csv`, typed; FORCE_COLOR has rich take any stream for a terminal."""
    words = [sys.executable, "-m", "hadamard_adapter.cli", "predict", "--adapter", str(tuned().adapter)]
    environment = {**os.environ, "FORCE_COLOR": "1"}
    found = subprocess.run(words, input=b"text\nw10\n", capture_output=True, env=environment, check=True)
    assert found.stdout.decode().splitlines()[1].startswith("w10,")
    assert b"1 rows labelled" in found.stderr and b"w10" not in found.stderr


def test_predict_and_eval_say_how_many_rows_were_cut(tmp_path: Path) -> None:
    from hadamard_adapter import load

    limit = load(tuned().adapter).max_length
    long = " ".join(["w10"] * (limit + 1))
    (tmp_path / "in.csv").write_text(f"text,label\n{long},good\nw50,bad\n")
    expected = "1 of 2 rows are longer than"
    found = hadamard("predict", "--adapter", tuned().adapter, "--input", tmp_path / "in.csv")
    assert found.code == 0 and f"{expected} {limit} tokens" in found.err
    assert expected in hadamard("eval", "--adapter", tuned().adapter, "--data", tmp_path / "in.csv").err


def test_eval_without_a_wrong_row_writes_the_header_alone(tmp_path: Path) -> None:
    words = ("eval", "--adapter", tuned().adapter)
    row = hadamard("predict", *words[1:], stdin="text\nw10 w50\n").out.splitlines()[1]
    (tmp_path / "in.csv").write_text("text,label\nw10 w50," + row.split(",")[1] + "\n")
    (tmp_path / "empty.csv").touch()
    assert hadamard(*words, "--data", tmp_path / "in.csv", "--errors", tmp_path / "empty.csv").code == 0
    assert (tmp_path / "empty.csv").read_text() == "row,text,pair,label,predicted,probability\n"


def as_multi_label(folder: Path, separator: str = "|") -> Path:
    """The tiny adapter, its two labels no longer exclusive."""
    adapter = Path(shutil.copytree(tuned().adapter, folder / "multi"))
    run = json.loads((adapter / "run.json").read_text())
    kind = {"problem_type": "multi_label_classification", "metrics": ["micro-f1"]}
    run["task"] |= {**kind, "separator": separator}
    (adapter / "run.json").write_text(json.dumps(run))
    return adapter


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl"])
def test_what_predict_writes_of_several_labels_eval_reads(format: str, tmp_path: Path) -> None:
    adapter, output = as_multi_label(tmp_path), tmp_path / f"out.{format}"
    words = ("--input", tuned().dev, "--output", output, "--dtype", "float32")  # as eval computes
    assert hadamard("predict", "--adapter", adapter, *words).code == 0
    found = hadamard(
        *("eval", "--adapter", adapter, "--data", output, "--text", "text", "--label", "prediction", "--json")
    )
    scores = json.loads(found.out)
    assert (scores["n"], scores["accuracy"]) == (24, 1.0)
    scored = hadamard(
        "eval", "--adapter", adapter, "--data", tuned().dev, "--json", "--errors", tmp_path / "w.csv"
    )
    n_wrong = len((tmp_path / "w.csv").read_text().splitlines()) - 1
    assert json.loads(scored.out)["accuracy"] == pytest.approx(1 - n_wrong / 24)


def test_labels_are_joined_as_the_training_rows_join_them(tmp_path: Path) -> None:
    rows = [{"text": "w10 w50", "label": "bad,good"}, {"text": "w20", "label": "bad,good"}]
    with (tmp_path / "dev.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    words = ("--adapter", as_multi_label(tmp_path, ","), "--errors", tmp_path / "wrong.csv")
    assert hadamard("eval", *words, "--data", tmp_path / "dev.csv").code == 0
    with (tmp_path / "wrong.csv").open() as file:
        wrong = list(csv.DictReader(file))
    assert wrong and {row["label"] for row in wrong} == {"bad,good"}


def test_eval_and_predict_take_another_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "dev.csv"
    path.write_text(tuned().dev.read_text().replace(",", ";"))
    words = ("--adapter", tuned().adapter, "--delimiter", ";")
    assert json.loads(hadamard("eval", *words, "--data", path, "--json").out)["n"] == 24
    assert "24 rows labelled" in hadamard("predict", *words, "--input", path).err


def test_quotes_in_a_tsv_enclose_cells_where_that_is_said(tmp_path: Path) -> None:
    path, words = tmp_path / "dev.tsv", ("--adapter", tuned().adapter)
    path.write_text('text\tlabel\n"w10\tw40"\tgood\n"w20\tw41"\tbad\n')
    split = hadamard("eval", *words, "--data", path, "--json")
    assert split.code == 2 and "line 2" in split.err
    assert json.loads(hadamard("eval", *words, "--data", path, "--quoting", "--json").out)["n"] == 2
    found = hadamard("predict", *words, "--input", path, "--quoting", "--probability-column", "sure")
    assert found.code == 0, found.err
    rows = list(csv.DictReader(io.StringIO(found.out), delimiter="\t"))
    assert [row["text"] for row in rows] == ["w10\tw40", "w20\tw41"]
    assert all(0.5 <= float(row["sure"]) <= 1 for row in rows) and "probability" not in rows[0]


def test_tune_and_eval_read_the_split_that_is_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {"first": 40, "second": 16, "third": 9}
    rows = {
        name: list(csv.DictReader(write_rows(tmp_path / f"{name}.csv", n, seed=n).open()))
        for name, n in parts.items()
    }
    saved = {name: datasets.Dataset.from_list(rows[name]) for name in parts}
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path / "parts"))
    done = hadamard(
        *("tune", "--model", tuned().model, "--train", tmp_path / "parts", "--dev", tmp_path / "parts"),
        *("--train-split", "first", "--dev-split", "second", "--output", tmp_path / "out", "--device", "cpu"),
        *("--head-epochs", 1, "--epochs", 1),
    )
    assert done.code == 0, done.err
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (run["rows"]["train"], run["rows"]["dev"]) == (40, 16)
    words = ("eval", "--adapter", tmp_path / "out", "--data", tmp_path / "parts", "--json")
    assert json.loads(hadamard(*words, "--split", "third").out)["n"] == 9


def test_inspect_counts_an_adapter_at_the_inputs(tmp_path: Path) -> None:
    from peft import get_peft_model

    from hadamard_adapter import HadamardConfig

    tiny_config("bert").save_pretrained(tmp_path)
    counts = []
    for position in ("output", "input"):
        model = get_peft_model(
            tiny_model("bert"), HadamardConfig(sites=["attention", "ffn"], position=position)
        )
        counts.append(sum(p.numel() for key, p in model.named_parameters() if ".hadamard_" in key))
        shown = hadamard("inspect", tmp_path, "--position", position)
        assert f"adapter                {counts[-1]:>13,}  " in shown.out, shown.err
    assert counts[0] != counts[1]


def test_a_later_row_of_a_stream_without_a_text_is_told() -> None:
    rows = '{"text": "w10"}\n' * 512 + '{"id": 1}\n'
    found = hadamard("predict", "--adapter", tuned().adapter, "--format", "jsonl", stdin=rows)
    assert found.code == 2 and "empty text in column 'text': line 513" in found.err


def test_the_next_words_can_be_pasted_whatever_the_folder_is_called() -> None:
    metrics = {"dev": {"accuracy": 0.9}, "selected_on": "dev", "stage1_dev": None}
    metrics |= {"adapter_parameters": 36864, "share_percent": 0.0337, "head_parameters": 1538}
    *_, evaluate, predict = summary(TuneResult(Path("my out"), metrics, {}))
    for line in (evaluate, predict):
        assert shlex.split(line.removeprefix("next"))[2:4] == ["--adapter", "my out"]


def test_inspect_counts_the_pooler_that_tune_trains(tmp_path: Path) -> None:
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    shown = hadamard("inspect", tmp_path, "--preset", "paper").out
    assert f"adapter and head       {36_864 + 590_592 + 1_538:>13,}" in shown


def test_predict_in_many_batches_equals_one_by_one(tmp_path: Path) -> None:
    texts = [f"w{5 + index % 90}" for index in range(1200)]
    together = hadamard("predict", "--adapter", tuned().adapter, stdin="text\n" + "\n".join(texts))
    rows = list(csv.DictReader(together.out.splitlines()))
    assert [row["text"] for row in rows] == texts
    assert all(row == rows[index % 90] for index, row in enumerate(rows))


def test_merge_reports_the_change_and_predicts_as_the_adapter_does(tmp_path: Path) -> None:
    from transformers import pipeline

    merged = hadamard("merge", "--adapter", tuned().adapter, "--output", tmp_path / "it's plain")
    assert (merged.code, merged.out) == (0, "")
    assert "largest change of a logit" in merged.err
    called = merged.err.splitlines()[-1].removeprefix("next     transformers.")
    classify = eval(called, {"pipeline": pipeline})
    words = ("predict", "--adapter", tuned().adapter, "--dtype", "float32")
    row = hadamard(*words, stdin="text\nw10 w50\n").out.splitlines()[1]
    found = classify("w10 w50")[0]
    *cells, probability = row.split(",")
    assert cells == ["w10 w50", found["label"]]
    assert float(probability) == pytest.approx(found["score"], abs=2e-6)  # six digits, rounded


def test_inspect_of_an_adapter_shows_counts_bars_and_a_picture(tmp_path: Path) -> None:
    shown = hadamard("inspect", tuned().adapter, "--plot", tmp_path / "a.png")
    assert shown.code == 0
    metrics = json.loads((tuned().adapter / "metrics.json").read_text())
    assert f"model, with its head   {metrics['base_parameters']:>13,}\n" in shown.out
    assert f"adapter                {512:>13,}  {metrics['share_percent']:.4f} %\n" in shown.out
    assert f"adapter and head       {512 + metrics['head_parameters']:>13,}" in shown.out
    assert shown.out.count("█") > 50
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_inspect_shows_the_bars_of_an_adapter_that_has_come_to_nothing(tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(tuned().adapter, tmp_path / "adapter"))
    weights = load_file(adapter / "adapter_model.safetensors")
    first, second = [name for name in weights if name.endswith("shift")][:2]
    weights |= {first: weights[first] + torch.inf, second: weights[second] * torch.nan}
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    shown = hadamard("inspect", adapter)
    assert shown.code == 0 and {"inf", "nan"} <= {*shown.out.split()} and "█" in shown.out


@pytest.mark.parametrize("name", TINY)
def test_inspect_of_a_config_counts_what_would_be_trained(name: str, tmp_path: Path) -> None:
    from peft import get_peft_model

    from hadamard_adapter import HadamardConfig

    tiny_config(name).save_pretrained(tmp_path)
    shown = hadamard("inspect", tmp_path)
    assert shown.code == 0, shown.err
    model = get_peft_model(tiny_model(name), HadamardConfig(sites=["attention", "ffn"]))
    n_adapter = sum(p.numel() for key, p in model.named_parameters() if ".hadamard_" in key)
    assert f"adapter                {n_adapter:>13,}  " in shown.out


def test_inspect_counts_the_papers_parameters_of_bert_base(tmp_path: Path) -> None:
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    paper = hadamard("inspect", tmp_path, "--preset", "paper").out
    assert "bert.encoder.layer.0 to 11" in paper
    assert "adapter                       36,864  0.0337 %" in paper
    fewer = hadamard("inspect", tmp_path, "--preset", "paper", "--layers", "4-11").out
    assert "adapter                       24,576  0.0224 %" in fewer
    assert "adapter                       73,728  0.0673 %" in hadamard("inspect", tmp_path).out


def test_inspect_of_an_unknown_family_proposes_candidates(tmp_path: Path) -> None:
    from transformers import XLNetConfig

    XLNetConfig(vocab_size=50, d_model=16, n_layer=2, n_head=2, d_inner=24).save_pretrained(tmp_path)
    shown = hadamard("inspect", tmp_path)
    assert shown.code == 0
    assert "not a known family" in shown.out and "HadamardConfig(target_modules=[" in shown.out


def test_a_config_file_gives_options_and_the_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        f'quiet = true\n[eval]\nadapter = "{tuned().adapter}"\ndata = "missing.csv"\njson = true\n'
        "batch-size = 4\n[tune]\nlayers = [0, 1]\n"
    )
    found = hadamard("eval", "--config", path, "--data", tuned().dev)
    assert (found.code, found.err) == (0, "")
    assert json.loads(found.out)["n"] == 24
    assert "accuracy     " in hadamard("eval", "--config", path, "--data", tuned().dev, "--no-json").out


def test_one_config_file_serves_commands_of_every_group(tmp_path: Path) -> None:
    path, store = tmp_path / "run.toml", tmp_path / "store"
    path.write_text(f'[tune]\nlayers = [0]\n[bank.list]\nstore = "{store}"\n[share.mean]\noutput = "x"\n')
    assert hadamard("bank", "list", "--config", path).code == 0
    path.write_text(f'[list]\nstore = "{store}"\n[bench]\nworkers = 3\n')
    assert hadamard("bank", "list", "--config", path).code == 0
    path.write_text("[bank]\n[bank.list]\nstroe = 3\n")
    assert r"[bank.list]: unknown key 'stroe'" in hadamard("bank", "list", "--config", path).err
    path.write_text('[prune]\nby = "zero"\nkeep = 1\n')  # layers, and no versions of a bank
    found = hadamard("bank", "prune", "--config", path, "--store", store)
    assert found.code == 2 and "--keep" in found.err, found.err
    path.write_text("[tnue]\nlayers = [0]\n")
    found = hadamard("bank", "list", "--config", path)
    assert found.code == 2 and "unknown table [tnue]" in found.err


def test_no_cell_is_cut_and_no_label_becomes_a_picture(capsys: pytest.CaptureFixture) -> None:
    table = plain_table(["id", *map(str, range(60))])
    table.add_row(":heart:" + "x" * 128, *["1.234e-05"] * 60)
    data_console().print(table)
    out = capsys.readouterr().out
    assert out.count("1.234e-05") == 60 and ":heart:" + "x" * 128 in out and len(out.splitlines()) == 2


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_bug(closed: str) -> None:
    command = f"{sys.executable} -m hadamard_adapter.cli --version {closed}"
    found = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert found.returncode == 0 and "Traceback" not in found.stderr, found.stderr


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
        *(
            (RuntimeError(words), "out of memory")
            for words in (
                "MPS backend out of memory (MPS allocated: 9 GB)",
                "CUDA error: out of memory",
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                "[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes",
            )
        ),
    ],
)
def test_what_the_user_can_mend_is_no_bug(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("hadamard_adapter.analysis.report.write_report", fail)
    found = hadamard("report", "results")
    assert found.code == 2 and expected in found.err


def test_options_of_every_kind_come_from_a_dataclass() -> None:
    given: list[TuneSettings] = []
    command = command_from("tune", TuneSettings)(given.append)
    words = "--model m --output o --train t --layers 0-2,5 --stages 1 --norm-modules none --no-freeze-head"
    command.main([*words.split(), "--lr", "2e-3"], standalone_mode=False)
    assert given == [
        TuneSettings(
            "m", "o", "t", layers=(0, 1, 2, 5), stages=1, norm_modules=(), freeze_head=False, lr=2e-3
        )
    ]


@pytest.mark.parametrize("word", ["3-", "-3", "a"])
def test_a_range_has_two_ends(word: str) -> None:
    with pytest.raises(click.BadParameter, match="0,1,5 or 0-7"):
        CommaList(int).convert(word, None, None)


@pytest.mark.parametrize(
    ("word", "numbers"), [("3", (3,)), ("0,2", (0, 2)), ("1-3,7", (1, 2, 3, 7)), ("none", ())]
)
def test_lists_of_numbers_take_ranges(word: str, numbers: tuple[int, ...]) -> None:
    assert CommaList(int).convert(word, None, None) == numbers


def test_a_bug_is_one_line_with_exit_code_1_and_a_traceback_only_with_debug() -> None:
    @group.command("broken")
    @click.option("--debug", is_flag=True)
    def broken(debug: bool) -> None:
        raise ZeroDivisionError("a bug\nof two lines")

    try:
        plain, debugged = hadamard("broken"), hadamard("broken", "--debug")
    finally:
        del group.commands["broken"]
    assert plain.code == debugged.code == 1
    line = "error: this is a bug: ZeroDivisionError: a bug of two lines"
    assert plain.err == f"{line}; run again with --debug to see where\n"
    assert debugged.err.endswith(f"{line}\n")
    assert "Traceback" in debugged.err


def test_an_error_of_the_user_has_a_traceback_with_debug_and_still_exit_code_2() -> None:
    found = hadamard("eval", "--adapter", tuned().adapter, "--data", "no.csv", "--debug")
    assert found.code == 2 and "Traceback" in found.err
    assert found.err.splitlines()[-1].startswith("error: no.csv")


def test_ctrl_c_ends_with_130_and_leaves_no_output(tmp_path: Path) -> None:
    words = [tmp_path / "out" if word == tuned().adapter else word for word in tuned().words]
    is_over = threading.Event()

    def interrupt() -> None:
        while not is_over.wait(1.5):  # again, as a user would: Python drops one that comes inside a `__del__`
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    found = hadamard(*words, "--epochs", 10_000)
    is_over.set()
    thread.join()
    assert found.code == 130 and "Traceback" not in found.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("target", "code", "says"), [("pipe", 141, ""), ("full", 2, "error: no space left")])
def test_standard_output_that_takes_nothing(
    target: str, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tuned().adapter
    capsys.readouterr()  # what tuning it wrote, if this test is the first to need it
    reader, writer = os.pipe()
    os.close(reader)
    before = sys.stdout
    with os.fdopen(writer, "w") as pipe, open("/dev/full", "w") as full:
        sys.stdout = {"pipe": pipe, "full": full}[target]
        try:
            assert run(["inspect", str(adapter)]) == code
        finally:
            sys.stdout = before
    assert capsys.readouterr().err[: len(says) or None] == says
