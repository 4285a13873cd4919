"""Bad input: exit code 2, one line that says what is wrong, no traceback, nothing changed on disk."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import XLNetConfig, XLNetModel

from command import Words, assert_refused, hadamard, tree_of, tune, tuned
from tuning_help import give_code, tiny_folder

GOOD_ROWS = "text,label\n" + "w11 w32,good\nw21 w33,bad\n" * 6


def _train(content: str | bytes, *more: object, name: str = "train.csv") -> Callable[[], Words]:
    def make() -> Words:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tune(name, *more)

    return make


def _then(make: Callable[[], Words], *words: object) -> Callable[[], Words]:
    """Lay out what `make` lays out, and run something else."""
    return lambda: (make(), words)[1]


def _dev(content: str) -> Callable[[], Words]:
    def make() -> Words:
        Path("dev.csv").write_text(content)
        return tune(tuned().train, "--dev", "dev.csv")

    return make


DATA: dict[str, tuple[Callable[[], Words], str]] = {
    "a missing file": (lambda: tune("nothing.csv"), "nothing.csv.*no such file"),
    "a misspelt text column": (_train(GOOD_ROWS, "--text", "txt"), "no column 'txt'.*text.*label"),
    "no column that looks like a label": (_train("text,a,b\nx,1,2\n"), "no column with labels.*text.*a.*b"),
    "text and label the same": (_train(GOOD_ROWS, "--text", "text", "--label", "text"), "--text and --label"),
    "an empty text": (_train(GOOD_ROWS + ",good\n"), r"empty.*line 14"),
    "a missing label": (_train(GOOD_ROWS + "w40,\n"), r"label.*line 14"),
    "a label in dev that train lacks": (_dev("text,label\nw10,good\nw11,odd\n"), "dev.csv.*'odd'"),
    "one class only": (_train("text,label\nw10,good\nw11,good\nw12,good\n"), "good"),
    "bytes that are not UTF-8": (_train(GOOD_ROWS.encode() + b"caf\xe9 w10,good\n"), "line 14.*UTF-8"),
    "a ragged row": (_train(GOOD_ROWS + "w40,w41,good\n"), "line 14"),
    "an empty file": (_train(""), "empty"),
    "a header alone": (_train("text,label\n"), "only the header"),
    "binary content": (_train(bytes(range(256)) * 4), "(NUL|binary)"),
    "broken JSON lines": (_train('{"text": "a", "label": "x"}\n{"text": \n', name="t.jsonl"), "line 2.*JSON"),
    "an unknown format": (_train(GOOD_ROWS, name="train.xlsx"), "unknown file extension.*csv"),
    "a pickle file": (_train(b"\x80\x04\x95" + b"x" * 50, name="train.csv"), "pickle"),
    "a regression on words": (_train(GOOD_ROWS, "--problem-type", "regression"), "(number|regression)"),
    "classes of fractions": (
        _train(
            "text,label\n" + "".join(f"w{10 + i},{i}.{i}5\n" for i in range(40)),
            *("--problem-type", "single_label_classification"),
        ),
        "regression",
    ),
    "a task without its folder": (
        lambda: ["tune", "--model", "m", "--task", "cola", "--output", "out"],
        "data",
    ),
    "an unknown task": (lambda: tune_task("nope"), "cola.*'nope'"),
    "an unknown metric": (lambda: tune(tuned().train, "--metric", "shine"), "shine.*accuracy"),
}


def tune_task(name: str) -> Words:
    """A run on a GLUE task."""
    return ["tune", "--model", tuned().model, "--task", name, "--data", ".", "--output", "out"]


def _model(change: Callable[[Path], object]) -> Callable[[], Words]:
    def make() -> Words:
        change(shutil.copytree(tuned().model, Path("model")))
        return ["tune", "--model", "model", "--train", tuned().train, "--output", "out", "--device", "cpu"]

    return make


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _without_tokenizer(model: Path) -> None:
    for path in model.glob("*token*"):
        path.unlink()


def _to_pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def _of_words(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_size": "x"}))


def _to_xlnet(model: Path) -> None:
    config = XLNetConfig(vocab_size=100, d_model=16, n_layer=2, n_head=2, d_inner=24)
    XLNetModel(config).save_pretrained(model)


MODELS: dict[str, tuple[Callable[[], Words], str]] = {
    "no such model": (
        lambda: ["tune", "--model", "./no-model", "--train", tuned().train, "--output", "out"],
        "no-model.*save_pretrained.*hub",
    ),
    "a folder that is no model": (
        _model(lambda path: (path / "config.json").unlink()),
        "model'.*config.json.*hub",
    ),
    "a size in words": (_model(_of_words), "no model in .*config.json.*hidden_size"),
    "a family that is not known": (
        _model(_to_xlnet),
        "'xlnet'.*expected one of albert.*in Python alone.*hadamard inspect MODEL",
    ),
    "no tokenizer": (_model(lambda path: (path / "tokenizer.json").unlink()), "tokenizer"),
    "nothing of a tokenizer": (_model(_without_tokenizer), "no tokenizer in .*put the files"),
    "weights cut short": (_model(lambda path: _cut(path / "model.safetensors")), "model"),
    "weights in a pickle": (_model(_to_pickle), "pickle.*safetensors"),
    "code of its own": (_model(give_code), "code of its own.*pass --allow-remote-code"),
    "inspect of nothing": (lambda: ["inspect", "./nothing"], "nothing.*config.json.*hub"),
    "inspect of code of its own": (
        _then(_model(give_code), "inspect", "model"),
        "code of its own.*--allow-remote-code",
    ),
    "a picture of a model": (lambda: ["inspect", tuned().model, "--plot", "a.png"], "--plot"),
    "a picture into no folder": (
        lambda: ["inspect", tuned().adapter, "--plot", "no/a.png"],
        "--plot.*no folder 'no'",
    ),
    "a preset for an adapter": (
        lambda: ["inspect", tuned().adapter, "--preset", "wide"],
        "--preset: expected none for an adapter.*leave it out",
    ),
}


def _adapter(change: Callable[[Path], object], *words: object) -> Callable[[], Words]:
    def make() -> Words:
        change(shutil.copytree(tuned().adapter, Path("adapter")))
        return [*(words or ("eval", "--data", tuned().dev)), "--adapter", "adapter"]

    return make


def _to_lora(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "LORA"}))


def _pickled(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def _moved(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "/gone/model"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))


def _to_regression(adapter: Path) -> None:
    run = json.loads((adapter / "run.json").read_text())
    run["task"] |= {"problem_type": "regression", "label_names": [], "metrics": ["rmse"]}
    (adapter / "run.json").write_text(json.dumps(run))


def _other_model(**config: int) -> Callable[[], Words]:
    def make() -> Words:
        tiny_folder(Path("other"), seed=7, **config)
        return ["eval", "--adapter", tuned().adapter, "--data", tuned().dev, "--model", "other"]

    return make


def _predict(content: str, *words: object) -> Callable[[], Words]:
    def make() -> Words:
        Path("in.csv").write_text(content)
        return ["predict", "--adapter", tuned().adapter, "--input", "in.csv", *words]

    return make


def _eval(content: str) -> Callable[[], Words]:
    def make() -> Words:
        Path("in.csv").write_text(content)
        return ["eval", "--adapter", tuned().adapter, "--data", "in.csv"]

    return make


ADAPTERS: dict[str, tuple[Callable[[], Words], str]] = {
    "no such adapter": (lambda: ["eval", "--adapter", "none", "--data", tuned().dev], "none"),
    "a folder that is no adapter": (lambda: ["eval", "--adapter", ".", "--data", tuned().dev], "adapter"),
    "an adapter cut short": (
        _adapter(lambda path: _cut(path / "adapter_model.safetensors")),
        "adapter_model",
    ),
    "a broken config": (_adapter(lambda path: _cut(path / "adapter_config.json")), "adapter_config"),
    "a broken run": (_adapter(lambda path: _cut(path / "run.json")), "run.json' is damaged"),
    "a base model that has moved": (_adapter(_moved), r"/gone/model.*pass --model \(in Python model="),
    "errors of a regression": (
        _adapter(_to_regression, "eval", "--data", "x.csv", "--errors", "wrong.csv"),
        "--errors: expected none for a regression.*leave it out",
    ),
    "another method's adapter": (_adapter(_to_lora), "LORA"),
    "an adapter in a pickle": (_adapter(_pickled), "(pickle|adapter_model.safetensors)"),
    "inspect of one cut short": (
        _then(_adapter(lambda path: _cut(path / "adapter_model.safetensors")), "inspect", "adapter"),
        "adapter_model.safetensors.*(damaged|cut)",
    ),
    "another base model": (_other_model(), "fingerprint.*received.*(sha256|hash)"),
    "a base model of another width": (_other_model(hidden_size=48), "(width|shape|size|fingerprint)"),
    "eval without labels": (
        _eval("text,id,note\nw10,1,a\n"),
        "label",
    ),
    "eval of an unknown label": (
        _eval("text,label\nw10,odd\n"),
        "'odd'",
    ),
    "errors into no folder": (
        lambda: ["eval", "--adapter", tuned().adapter, "--data", tuned().dev, "--errors", "no/wrong.csv"],
        "--errors.*no folder 'no'",
    ),
    "a second text that training had not": (
        _predict("text,b\nw10,w11\n", "--pair", "b"),
        "--pair 'b'.*one text a row, as in training.*leave --pair out",
    ),
    "no batch": (
        lambda: ["eval", "--adapter", tuned().adapter, "--data", tuned().dev, "--batch-size", 0],
        "--batch-size: expected a number from 1 on, received 0",
    ),
    "predict over its input": (_predict("text\nw10\n", "--output", "./in.csv"), "is the input file"),
    "predict into no folder": (_predict("text\nw10\n", "--output", "no/out.csv"), "no folder 'no'"),
    "predict into a folder": (_predict("text\nw10\n", "--output", "."), "'.' is no file"),
    "predict into an unknown format": (_predict("text\nw10\n", "--output", "out.doc"), "out.doc.*csv"),
    "a column that predict adds": (
        _predict("text,prediction\nw10,a\n"),
        "'prediction' already.*--prediction-column",
    ),
    "an empty text to predict": (_predict("text,id\nw10,1\n,2\n", "--output", "out.csv"), "empty.*line 3"),
    "predict without a text column": (_predict("a,b\n1,2\n"), "text"),
    "merge over something else": (
        lambda: ["merge", "--adapter", tuned().adapter, "--output", tuned().model],
        "holds",
    ),
    "merge below a file": (
        lambda: ["merge", "--adapter", tuned().adapter, "--output", tuned().train / "plain"],
        "output .*train.csv' is a file, no folder; choose another place",
    ),
    "tune below a file": (
        lambda: [*tune("nothing.csv"), "--output", tuned().train / "new" / "out"],
        "output .*train.csv' is a file, no folder; choose another place",
    ),
}
RESULTS: dict[str, tuple[Callable[[], Words], str]] = {
    "a report of no folder": (lambda: ["report", "nope"], "'nope': expected.*found no such folder"),
    "a report of an empty folder": (
        lambda: (Path("there").mkdir(), ["report", "there"])[1],
        "finished runs in runs/, found none$",
    ),
    "knobs of no folder": (
        lambda: ["analyse", "knobs", "--results", "nope"],
        "'nope': expected.*found no such folder",
    ),
    "knobs of an empty folder": (
        lambda: (Path("there").mkdir(), ["analyse", "knobs", "--results", "there"])[1],
        "found none; run experiments/minilm-knobs.toml",
    ),
    "outputs of an adapter": (
        lambda: [
            *("analyse", "outputs", "--model", tuned().model),
            *("--tuned", tuned().adapter, "--data", tuned().dev),
        ],
        "expected a model, received .*adapter', which is an adapter.* merge --adapter .*adapter --output",
    ),
}
CASES = {**DATA, **MODELS, **ADAPTERS, **RESULTS}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_line_and_changes_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(*CASES[case])


def test_a_corrected_command_runs_after_a_refused_one(tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = (
        *("--train", tuned().train, "--output", output),
        *("--device", "cpu", "--epochs", 1, "--head-epochs", 1),
    )
    assert hadamard("tune", "--model", tmp_path / "typo", *words).code == 2
    assert hadamard("tune", "--model", tuned().model, *words, "--layers", 9).code == 2
    several = ("--lr", "1e-3,1e-2", "--seeds", 2, "--layers", 9)
    assert hadamard("tune", "--model", tuned().model, *words, *several).code == 2
    assert hadamard("tune", "--model", tuned().model, *words).code == 0
    assert (output / "adapter_model.safetensors").is_file()


def test_an_output_folder_that_holds_something_else_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for more in ((), ("--overwrite",)):
        found = hadamard(*[tmp_path if word == tuned().adapter else word for word in tuned().words], *more)
        assert found.code == 2 and str(tmp_path) in found.err.splitlines()[-1]
        assert tree_of(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_part_of_a_result_is_no_finished_run(tmp_path: Path) -> None:
    pruned, broken = tmp_path / "pruned", tmp_path / "broken"
    assert hadamard("prune", "--adapters", tuned().adapter, "--keep", 1, "--output", pruned).code == 0
    shutil.copytree(tuned().adapter, broken)
    (broken / "adapter_model.safetensors").unlink()
    for place in (pruned, tuned().adapter / "head", broken):
        before = tree_of(place)
        words = [place if word == tuned().adapter else word for word in tuned().words]
        found = hadamard(*words)
        assert found.code == 2 and "of this run a part alone" in found.err, found.err
        assert tree_of(place) == before


def test_other_settings_on_a_finished_folder_are_refused_by_name() -> None:
    before = tree_of(tuned().adapter)
    found = hadamard(*tuned().words, "--lr", 0.01)
    assert found.code == 2 and re.search(r"lr 0.05 there, 0.01 now\).*--overwrite", found.err)
    assert tree_of(tuned().adapter) == before


@pytest.mark.parametrize("name", ["~/rows.csv", "linked.csv", "hard.csv"])
def test_a_file_to_write_is_never_the_one_that_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\nw10,good\n")
    Path("linked.csv").symlink_to(rows)
    Path("hard.csv").hardlink_to(rows)
    for words in (
        ["eval", "--data", rows, f"--errors={name}"],
        ["predict", "--input", rows, f"--output={name}"],
    ):
        found = hadamard(*words, "--adapter", tuned().adapter)
        assert found.code == 2 and re.search("would overwrite --data|is the input file", found.err)
    assert rows.read_text() == "text,label\nw10,good\n"
