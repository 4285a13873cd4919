"""Tables of texts and labels: a file, a `datasets` name or folder in, rows with their line numbers out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import expanded
from .delimited import Dialect, delimited_records, dialect_of
from .reading import Record, format_of, json_records, text_lines, words

__all__ = ["Table", "read_table", "records_of", "table_of"]


@dataclass(frozen=True)
class Table:
    """Rows of one source, with the place of each for messages.

    `Table("train.csv", ("text", "label"), [{"text": "good", "label": "1"}], [2])`
    """

    name: str
    """The path, the name of the dataset, or "standard input"."""
    columns: tuple[str, ...]
    """Names in the order of the file; JSON lines: in the order in which they first appear."""
    rows: list[dict[str, object]]
    """One dict a row with every column; CSV and TSV cells are strings, the others keep their type."""
    row_numbers: list[int]
    """The line on which each row begins (header = line 1); Parquet and datasets: the row, counted from 1."""
    unit: str = "line"
    """What `row_numbers` counts: "line" or "row"."""
    first_record: int = 1
    """Number of the first row among all records; larger in the later batches of a stream."""

    def place(self, indices: Sequence[int]) -> str:
        """Return where rows are, as in "lines 3, 8 (record 5)"; the record is told where line ends shift it.

        Example:
            >>> Table("x.csv", ("a",), [{"a": "1"}], [2]).place([0])
            'line 2'
        """
        numbers = [self.row_numbers[index] for index in indices]
        records = [self.first_record + index for index in indices]
        shifted = [number - record not in (0, 1) for number, record in zip(numbers, records, strict=True)]
        told = [
            f"{number} (record {record})" if is_shifted else str(number)
            for number, record, is_shifted in zip(numbers, records, shifted, strict=True)
        ]
        return f"{self.unit}{'s' if len(told) > 1 else ''} {words(told, 10)}"


def read_table(
    source: str,
    *,
    quoting: bool | None = None,
    header: tuple[str, ...] | None = None,
    split: str | None = None,
    delimiter: str | None = None,
    format: str | None = None,
    skip_short_rows: bool = False,
) -> Table:
    """Read a whole table.

    Args:
        source: path of a .csv, .tsv, .jsonl (.ndjson, .json) or .parquet file, a folder written by
            `datasets`' save_to_disk, or the name of a dataset ("imdb"; with configuration "glue:cola").
        quoting: whether quotes enclose cells. None: yes in CSV, no in TSV (as GLUE's files are written).
        header: names of the columns of a CSV or TSV file that has no header line.
        split: split of a dataset, "train" where not given.
        delimiter: one character between cells; None: comma in CSV, tab in TSV.
        format: "csv", "tsv", "jsonl" or "parquet" where the extension does not tell.
        skip_short_rows: leave out CSV and TSV rows with too few cells, for published files known to hold
            some.

    Raises:
        DataError: the source cannot be found or read, or is damaged; the message names file and line.

    Example:
        >>> read_table("train.csv").columns  # doctest: +SKIP
        ('text', 'label')
    """
    path = expanded(source)
    if path.is_dir() or not path.exists():
        return _read_dataset(source, path, split)
    if split is not None:
        raise DataError(f"{source}: a file has no split, received split={split!r}; splits belong to datasets")
    format = format_of(source, format)
    dialect = replace(dialect_of(format, quoting, delimiter, header), skips_short_rows=skip_short_rows)
    if format == "parquet":
        return _read_parquet(path, source)
    try:
        with path.open("rb") as handle:
            columns, records = records_of(handle, source, format, dialect)
            numbered = list(records)
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}") from error
    return table_of(source, columns, numbered)


def records_of(
    handle: Iterable[bytes], name: str, format: str, dialect: Dialect
) -> tuple[tuple[str, ...] | None, Iterator[Record]]:
    """Return the columns (None where only the rows tell: JSON lines) and the records of an open binary file.

    Raises:
        DataError: as `read_table`, some of them while the records are drawn.

    Example:
        >>> import io
        >>> records_of(io.BytesIO(b"a,b"), "x.csv", "csv", dialect_of("csv"))[0]
        ('a', 'b')
    """
    lines = text_lines(handle, name)
    if format == "jsonl":
        return None, json_records(lines, name)
    return delimited_records(lines, name, dialect)


def table_of(
    name: str,
    columns: tuple[str, ...] | None,
    numbered: list[Record],
    unit: str = "line",
    first_record: int = 1,
    is_filled: bool = True,
) -> Table:
    """Return a table of numbered records; a key that a JSON row lacks becomes None if `is_filled`.

    Raises:
        DataError: there are no records.

    Example:
        >>> table_of("x.jsonl", None, [(1, {"a": 1}), (2, {"b": 2})]).rows
        [{'a': 1, 'b': None}, {'a': None, 'b': 2}]
    """
    if not numbered:
        found = f"only the header ({words(columns)}) and no rows" if columns else "an empty file"
        raise DataError(f"{name}: expected rows of data, received {found}")
    names = columns or tuple(dict.fromkeys(key for _, row in numbered for key in row))
    rows = [
        row if len(row) == len(names) or not is_filled else {key: row.get(key) for key in names}
        for _, row in numbered
    ]
    return Table(name, names, rows, [number for number, _ in numbered], unit, first_record)


def _read_parquet(path: Path, source: str) -> Table:
    try:
        import pyarrow.parquet as parquet  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise DataError(f"{source}: Parquet needs pyarrow: pip install '.[datasets]' in a clone") from error
    try:
        content: Any = parquet.read_table(path)  # pyright: ignore[reportUnknownMemberType]
        rows: list[dict[str, object]] = content.to_pylist()
    # pyarrow's own errors derive from these; dates beyond the year 9999 are an OverflowError
    except (OSError, ValueError, TypeError, ArithmeticError, NotImplementedError) as error:
        raise DataError(f"{source}: cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    columns = tuple(content.column_names)
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{source}: duplicate column names {words(map(repr, twice))}; rename them")
    return table_of(source, columns, list(enumerate(rows, start=1)), unit="row")


def _read_dataset(source: str, path: Path, split: str | None) -> Table:
    from .hub import load_rows

    columns, rows = load_rows(source, path, split)
    return table_of(source, columns, rows, unit="row")
