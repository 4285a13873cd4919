"""Rows as a stream: batches of any long file or of standard input, and writing them back with new columns."""

import csv
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import IO

from ..errors import DataError
from .delimited import dialect_of
from .reading import Record, format_of, plural, words
from .tables import Table, read_table, records_of, table_of

__all__ = ["iter_rows", "write_rows"]


def iter_rows(
    source: str,
    batch_size: int,
    *,
    format: str | None = None,
    quoting: bool | None = None,
    header: tuple[str, ...] | None = None,
    delimiter: str | None = None,
) -> Iterator[Table]:
    """Yield the rows of a CSV, TSV or JSON lines file as tables of at most `batch_size` rows.

    Each table carries its lines and record numbers, so messages about a later batch are right too. Parquet
    and
    datasets, which are no streams, are read whole and cut.

    Args:
        source: a path, or "-" for standard input (then `format` is needed).
        batch_size: rows in a batch, at least 1.
        format: "csv", "tsv" or "jsonl" where the extension does not tell.
        quoting: as in `read_table`.
        header: as in `read_table`.
        delimiter: as in `read_table`.

    Raises:
        DataError: as `read_table`; rows before the broken one have been yielded by then.

    Example:
        >>> for batch in iter_rows("new.csv", 32):  # doctest: +SKIP
        ...     print(len(batch.rows))
    """
    if batch_size < 1:
        raise DataError(f"expected a batch size of at least 1, received {batch_size!r}")
    name = "standard input" if source == "-" else source
    if source != "-" and (not Path(source).expanduser().is_file() or format_of(source, format) == "parquet"):
        yield from _cut(read_table(source, format=format), batch_size)
        return
    format = format_of(source, format)
    if format == "parquet":
        raise DataError(
            "Parquet cannot be read from standard input; give a file, or stream csv, tsv or jsonl"
        )
    opened = nullcontext(sys.stdin.buffer) if source == "-" else Path(source).expanduser().open("rb")
    with opened as handle:
        columns, records = records_of(handle, name, format, dialect_of(format, quoting, delimiter, header))
        yield from _batches(name, columns, records, batch_size)


def write_rows(
    destination: str,
    batches: Iterable[Iterable[Mapping[str, object]]],
    *,
    format: str | None = None,
    columns: Iterable[str] | None = None,
    quoting: bool | None = None,
) -> int:
    """Write rows as CSV, TSV or JSON lines and return how many.

    A file appears under its name only when it is complete (written beside it, then renamed). Standard output
    is
    flushed after every batch. TSV is written without quotes, as it is read; lists in CSV and TSV become JSON.

    Args:
        destination: a path, or "-" for standard output (then `format` is needed).
        batches: batches of rows; drawn one at a time.
        format: "csv", "tsv" or "jsonl" where the extension does not tell.
        columns: names in order; None: those of the first row. JSON lines without it keep each row's own keys.
        quoting: None: quotes in CSV, none in TSV.

    Raises:
        DataError: a row has other columns, TSV would need quotes, or the file cannot be written.

    Example:
        >>> write_rows("-", [[{"text": "good", "label": "1"}]], format="csv")
        text,label
        good,1
        1
    """
    format = format_of(destination, format)
    if format == "parquet":
        raise DataError(f"{destination}: expected csv, tsv or jsonl for output, received parquet")
    name = "standard output" if destination == "-" else destination
    quoted = format == "csv" if quoting is None else quoting
    count = 0
    columns = None if columns is None else tuple(columns)
    with _opened(destination) as handle:
        writer: Callable[[Mapping[str, object]], str] | None = None
        for batch in batches:
            for row in batch:
                if writer is None:
                    writer = _start(handle.write, name, format, columns, tuple(row), quoted)
                handle.write(writer(row))
                count += 1
            handle.flush()
        if writer is None and columns is not None:  # no row: the header alone
            _start(handle.write, name, format, columns, columns, quoted)
    return count


def _start(
    write: Callable[[str], object],
    name: str,
    format: str,
    columns: tuple[str, ...] | None,
    first: tuple[str, ...],
    quoted: bool,
) -> Callable[[Mapping[str, object]], str]:
    """Write the header, where the format has one, and return what makes a line of a row."""
    if format == "jsonl":
        return _json_line(name, columns)
    names = first if columns is None else columns
    writer = _delimited_line(name, names, "\t" if format == "tsv" else ",", quoted)
    write(writer(dict(zip(names, names, strict=True))))
    return writer


def _batches(
    name: str, columns: tuple[str, ...] | None, records: Iterator[Record], batch_size: int
) -> Iterator[Table]:
    first_record = 1
    while True:
        numbered = list(islice(records, batch_size))
        if not numbered and first_record > 1:
            return
        yield table_of(name, columns, numbered, first_record=first_record)
        first_record += len(numbered)


def _cut(table: Table, batch_size: int) -> Iterator[Table]:
    for start in range(0, len(table.rows), batch_size):
        part = slice(start, start + batch_size)
        yield Table(
            table.name, table.columns, table.rows[part], table.row_numbers[part], table.unit, start + 1
        )


@contextmanager
def _opened(destination: str) -> Iterator[IO[str]]:
    if destination == "-":
        sys.stdout.flush()
        yield sys.stdout
        sys.stdout.flush()
        return
    path = Path(destination).expanduser()
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes files private; the user expects the usual rights
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise DataError(f"{destination}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _json_line(name: str, columns: tuple[str, ...] | None) -> Callable[[Mapping[str, object]], str]:
    def line(row: Mapping[str, object]) -> str:
        chosen = dict(row) if columns is None else {key: row[key] for key in _checked(name, columns, row)}
        return json.dumps(chosen, ensure_ascii=False, default=str) + "\n"

    return line


def _delimited_line(
    name: str, columns: tuple[str, ...], delimiter: str, quoting: bool
) -> Callable[[Mapping[str, object]], str]:
    twice = [column for column in columns if columns.count(column) > 1]
    if twice:
        raise DataError(
            f"{name}: the output would have the column {twice[0]!r} twice; rename it in the input"
        )

    def line(row: Mapping[str, object]) -> str:
        cells = [_cell(row[column]) for column in _checked(name, columns, row)]
        if not quoting:
            for column, cell in zip(columns, cells, strict=True):
                if any(mark in cell for mark in (delimiter, "\n", "\r")):
                    raise DataError(
                        f"{name}: the cell {cell!r:.60} of column {column!r} holds a tab or a line end, "
                        f"which a file "
                        "without quotes cannot carry; write .csv or .jsonl, or switch quoting on "
                        "(--quoting)"
                    )
            return delimiter.join(cells) + "\n"
        buffer = io.StringIO()
        csv.writer(buffer, delimiter=delimiter, lineterminator="\n").writerow(cells)
        return buffer.getvalue()

    return line


def _checked(name: str, columns: tuple[str, ...], row: Mapping[str, object]) -> tuple[str, ...]:
    if set(row) != set(columns):
        missing, extra = set(columns) - row.keys(), row.keys() - set(columns)
        raise DataError(
            f"{name}: expected the {plural(len(columns), 'column')} {words(columns)} in every row; missing: "
            f"{words(sorted(missing)) or 'none'}; new: {words(sorted(extra)) or 'none'}; write .jsonl, "
            f"where rows may differ"
        )
    return columns


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
