"""Tables: every format, every way a file can be wrong, streams and writing."""

import csv
import io
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from hadamard_adapter.errors import DataError
from hadamard_adapter.tasks import Columns, Table, find_columns, iter_rows, read_table, write_rows
from hadamard_adapter.tasks.hub import _check_source

ROWS = [{"text": "good", "label": "1"}, {"text": "bad, really", "label": "0"}]
WRITTEN = {
    "plain.csv": b'text,label\ngood,1\n"bad, really",0\n',
    "cr.csv": b'text,label\rgood,1\r"bad, really",0\r',
    "crlf.csv": b'text,label\r\ngood,1\r\n"bad, really",0\r\n\r\n\r\n',
    "bom.csv": b'\xef\xbb\xbftext,label\ngood,1\n"bad, really",0',
    "spaced.csv": b'text, label\n\ngood,1\n\n"bad, really",0\n',
    "plain.tsv": b"text\tlabel\ngood\t1\nbad, really\t0\n",
    "plain.jsonl": b'{"text": "good", "label": "1"}\n\n{"text": "bad, really", "label": "0"}\n',
    "bom.ndjson": b'\xef\xbb\xbf{"text": "good", "label": "1"}\r\n{"text": "bad, really", "label": "0"}',
}


@pytest.mark.parametrize("name", WRITTEN)
def test_every_text_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(WRITTEN[name])
    table = read_table(str(path))
    assert table.rows == ROWS
    assert table.columns == ("text", "label")


def test_parquet_and_a_saved_dataset_keep_their_types(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    data = datasets.Dataset.from_dict(
        {"text": ["fine", "poor", "hidden"], "label": [1, 0, -1]}, features=features
    )
    data.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"test": data}).save_to_disk(str(tmp_path / "parts"))
    data.to_parquet(str(tmp_path / "data.parquet"))
    labels = [row["label"] for row in read_table(str(tmp_path / "saved")).rows]
    assert labels == ["good", "bad", None]
    assert len(read_table(str(tmp_path / "parts")).rows) == 3
    table = read_table(str(tmp_path / "data.parquet"))
    assert (table.rows[0], table.row_numbers, table.unit) == ({"text": "fine", "label": 1}, [1, 2, 3], "row")
    with pytest.raises(DataError, match="no split 'dev'; splits found: test"):
        read_table(str(tmp_path / "parts"), split="dev")
    classes = datasets.Features({"label": datasets.Sequence(datasets.ClassLabel(names=["joy", "fear"]))})
    several = datasets.Dataset.from_dict({"label": [[0, 1], [], [-1, 1]]}, features=classes)
    several.save_to_disk(str(tmp_path / "several"))
    labels = [row["label"] for row in read_table(str(tmp_path / "several")).rows]
    assert labels == [["joy", "fear"], [], [None, "fear"]]


def test_tsv_takes_quotes_as_text_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text('text\tlabel\n"Open quote\t1\nA ""word""\t0\n')
    assert [row["text"] for row in read_table(str(path)).rows] == ['"Open quote', 'A ""word""']
    path.write_text('text\tlabel\n"a\ttab"\t1\n')
    assert read_table(str(path), quoting=True).rows == [{"text": "a\ttab", "label": "1"}]


def test_a_text_longer_than_the_csv_modules_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("text,label\n" + "a" * 300_000 + ",1\n")
    assert len(str(read_table(str(path)).rows[0]["text"])) == 300_000


def test_a_text_that_begins_with_a_blank_and_a_quote_is_read_as_it_was_written(tmp_path: Path) -> None:
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], [' "Great film"', "pos"]])
    assert read_table(str(tmp_path / "x.csv")).rows[0]["text"] == ' "Great film"'


def test_places_tell_line_and_record_where_quotes_hold_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('text,label\n"two\nlines",1\nplain,0\n')
    table = read_table(str(path))
    assert table.row_numbers == [2, 4]
    assert table.place([0]) == "line 2"
    assert table.place([1]) == "line 4 (record 2)"


def test_a_file_without_header_takes_the_given_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("good\t1\n")
    assert read_table(str(path), header=("text", "label")).rows == [{"text": "good", "label": "1"}]


BROKEN = {
    "empty": ("x.csv", b"", "the file is empty"),
    "blank": ("x.csv", b"\n\n", "the file is empty"),
    "header only": ("x.csv", b"text,label\n", "only the header (text, label) and no rows"),
    "empty json": ("x.jsonl", b"\n", "an empty file"),
    "latin-1": ("x.csv", b"text,label\ngood,1\ncaf\xe9,0\n", "line 3 is not UTF-8 (byte 0xe9 at position 4)"),
    "short row": (
        "x.csv",
        b"text,label\ngood,1\nbad\n",
        "line 3: expected 2 cells (text, label), received 1",
    ),
    "long row": (
        "x.csv",
        b"text,label\nbad, really,0\n",
        "line 2: expected 2 cells (text, label), received 3",
    ),
    "ragged tsv": ("x.tsv", b"text\tlabel\na\tb\t0\n", "line 2: expected 2 cells (text, label), received 3"),
    "open quote": ("x.csv", b'text,label\ngood,1\n"bad,0\n', "begins on line 3 is broken (a quote opened"),
    "stray quote": ("x.csv", b'text,label\n"a"b,0\n', "begins on line 2 is broken"),
    "two names": ("x.csv", b"text,label,text\na,1,b\n", "duplicate column names 'text'"),
    "semicolons": ("x.csv", b"text;label\ngood;1\n", "separated by ';', expected ','"),
    "another delimiter": ("x.csv", b"text;label\ngood;1\n", "or pass --delimiter ';'"),
    "tabs": ("x.csv", b"text\tlabel\ngood\t1\n", "name it .tsv"),
    "NUL": ("x.csv", b"text,label\na\0b,1\n", "line 2 holds a NUL byte"),
    "parquet as csv": ("x.csv", b"PAR1\x15\x04", "a Parquet file; name it .parquet"),
    "gzip": ("x.csv", b"\x1f\x8b\x08\x00", "a gzip file; unpack it"),
    "excel": ("x.csv", b"PK\x03\x04", "a zip or Excel file"),
    "utf-16": ("x.csv", "text,label".encode("utf-16"), "text in UTF-16"),
    "pickle": ("x.csv", b"\x80\x04\x95", "a pickle file, which is never opened"),
    "csv as parquet": ("x.parquet", b"text,label\ngood,1\n", "cannot be read as Parquet"),
    "broken json": ("x.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
    "json list": ("x.json", b'[{"text": "a"},\n{"text": "b"}]\n', "write one object per line"),
    "json number": ("x.jsonl", b'{"text": "a"}\n7\n', "line 2: expected an object"),
    "json key twice": ("x.jsonl", b'{"text": "a", "text": "b"}\n', "line 1 names the key 'text' twice"),
    "half surrogate": ("x.jsonl", b'{"text": "a \\ud83d"}\n', "half of a surrogate pair"),
    "extension": ("x.xlsx", b"", "unknown file extension; known: .csv, .tsv"),
    "pickle name": ("x.pkl", b"\x80\x04", "unknown file extension"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_its_name_and_the_reason(tmp_path: Path, case: str) -> None:
    name, content, expected = BROKEN[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(str(tmp_path / name))
    assert expected in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_blank_line_is_an_empty_text_only_inside_a_file_of_one_column(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("text\ngood\n\nbad\n\n")
    table = read_table(str(path))
    assert [row["text"] for row in table.rows] == ["good", "", "bad"]
    assert table.row_numbers == [2, 3, 4]


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\n")
    with pytest.raises(DataError, match=r"no such file; did you mean train.csv\?"):
        read_table(str(tmp_path / "trian.csv"))
    with pytest.raises(DataError, match=r"a folder, expected a file .* it holds: train.csv"):
        read_table(str(tmp_path))


def test_a_name_without_a_hub_names_both_ways(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no file or folder of this name .* with a connection to the hub"):
        read_table("no-such-dataset-here")


COLUMNS = [
    (("text", "label"), {}, Columns("text", None, "label")),
    (("Label", "Text"), {}, Columns("Text", None, "Label")),
    (("id", "sentence1", "sentence2", "score"), {}, Columns("sentence1", "sentence2", "score")),
    (("question", "sentence", "label"), {}, Columns("question", "sentence", "label")),
    (("phrase", "mood"), {"text": "phrase"}, Columns("phrase", None, "mood")),
    (("phrase", "label"), {}, Columns("phrase", None, "label")),
    (("text", "text_pair", "label"), {"text": "text"}, Columns("text", None, "label")),
    (("a", "b", "c"), {"text": "a", "pair": "b", "label": "c"}, Columns("a", "b", "c")),
    (("text", "label"), {"need_label": False}, Columns("text", None, None)),
]


@pytest.mark.parametrize(("names", "options", "expected"), COLUMNS)
def test_columns_are_found_by_their_usual_names(
    names: tuple[str, ...], options: dict, expected: Columns
) -> None:
    table = Table("x.csv", names, [{name: "words here" for name in names}], [2])
    assert find_columns(table, **options) == expected


WRONG_COLUMNS = [
    ({"text": "txet"}, "no column 'txet'; columns found: text, label, note; did you mean 'text'"),
    ({"label": "zzz"}, "no column 'zzz'; columns found: text, label, note; name a column with --label"),
    ({"text": "label", "label": "label"}, "--text and --label are both 'label'"),
    ({"text": "text", "pair": "text"}, "--text and --pair are both 'text'"),
    ({"pair": "label", "label": "label"}, "--pair and --label are both 'label'"),
]


@pytest.mark.parametrize(("options", "expected"), WRONG_COLUMNS)
def test_wrong_columns_are_refused_with_those_found(options: dict, expected: str) -> None:
    table = Table("x.csv", ("text", "label", "note"), [{"text": "a", "label": "b", "note": "c"}], [2])
    with pytest.raises(DataError) as caught:
        find_columns(table, **options)
    assert expected in str(caught.value)


def test_no_usual_name_at_all_asks_for_the_option() -> None:
    table = Table("x.csv", ("a", "b", "c"), [{"a": "x", "b": "y", "c": "z"}], [2])
    with pytest.raises(DataError, match="no column with texts found; columns: a, b, c; name it with --text"):
        find_columns(table)


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.tsv"])
def test_written_rows_come_back_in_batches_with_all_columns(tmp_path: Path, name: str) -> None:
    rows = [{"id": f"{index:03}", "text": f'say "{index}", é\u2028', "score": "0.10"} for index in range(7)]
    path = tmp_path / name
    assert write_rows(str(path), [rows[:3], rows[3:]]) == 7
    batches = list(iter_rows(str(path), 3))
    assert [len(batch.rows) for batch in batches] == [3, 3, 1]
    assert [row for batch in batches for row in batch.rows] == rows
    assert batches[0].columns == ("id", "text", "score")
    assert batches[2].place([0]) == f"line {7 if name.endswith('jsonl') else 8}"


def test_a_stream_reads_standard_input_and_needs_its_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"text": "a"}\n{"text": "b"}\nbroken\n'))
    )
    stream = iter_rows("-", 2, format="jsonl")
    assert next(stream).rows == [{"text": "a"}, {"text": "b"}]
    with pytest.raises(DataError, match="standard input: line 3 is not JSON"):
        next(stream)
    with pytest.raises(DataError, match="format of a stream"):
        next(iter_rows("-", 2))


def test_standard_input_is_given_as_it_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader) as stdin, os.fdopen(writer, "wb", buffering=0) as given:
        monkeypatch.setattr(sys, "stdin", stdin)
        stream = iter_rows("-", 3, format="csv")
        given.write(b"text\na\n")
        assert next(stream).rows == [{"text": "a"}]
        given.write(b"b\nc\nd\ne\n")
        tables = [next(stream), next(stream)]
        assert [len(table.rows) for table in tables] == [3, 1]
        assert tables[1].place([0]) == "line 6"
        given.write(b"f,g\n")
        with pytest.raises(DataError, match="standard input: line 7: expected 1 cell"):
            next(stream)
        left = iter_rows("-", 3, format="csv")
        given.write(b"text\na\n")
        next(left)
        left.close()  # does not wait for the thread that waits for a line
        given.write(b"end\n")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")
    with pytest.raises(DataError, match="missing: b; new: c"):
        write_rows(str(path), [[{"a": 1, "b": 2}], [{"a": 1, "c": 2}]])
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_a_cell_with_a_line_end_comes_back(tmp_path: Path, end: str) -> None:
    rows = [{"id": "1", "text": f"a{end}b"}, {"id": "2", "text": "c"}]
    write_rows(str(tmp_path / "x.csv"), [rows])
    assert read_table(str(tmp_path / "x.csv")).rows == rows


def test_a_tab_cannot_be_written_without_quotes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds '\\t' or a line end"):
        write_rows(str(tmp_path / "x.tsv"), [[{"text": "a\tb"}]])
    write_rows(str(tmp_path / "x.tsv"), [[{"text": "a\tb"}]], quoting=True)
    assert read_table(str(tmp_path / "x.tsv"), quoting=True).rows == [{"text": "a\tb"}]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written: No such file"):
        write_rows(str(tmp_path / "none" / "x.csv"), [[{"text": "a"}]])


def test_numbers_that_json_lacks_are_written_as_null(capsys: pytest.CaptureFixture) -> None:
    rows = [{"x": float("nan"), "list": [1.5, {"y": float("-inf")}], "text": "é"}]
    write_rows("-", [rows], format="jsonl")
    expected = '{"x": null, "list": [1.5, {"y": null}], "text": "é"}\n'
    assert capsys.readouterr().out == expected


def test_json_lines_keep_types_precision_and_their_own_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [{"n": 12345678901234567890123, "x": 0.1 + 0.2, "list": [1, None]}, {"other": True}]
    write_rows("-", [rows], format="jsonl")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows


def test_rows_of_a_stream_keep_their_own_keys_whatever_stands_beside_them(tmp_path: Path) -> None:
    rows = [{"text": "a", "n": 1}, {"text": "b", "z": 2}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (table,) = iter_rows(str(path), 512)
    assert table.rows == rows and table.columns == ("text", "n", "z")


def test_a_named_pipe_is_read_with_the_delimiter_that_was_given(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as writer:
        writer.submit(pipe.write_text, "text;label\na, b;1\n")
        (table,) = iter_rows(str(pipe), 8, format="csv", delimiter=";")
    assert table.rows == [{"text": "a, b", "label": "1"}]


def test_a_closed_standard_input_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="standard input is closed"):
        next(iter_rows("-", 8, format="csv"))


def test_a_link_is_written_through_and_a_files_mode_stays(tmp_path: Path) -> None:
    real, link = tmp_path / "real.csv", tmp_path / "link.csv"
    real.write_text("before")
    real.chmod(0o660)
    link.symlink_to(real)
    write_rows(str(link), [ROWS])
    assert link.is_symlink() and read_table(str(real)).rows == ROWS
    assert real.stat().st_mode & 0o777 == 0o660


def test_a_file_whose_name_begins_like_a_home_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~$x.csv").write_bytes(WRITTEN["plain.csv"])
    assert read_table("~$x.csv").rows == ROWS


def test_a_date_that_python_does_not_have_is_told(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    dates = arrow.array([10**12], type=arrow.timestamp("s"))
    parquet.write_table(arrow.table({"text": ["a"], "date": dates}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_table(str(tmp_path / "x.parquet"))


@pytest.mark.parametrize("name", ["teknium/OpenHermes-2.5", "user/data.v1", "squad:1.1"])
def test_a_dataset_of_the_hub_may_have_a_dot_in_its_name(name: str) -> None:
    _check_source(name, Path(name))
    with pytest.raises(DataError, match="no such file"):
        _check_source("rows.txt", Path("rows.txt"))
