"""Records of CSV and TSV, one at a time, each with the line on which it began.

Blank lines hold no record, except between the rows of a one-column file, where a blank line is a row whose
only cell is empty.
"""

import csv
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..errors import DataError
from .reading import Record, plural, words

__all__ = ["Dialect", "delimited_records", "dialect_of"]


@dataclass(frozen=True)
class Dialect:
    """How the cells of a CSV or TSV file are written: `Dialect(",", True)`."""

    delimiter: str
    """The character between cells."""
    is_quoted: bool
    """True: RFC 4180 quotes, cells may hold line ends. False: a quote is text like any other."""
    header: tuple[str, ...] | None = None
    """The columns of a file that has no header line."""
    skips_short_rows: bool = False
    """True leaves out rows with too few cells: for published files only, whose broken rows are known."""


def dialect_of(
    format: str,
    quoting: bool | None = None,
    delimiter: str | None = None,
    header: tuple[str, ...] | None = None,
) -> Dialect:
    """Return the dialect of a format: commas and quotes in CSV, tabs and no quotes in TSV, unless told
    otherwise.

    Raises:
        DataError: the delimiter is not one character.

    Example:
        >>> dialect_of("tsv").is_quoted
        False
    """
    if delimiter is not None and len(delimiter) != 1:
        raise DataError(f"expected one character as delimiter, received {delimiter!r}")
    is_quoted = format == "csv" if quoting is None else quoting
    return Dialect(delimiter or ("\t" if format == "tsv" else ","), is_quoted, header)


def delimited_records(
    lines: Iterable[str], name: str, dialect: Dialect
) -> tuple[tuple[str, ...], Iterator[Record]]:
    """Return the columns of a CSV or TSV file and an iterator over its records; every cell is a string.

    Args:
        lines: lines of text, see `text_lines`.
        name: the file's name in messages.
        dialect: how its cells are written.

    Raises:
        DataError: empty file, duplicate columns, another delimiter in the header, a ragged row, a broken
            quote.

    Example:
        >>> columns, records = delimited_records(["a\\tb\\n", "1\\t2\\n"], "x.tsv", Dialect("\\t", False))
        >>> columns, list(records)
        (('a', 'b'), [(2, {'a': '1', 'b': '2'})])
    """
    plain = _plain_rows(lines, dialect.delimiter)
    rows = _quoted_rows(lines, name, dialect.delimiter) if dialect.is_quoted else plain
    if dialect.header is not None:
        return dialect.header, _records(rows, name, dialect.header, dialect)
    first = next((cells for _, cells in rows if not _is_blank(cells)), None)
    if first is None:
        raise DataError(f"{name}: the file is empty; expected a header line with the names of the columns")
    columns = tuple(cell.strip() for cell in first)
    _check_header(columns, name, dialect.delimiter)
    return columns, _records(rows, name, columns, dialect)


def _plain_rows(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    for line_number, line in enumerate(lines, start=1):
        yield line_number, line.rstrip("\r\n").split(delimiter)


def _quoted_rows(lines: Iterable[str], name: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    # The module's limit of 131,072 characters a cell is a process-wide setting; long documents exceed it.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a C long, which has 32 bits on Windows
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line_number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what = "a quote opened here is never closed" if "end of data" in str(error) else str(error)
            raise DataError(
                f"{name}: the row that begins on line {line_number} is broken ({what}); inside quotes write "
                'a quote as "", or switch quoting off (--no-quoting) if quotes are plain text'
            ) from error
        yield line_number, cells


def _is_blank(cells: list[str]) -> bool:
    return not cells or (len(cells) == 1 and not cells[0].strip())


def _check_header(columns: tuple[str, ...], name: str, delimiter: str) -> None:
    if len(columns) == 1:
        for other, label in ((";", "';'"), ("\t", "a tab"), (",", "','"), ("|", "'|'")):
            if other != delimiter and other in columns[0]:
                raise DataError(
                    f"{name}: the header is one column {columns[0]!r} that holds {label}: the cells seem to "
                    f"be separated by {label}, expected {delimiter!r}; save the file with {delimiter!r}"
                    + (
                        ", or name it .tsv"
                        if other == "\t"
                        else f", or pass --delimiter {other!r} (in Python delimiter={other!r})"
                    )
                )
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(
            f"{name}: duplicate column names {words(map(repr, twice))} in {words(columns)}; rename them"
        )


def _records(
    rows: Iterator[tuple[int, list[str]]], name: str, columns: tuple[str, ...], dialect: Dialect
) -> Iterator[Record]:
    blank: list[int] = []
    for line_number, cells in rows:
        if _is_blank(cells):
            blank.append(line_number)
            continue
        if len(columns) == 1:
            for number in blank:
                yield number, {columns[0]: ""}
        blank.clear()
        if len(cells) < len(columns) and dialect.skips_short_rows:
            continue
        if len(cells) != len(columns):
            advice = (
                "put quotes around a cell that holds the separator, or switch quoting off (--no-quoting)"
                if dialect.is_quoted
                else "a cell may not hold the separator or a line end unless it is quoted (then --quoting)"
            )
            raise DataError(
                f"{name}: line {line_number}: expected {plural(len(columns), 'cell')} ({words(columns)}), "
                f"received {len(cells)}; {advice}"
            )
        yield line_number, dict(zip(columns, cells, strict=True))
