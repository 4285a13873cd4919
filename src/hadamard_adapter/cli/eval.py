"""`hadamard eval`: scores of an adapter on labelled rows, as tables or as one JSON object."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hadamard_adapter.cli.adapter_options import RowOptions
from hadamard_adapter.cli.console import cut_line, data_console, message_console, plain_table
from hadamard_adapter.cli.hub import base_name_in, stay_offline_without_hub
from hadamard_adapter.cli.options import command_from, refuse_no_file
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.files import is_same_file

if TYPE_CHECKING:
    from rich.table import Table

    from hadamard_adapter.tuning import Evaluation

__all__ = ["EvalOptions", "as_json", "eval_command"]

_ERROR_COLUMNS: tuple[str, ...] = ("row", "text", "pair", "label", "predicted", "probability")
_MAX_MATRIX = 12
_MAX_SIDE = 40
"""Characters of a class name beside its row of the matrix, which leaves room for twelve counts in 120."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions(RowOptions):
    """The options of `hadamard eval`."""

    data: str
    """Labelled rows: a csv, tsv, jsonl or parquet file, or the name or folder of a dataset."""
    label: str | None = None
    """Column of the label; the one of the training if not given."""
    split: str | None = None
    """Split to score, where --data is a dataset with several."""
    json: bool = False
    """Whether to print one JSON object instead of tables."""
    errors: str | None = None
    """CSV file that receives the rows with a wrong prediction: label, prediction and its probability."""

    def __post_init__(self) -> None:
        """Check the options before the model is loaded."""
        super().__post_init__()
        if self.errors is not None and is_same_file(self.errors, self.data):
            raise SettingsError(f"--errors {self.errors!r} would overwrite --data; choose another file")
        if self.errors is not None:
            refuse_no_file("--errors", self.errors)


@command_from("eval", EvalOptions)
def eval_command(options: EvalOptions) -> None:
    """Score an adapter on labelled rows.

    Prints the task's metrics, precision and recall of each class and the confusion matrix. The
    accuracy is the share of rows that are right: where a row has several labels, in all of them.

    \b
    Example:
      hadamard eval --adapter adapter --data test.csv
      hadamard eval --adapter adapter --data test.csv --json --errors wrong.csv
    """
    stay_offline_without_hub([options.model or base_name_in(options.adapter), options.data])
    from hadamard_adapter.tuning import evaluate
    from hadamard_adapter.tuning.folder import read_task

    if options.errors is not None and read_task(options.adapter).problem_type == "regression":
        raise SettingsError(
            "--errors: expected none for a regression, where no row is right or wrong; leave it out"
        )
    evaluation = evaluate(
        options.adapter,
        options.data,
        text=options.text,
        pair=options.pair,
        label=options.label,
        split=options.split,
        quoting=options.quoting,
        delimiter=options.delimiter,
        model=options.model,
        device=options.device,
        batch_size=options.batch_size,
        allow_remote_code=options.allow_remote_code,
    )
    messages = message_console(options.quiet)
    if evaluation.n_truncated:
        messages.print(cut_line(evaluation.n_truncated, evaluation.n_rows, evaluation.max_length))
    if options.errors is not None:
        _write_errors(options.errors, evaluation.errors)
        messages.print(f"{len(evaluation.errors)} wrong rows in {options.errors}")
    if options.json:
        print(json.dumps(as_json(evaluation), indent=2, ensure_ascii=False))
    else:
        _print_tables(evaluation)


def as_json(evaluation: "Evaluation") -> dict[str, Any]:
    """The object that `--json` prints: the metrics by name, n, and what the tables show.

    Args:
        evaluation: what `evaluate` returned.

    Example:
        >>> from hadamard_adapter.tuning import Evaluation
        >>> found = Evaluation({"pearson": 0.5}, {}, [], (), n_rows=4, n_truncated=0, errors=[], max_length=9)
        >>> as_json(found)
        {'pearson': 0.5, 'n': 4, 'n_truncated': 0}
    """
    found: dict[str, Any] = {
        **evaluation.scores,
        "n": evaluation.n_rows,
        "n_truncated": evaluation.n_truncated,
    }
    if evaluation.per_class:
        found["labels"] = list(evaluation.label_names)
        found["per_class"] = evaluation.per_class
    if evaluation.confusion:
        found["confusion"] = evaluation.confusion
    return found


def _print_tables(evaluation: "Evaluation") -> None:
    console = data_console()
    for name, value in evaluation.scores.items():
        console.print(f"{name:<12} {value:.4f}")
    console.print(f"{'n':<12} {evaluation.n_rows}")
    if evaluation.per_class:
        table = plain_table(("class", "precision", "recall", "f1", "rows"))
        for name, found in evaluation.per_class.items():
            shown = [f"{found[key]:.4f}" for key in ("precision", "recall", "f1")]
            table.add_row(name, *shown, f"{found['support']:.0f}")
        console.print("", table, sep="\n")
    if 0 < len(evaluation.confusion) <= _MAX_MATRIX:
        console.print("", _matrix(evaluation, console.width), sep="\n")
    elif evaluation.confusion:
        console.print(f"\nconfusion matrix of {len(evaluation.confusion)} classes: see --json")


def _matrix(evaluation: "Evaluation", width: int) -> "Table":
    """The confusion matrix; numbers head its columns where their names are too wide for a line."""
    names = list(evaluation.label_names)
    heads, sides, first = names, names, "true \\ predicted"
    if len(first) + max(map(len, names)) + sum(len(name) + 1 for name in names) > width:
        heads = [str(index) for index in range(len(names))]
        sides = [f"{index} {name}" for index, name in enumerate(names)]
    table = plain_table((first, *heads))
    for side, row in zip(sides, evaluation.confusion, strict=True):
        cut = side if len(side) <= _MAX_SIDE else f"{side[: _MAX_SIDE - 1]}…"
        table.add_row(cut, *map(str, row))
    return table


def _write_errors(path: str, rows: list[dict[str, Any]]) -> None:
    """Write a CSV file, whatever its name; it appears when it is complete."""
    from hadamard_adapter.tasks import write_rows

    write_rows(path, [rows], format="csv", columns=_ERROR_COLUMNS)
