"""Rows as a stream: batches of any long file or of standard input, and writing them back with new columns."""

import csv
import io
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import islice
from queue import Empty, Queue
from threading import Thread
from typing import IO, Any

from ..errors import DataError
from ..files import expanded, replacing
from .delimited import dialect_of
from .reading import Record, format_of, plural, words
from .tables import Table, read_table, records_of, table_of

__all__ = ["iter_rows", "write_rows"]

_PAUSE_S = 0.2


def iter_rows(
    source: str,
    batch_size: int,
    *,
    format: str | None = None,
    quoting: bool | None = None,
    delimiter: str | None = None,
) -> Iterator[Table]:
    """Yield the rows of a CSV, TSV or JSON lines file as tables of at most `batch_size` rows.

    Each table carries its lines and record numbers, so messages about a later batch are right too. Rows of
    JSON lines keep their own keys, whatever stands in the same batch. Of standard input, what has arrived is
    given when nothing follows for a moment. Parquet and datasets, which are no streams, are read whole and
    cut.

    Args:
        source: a path, or "-" for standard input (then `format` is needed).
        batch_size: rows in a batch, at least 1.
        format: "csv", "tsv" or "jsonl" where the extension does not tell.
        quoting: as in `read_table`.
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
    if source != "-" and (not expanded(source).is_file() or format_of(source, format) == "parquet"):
        whole = read_table(source, format=format, quoting=quoting, delimiter=delimiter)
        yield from _cut(whole, batch_size)
        return
    format = format_of(source, format)
    if format == "parquet":
        raise DataError(
            "Parquet cannot be read from standard input; give a file, or stream csv, tsv or jsonl"
        )
    dialect = dialect_of(format, quoting, delimiter)
    with _standard_input() if source == "-" else expanded(source).open("rb") as handle:
        columns, records = records_of(handle, name, format, dialect)
        batched = _as_they_arrive if source == "-" else _in_full
        yield from _tables(name, columns, batched(records, batch_size))


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
    is flushed after every batch. TSV is written without quotes, as it is read; lists in CSV and TSV become
    JSON.

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


def _tables(name: str, columns: tuple[str, ...] | None, batches: Iterable[list[Record]]) -> Iterator[Table]:
    first_record = 1
    for numbered in batches:
        yield table_of(name, columns, numbered, first_record=first_record, is_filled=False)
        first_record += len(numbered)
    if first_record == 1:
        table_of(name, columns, [])  # says that there is none


def _in_full(records: Iterator[Record], batch_size: int) -> Iterator[list[Record]]:
    while batch := list(islice(records, batch_size)):
        yield batch


def _as_they_arrive(records: Iterator[Record], batch_size: int) -> Iterator[list[Record]]:
    """Batches of up to `batch_size` records; a smaller one when no record follows for `_PAUSE_S`.

    A thread waits for the lines; it is at most a batch ahead, and it dies with the process.
    """
    arrived: Queue[Record | Exception | None] = Queue(batch_size)
    Thread(target=_pump, args=(records, arrived), daemon=True).start()
    end: Exception | None = None
    is_over = False
    while not is_over:
        batch: list[Record] = []
        with suppress(Empty):
            while len(batch) < batch_size:
                found = arrived.get(timeout=_PAUSE_S if batch else None)
                if found is None or isinstance(found, Exception):
                    is_over, end = True, found
                    break
                batch.append(found)
        if batch:
            yield batch
    if end is not None:
        raise end


def _pump(records: Iterator[Record], arrived: "Queue[Record | Exception | None]") -> None:
    """Put the records into a queue, and then how they ended."""
    try:
        for record in records:
            arrived.put(record)
        arrived.put(None)
    except Exception as error:  # raised again by whoever reads
        arrived.put(error)


def _standard_input() -> AbstractContextManager[IO[bytes]]:
    """Standard input's bytes, never closed, and past Python's own buffer.

    A thread that waits for bytes holds its buffer's lock: closing the buffer would wait for it, and Python's
    own, which is flushed at the end of the process, would crash it.
    """
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]  # closed by who started this
        raise DataError("standard input is closed; give a file, or send rows through a pipe")
    try:
        return nullcontext(open(sys.stdin.fileno(), "rb", closefd=False))
    except (OSError, AttributeError):  # it is no file, as under a test
        return nullcontext(sys.stdin.buffer)


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
    try:
        with replacing(expanded(destination), "w", encoding="utf-8", newline="") as handle:
            yield handle
    except OSError as error:
        raise DataError(f"{destination}: cannot be written: {error.strerror or error}") from error


def _json_line(name: str, columns: tuple[str, ...] | None) -> Callable[[Mapping[str, object]], str]:
    def line(row: Mapping[str, object]) -> str:
        chosen = dict(row) if columns is None else {key: row[key] for key in _checked(name, columns, row)}
        return _json(chosen) + "\n"

    return line


def _json(value: object) -> str:
    """JSON; NaN and the infinities, which it has no words for, become null."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
                        f"{name}: the cell {cell!r:.60} of column {column!r} holds {delimiter!r} or a line "
                        "end, which a file without quotes cannot carry; write .jsonl, or switch quoting on "
                        "(--quoting)"
                    )
            return delimiter.join(cells) + "\n"
        buffer = io.StringIO()
        csv.writer(buffer, delimiter=delimiter, lineterminator="\r\n").writerow(
            cells
        )  # so "\r" is quoted too
        return buffer.getvalue()[:-2] + "\n"

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
        return _json(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
