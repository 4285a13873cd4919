"""`hadamard predict`: labels and probabilities beside the columns of a file, a batch at a time."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hadamard_adapter.cli.adapter_options import RowOptions
from hadamard_adapter.cli.console import cut_line, message_console
from hadamard_adapter.cli.half_precision import ROWS_PER_BATCH, Precision
from hadamard_adapter.cli.hub import base_name_in, stay_offline_without_hub
from hadamard_adapter.cli.options import command_from, refuse_no_file
from hadamard_adapter.errors import DataError, SettingsError
from hadamard_adapter.files import is_same_file

if TYPE_CHECKING:
    from hadamard_adapter.tasks import Columns, Table, Task
    from hadamard_adapter.tuning import Prediction

__all__ = ["PredictOptions", "predict_command"]

_DIGITS = 6
_LABEL_PREFIX = "probability_"


@dataclass(frozen=True, kw_only=True)
class PredictOptions(RowOptions):
    """The options of `hadamard predict`."""

    input: str = "-"
    """Rows to label: a csv, tsv, jsonl or parquet file; - is standard input."""
    output: str = "-"
    """File that receives the rows: csv, tsv or jsonl; - is standard output."""
    format: Literal["csv", "tsv", "jsonl"] | None = None
    """Format of streams (by default that of the file at the other end, else csv) and of odd file names."""
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    """Type to compute in; auto: bfloat16 where it is faster, from 512 rows at a time on. Only where 256 of
    the first rows change by 0.005 at most, so that all may be expected to stay within 0.01, and for as long
    as four of every 512 later ones do."""
    all_probabilities: bool = False
    """Whether to add a column `probability_<label>` for every label."""
    prediction_column: str = "prediction"
    """Column that is added for the label (regression: the number; several labels: a|b, in jsonl a list)."""
    probability_column: str = "probability"
    """Name of the column that is added for the label's probability; not added for regression."""

    def __post_init__(self) -> None:
        """Check the options before the model is loaded."""
        super().__post_init__()
        if self.prediction_column == self.probability_column:
            raise SettingsError(
                f"expected two new columns, received {self.prediction_column!r} as the name of both"
            )
        _check_output(self.input, self.output)


@command_from("predict", PredictOptions)
def predict_command(options: PredictOptions) -> None:
    """Label the rows of a file or of standard input.

    Every column of the input is kept; the label and its probability are added. A file appears under its name
    when it is complete.

    \b
    Example:
      hadamard predict --adapter adapter --input new.csv --output labelled.csv
      echo '{"text": "what a film"}' | hadamard predict --adapter adapter --format jsonl
    """
    stay_offline_without_hub([options.model or base_name_in(options.adapter)])
    from hadamard_adapter.tasks import iter_rows, write_rows
    from hadamard_adapter.tasks.reading import format_of

    source, target = _formats(options)
    batches = iter_rows(
        options.input, ROWS_PER_BATCH, format=source, quoting=options.quoting, delimiter=options.delimiter
    )
    first = next(batches)  # what is wrong with the file is said before the model is loaded
    _refuse_taken(first, (options.prediction_column,))

    from hadamard_adapter.tuning import load

    console = message_console(options.quiet)
    classifier = load(options.adapter, options.model, options.device, options.allow_remote_code).merged()
    cuts: list[int] = []
    precision = Precision(classifier, options.dtype, options.batch_size, console.print)
    separator = None if format_of(options.output, target) == "jsonl" else classifier.task.separator
    _refuse_separator(classifier.task, separator)
    _refuse_taken(first, _added_columns(classifier.task, options))
    labelled = _labelled(chain([first], batches), precision, options, separator, cuts)
    started = time.perf_counter()
    n_rows = write_rows(options.output, labelled, format=target, quoting=options.quoting)
    where = "" if options.output == "-" else f", in {options.output}"
    pace = n_rows / (time.perf_counter() - started)
    console.print(f"{n_rows} rows labelled{where} ({pace:,.0f} a second, {', then '.join(precision.used)})")
    if sum(cuts):
        console.print(cut_line(sum(cuts), n_rows, classifier.max_length))


def _check_output(source: str, target: str) -> None:
    if target == "-":
        return
    if source != "-" and is_same_file(source, target):
        raise SettingsError(f"--output {target!r} is the input file; choose another file")
    refuse_no_file("--output", target, ", or - for standard output")


def _formats(options: PredictOptions) -> tuple[str | None, str | None]:
    """The formats to force on input and output; None where the name of a file tells."""
    from hadamard_adapter.tasks.reading import FORMATS

    ends = (options.input, options.output)
    named = [None if path == "-" else FORMATS.get(Path(path).suffix.lower()) for path in ends]
    of_stream = options.format or next((name for name in named if name not in (None, "parquet")), "csv")
    source, target = (
        name or (of_stream if path == "-" else options.format) for path, name in zip(ends, named, strict=True)
    )
    return source, target


def _labelled(
    batches: "Iterable[Table]",
    precision: Precision,
    options: PredictOptions,
    separator: str | None,
    cuts: list[int],
) -> Iterator[list[dict[str, object]]]:
    """Batches of rows with the new cells; the number of texts that were cut is appended to `cuts`."""
    from hadamard_adapter.tasks import encode_texts

    columns: Columns | None = None
    empty: dict[str, None] = {}
    added = _added_columns(precision.whole.task, options)
    for table in batches:
        _refuse_taken(table, added)
        if columns is None:
            columns = precision.whole.columns_in(table, options.text, options.pair)
            # Of JSON lines each row keeps its own keys.
            empty = {} if separator is None else dict.fromkeys(table.columns)
        examples = encode_texts(table, columns)
        logits, n_cut = precision.logits_and_cuts(examples)
        found = precision.whole.read(logits)
        cuts.append(n_cut)
        yield [
            {**empty, **row, **_added(prediction, options, separator)}
            for row, prediction in zip(table.rows, found, strict=True)
        ]


def _added_columns(task: "Task", options: PredictOptions) -> list[str]:
    """Names of the columns that `_added` adds, each once."""
    added = [options.prediction_column]
    if task.problem_type == "single_label_classification":
        added.append(options.probability_column)
    is_multi = task.problem_type == "multi_label_classification"
    if is_multi or (options.all_probabilities and task.label_names):
        added += [f"{_LABEL_PREFIX}{name}" for name in task.label_names]
    twice = [name for name in added if added.count(name) > 1]
    if twice:
        raise SettingsError(
            f"column {twice[0]!r} would be added twice, since a label's probability has this name; choose "
            "another for --prediction-column or --probability-column"
        )
    return added


def _refuse_taken(table: "Table", added: Sequence[str]) -> None:
    there = set(table.columns).union(*table.rows)
    taken = [name for name in added if name in there]
    if taken:
        raise DataError(
            f"{table.name}: has a column {taken[0]!r} already, which would be added; rename it, or pass "
            "--prediction-column NAME or --probability-column NAME"
        )


def _refuse_separator(task: "Task", separator: str | None) -> None:
    """Refuse names that would read as several once they are joined."""
    holding = [name for name in task.label_names if separator is not None and separator in name]
    if task.problem_type == "multi_label_classification" and holding:
        raise DataError(
            f"the label {holding[0]!r} holds {separator!r}, which stands between the labels of a cell; write "
            ".jsonl (--format jsonl), where they are a list"
        )


def _added(prediction: "Prediction", options: PredictOptions, separator: str | None) -> dict[str, Any]:
    """The new cells of one row; several labels as training rows have them: joined, in JSON lines a list."""
    if prediction.value is not None:
        return {options.prediction_column: round(prediction.value, _DIGITS)}
    label, of_label = prediction.label, prediction.probabilities
    cell: Any = label
    if isinstance(label, tuple):
        cell = list(label) if separator is None else separator.join(label) or separator
    added: dict[str, Any] = {options.prediction_column: cell}
    if isinstance(label, str):
        added[options.probability_column] = round(of_label[label], _DIGITS)
    if options.all_probabilities or isinstance(label, tuple):
        added |= {f"{_LABEL_PREFIX}{name}": round(value, _DIGITS) for name, value in of_label.items()}
    return added
