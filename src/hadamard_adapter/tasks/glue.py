"""The GLUE tasks by name: one row each with its folder, columns, labels and official metrics.

The files are the official TSV layout, read without quotes. CoLA's official files have no header; files with
the header source, label, star, sentence are read too.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, SettingsError
from ..files import expanded
from .columns import Columns, find_columns
from .examples import Examples, encode
from .reading import text_lines, words
from .tables import Table, read_table
from .task import Task

__all__ = ["GLUE", "GlueRow", "glue_row", "glue_task", "load_glue", "load_glue_split"]

_SINGLE = "single_label_classification"
_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class GlueRow:
    """A row of GLUE: `GlueRow("cola", "CoLA", Columns("sentence", None, "label"), ("0", "1"), ("mcc",))`."""

    name: str
    """Name of the task, lower case, without signs."""
    folder: str
    """Name of its official folder."""
    columns: Columns
    """Names in the official header."""
    label_names: tuple[str, ...]
    """The labels in the order of the logits; empty for regression."""
    metrics: tuple[str, ...]
    """Official metrics; the first one picks the epoch."""
    train: tuple[str, ...] = ("train.tsv",)
    """Names of the training file, the first that exists is read."""
    dev: tuple[str, ...] = ("dev.tsv",)
    """Names of the development file."""
    header: tuple[str, ...] | None = None
    """Columns where the official file has no header line."""
    keys: tuple[str, ...] = ()
    """Columns that identify a row; training rows that are in dev too are left out (MRPC's original file)."""
    has_broken_rows: bool = False
    """The official file holds rows cut short, or without a text, which are left out (QQP)."""


GLUE: dict[str, GlueRow] = {
    row.name: row
    for row in (
        GlueRow(
            "cola",
            "CoLA",
            Columns("sentence", None, "label"),
            _BINARY,
            ("mcc",),
            header=("source", "label", "star", "sentence"),
        ),
        GlueRow("sst2", "SST-2", Columns("sentence", None, "label"), _BINARY, ("accuracy",)),
        GlueRow(
            "mrpc",
            "MRPC",
            Columns("#1 String", "#2 String", "Quality"),
            _BINARY,
            ("accuracy", "f1"),
            train=("train.tsv", "msr_paraphrase_train.txt"),
            keys=("#1 ID", "#2 ID"),
        ),
        GlueRow("stsb", "STS-B", Columns("sentence1", "sentence2", "score"), (), ("pearson", "spearman")),
        GlueRow("rte", "RTE", Columns("sentence1", "sentence2", "label"), _ENTAILMENT, ("accuracy",)),
        GlueRow("wnli", "WNLI", Columns("sentence1", "sentence2", "label"), _BINARY, ("accuracy",)),
        GlueRow("qnli", "QNLI", Columns("question", "sentence", "label"), _ENTAILMENT, ("accuracy",)),
        GlueRow(
            "qqp",
            "QQP",
            Columns("question1", "question2", "is_duplicate"),
            _BINARY,
            ("accuracy", "f1"),
            has_broken_rows=True,
        ),
        GlueRow(
            "mnli",
            "MNLI",
            Columns("sentence1", "sentence2", "gold_label"),
            ("contradiction", "entailment", "neutral"),
            ("accuracy",),
            dev=("dev_matched.tsv", "dev.tsv"),
        ),
    )
}
"""Name to row; `glue_row` accepts other spellings, such as "SST-2"."""


def load_glue(name: str, folder: str) -> tuple[Task, Examples, Examples]:
    """Return the task, its training rows and its development rows.

    Args:
        name: "cola", "SST-2", "sts-b", … in any spelling.
        folder: the folder of the task, or the one that holds the folders of all tasks.

    Raises:
        SettingsError: no such task.
        DataError: folder or file missing, or a file that is not as GLUE's are.

    Example:
        >>> task, train, dev = load_glue("cola", "glue")  # doctest: +SKIP
    """
    row = glue_row(name)
    return glue_task(row), load_glue_split(row, folder, "train"), load_glue_split(row, folder, "dev")


def load_glue_split(row: GlueRow, folder: str, split: str) -> Examples:
    """Return the rows of one split, "train" or "dev".

    Raises:
        DataError: folder or file missing, or a file that is not as GLUE's are.

    Example:
        >>> load_glue_split(GLUE["qnli"], "glue", "dev")  # doctest: +SKIP
    """
    place = _task_folder(row, folder)
    table = _read(row, place, split)
    if split == "train" and not table.name.endswith("train.tsv"):
        table = _without(table, _read(row, place, "dev"), row.keys)
    columns = find_columns(table, row.columns.text, row.columns.pair, row.columns.label)
    if row.has_broken_rows:
        texts = [name for name in (columns.text, columns.pair) if name is not None]
        table = _kept(table, lambda cells: all(str(cells[name]).strip() for name in texts))
    return encode(table, columns, glue_task(row))


def glue_row(name: str) -> GlueRow:
    """Return the row of a task in any spelling: "SST-2", "sst2" and "sst_2" are one.

    Raises:
        SettingsError: no such task.

    Example:
        >>> glue_row("STS-B").name
        'stsb'
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    if plain not in GLUE:
        raise SettingsError(
            f"expected a GLUE task among {words(GLUE)}, received {name!r}; for your own files leave --task "
            f"out"
        )
    return GLUE[plain]


def glue_task(row: GlueRow) -> Task:
    """Return the task of a row.

    Example:
        >>> glue_task(GLUE["stsb"]).problem_type
        'regression'
    """
    return Task(row.name, _SINGLE if row.label_names else "regression", row.label_names, row.metrics)


def _task_folder(row: GlueRow, folder: str) -> Path:
    root = expanded(folder)
    if not root.is_dir():
        raise DataError(
            f"{folder}: no such folder; expected the folder {row.folder} of GLUE, or the one that holds it"
        )
    inside = sorted(entry for entry in root.iterdir() if entry.is_dir())
    for entry in inside:
        if re.sub(r"[^a-z0-9]", "", entry.name.lower()) == row.name:
            return entry
    if any((root / name).is_file() for name in (*row.train, *row.dev)):
        return root
    raise DataError(
        f"{folder}: neither a folder {row.folder} nor a file {row.train[0]} in it; it holds: "
        f"{words((entry.name for entry in sorted(root.iterdir())), 10) or 'nothing'}"
    )


def _read(row: GlueRow, place: Path, split: str) -> Table:
    names = row.train if split == "train" else row.dev
    path = next((place / name for name in names if (place / name).is_file()), None)
    if path is None:
        raise DataError(f"{place}: {row.folder} has no {split} file here; expected {' or '.join(names)}")
    header = None if row.header is None or _first_cells(path) == row.header else row.header
    return read_table(
        str(path), quoting=False, header=header, format="tsv", skip_short_rows=row.has_broken_rows
    )


def _first_cells(path: Path) -> tuple[str, ...]:
    with path.open("rb") as handle:
        return tuple(next(text_lines(handle, str(path)), "").rstrip("\r\n").split("\t"))


def _without(table: Table, other: Table, keys: tuple[str, ...]) -> Table:
    held_out = {tuple(row[key] for key in keys) for row in other.rows}
    return _kept(table, lambda row: tuple(row[key] for key in keys) not in held_out)


def _kept(table: Table, is_kept: Callable[[dict[str, object]], bool]) -> Table:
    kept = [index for index, row in enumerate(table.rows) if is_kept(row)]
    rows, numbers = [table.rows[index] for index in kept], [table.row_numbers[index] for index in kept]
    return Table(table.name, table.columns, rows, numbers, table.unit)
