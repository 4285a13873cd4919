"""GLUE by name: every row from files in the official layout, with the names and headers seen in the wild."""

from pathlib import Path

import pytest

from bench_help import GLUE_HEADERS, write_tsv
from hadamard_adapter.errors import DataError, SettingsError
from hadamard_adapter.tasks import GLUE, METRICS, GlueRow, glue_row, glue_task, load_glue, load_glue_split


def lines_of(row: GlueRow, start: int = 0) -> list[list[str]]:
    """Return a header and four rows in the official columns; the texts hold quotes as GLUE's do."""
    names = GLUE_HEADERS[row.name].split("," if "," in GLUE_HEADERS[row.name] else " ")
    labels = row.label_names or ("0.000", "3.800")
    lines = [names]
    for index in range(start, start + 4):
        cells = {name: f"{name}-{index}" for name in names}
        cells[row.columns.text] = f'"an open quote {index} '
        cells[str(row.columns.label)] = labels[index % len(labels)]
        lines.append([cells[name] for name in names])
    return lines


@pytest.mark.parametrize("name", GLUE)
def test_every_task_loads_from_the_official_layout(tmp_path: Path, name: str) -> None:
    row = GLUE[name]
    write_tsv(tmp_path / row.folder / "train.tsv", lines_of(row))
    write_tsv(tmp_path / row.folder / row.dev[0], lines_of(row, start=4))
    task, train, dev = load_glue(name, str(tmp_path))
    assert task == glue_task(row)
    assert train.texts[0] == '"an open quote 0 '
    assert (train.pairs is None) == (row.columns.pair is None)
    assert train.labels == (
        [0.0, 3.8, 0.0, 3.8] if not row.label_names else [i % len(row.label_names) for i in range(4)]
    )
    assert dev.texts[0] == '"an open quote 4 '
    assert load_glue(name, str(tmp_path / row.folder)) == (task, train, dev)


@pytest.mark.parametrize("name", GLUE)
def test_every_metric_of_glue_fits_its_task(name: str) -> None:
    task = glue_task(GLUE[name])
    assert all(task.problem_type in METRICS[metric].problem_types for metric in task.metrics)
    assert list(task.label_names) == sorted(task.label_names)


def test_cola_is_the_same_with_and_without_its_header(tmp_path: Path) -> None:
    for folder, first in (("with", 0), ("without", 1)):
        write_tsv(tmp_path / folder / "CoLA" / "train.tsv", lines_of(GLUE["cola"])[first:])
        write_tsv(tmp_path / folder / "CoLA" / "dev.tsv", lines_of(GLUE["cola"], 4)[first:])
    loaded = load_glue("cola", str(tmp_path / "with"))
    assert loaded == load_glue("cola", str(tmp_path / "without"))
    assert len(loaded[1]) == 4


def test_mrpc_from_its_original_file_leaves_the_dev_rows_out(tmp_path: Path) -> None:
    row = GLUE["mrpc"]
    original = lines_of(row) + lines_of(row, 4)[1:]
    write_tsv(tmp_path / "msr_paraphrase_train.txt", original, prefix="\ufeff")
    write_tsv(tmp_path / "dev.tsv", lines_of(row, 4))
    _, train, dev = load_glue("MRPC", str(tmp_path))
    assert (len(train), len(dev)) == (4, 4)
    assert not set(train.texts) & set(dev.texts)


def test_the_broken_rows_of_qqp_are_left_out_and_only_there(tmp_path: Path) -> None:
    for name in ("qqp", "rte"):
        write_tsv(tmp_path / GLUE[name].folder / "train.tsv", [*lines_of(GLUE[name]), ["5", "cut short"]])
    assert len(load_glue_split(GLUE["qqp"], str(tmp_path), "train")) == 4
    blank = ["5", "9", "10", "Is it?", "", "0"]
    write_tsv(tmp_path / GLUE["qqp"].folder / "train.tsv", [*lines_of(GLUE["qqp"]), blank])
    assert len(load_glue_split(GLUE["qqp"], str(tmp_path), "train")) == 4
    with pytest.raises(DataError, match="line 6: expected 4 cells"):
        load_glue_split(GLUE["rte"], str(tmp_path), "train")


@pytest.mark.parametrize(
    ("spelling", "name"), [("SST-2", "sst2"), ("sts_b", "stsb"), ("CoLA", "cola"), ("MNLI", "mnli")]
)
def test_names_are_known_in_any_spelling(spelling: str, name: str) -> None:
    assert glue_row(spelling).name == name


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"expected a GLUE task among cola, sst2, .*, received 'imdb'"):
        load_glue("imdb", str(tmp_path))
    with pytest.raises(DataError, match="no such folder"):
        load_glue("cola", str(tmp_path / "none"))
    with pytest.raises(
        DataError, match=r"neither a folder QNLI nor a file train.tsv in it; it holds: nothing"
    ):
        load_glue("qnli", str(tmp_path))
    write_tsv(tmp_path / "QNLI" / "dev.tsv", lines_of(GLUE["qnli"]))
    with pytest.raises(DataError, match=r"QNLI has no train file here; expected train\.tsv"):
        load_glue("qnli", str(tmp_path))
    assert len(load_glue_split(GLUE["qnli"], str(tmp_path), "dev")) == 4
