"""Lines of text and JSON lines, one at a time, each with its line number.

Text is decoded line by line, so that a byte that is not UTF-8 is reported with its line and a stream of any
length needs the memory of one record.
"""

import json
from collections.abc import Iterable, Iterator

from ..errors import DataError

__all__ = ["FORMATS", "Record", "format_of", "json_records", "plural", "text_lines", "words"]

Record = tuple[int, dict[str, object]]
"""A line number (the file's first line is 1) and the cells by column."""

FORMATS: dict[str, str] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
"""File extension (lower case) to format; a new extension is a new row."""

_MAGIC: dict[bytes, str] = {
    b"PAR1": "a Parquet file; name it .parquet",
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"PK\x03\x04": "a zip or Excel file; unpack it, or save the sheet as CSV UTF-8",
    b"\xff\xfe": "text in UTF-16; save it as UTF-8",
    b"\xfe\xff": "text in UTF-16; save it as UTF-8",
    b"\x80\x04": "a pickle file, which is never opened because it can run code; save the data as CSV",
    b"\x80\x05": "a pickle file, which is never opened because it can run code; save the data as CSV",
}


def format_of(name: str, override: str | None = None) -> str:
    """Return the format of a file by its extension: "csv", "tsv", "jsonl" or "parquet".

    Args:
        name: a path, or "-" for standard input or output.
        override: the format itself; needed with "-".

    Raises:
        DataError: the extension or the override is not known, or "-" came without a format.

    Example:
        >>> format_of("train.TSV")
        'tsv'
    """
    known = sorted(set(FORMATS.values()))
    if override is not None:
        if override not in known:
            raise DataError(f"expected a format among {words(known)}, received {override!r}")
        return override
    if name == "-":
        raise DataError(
            f"the format of a stream cannot be seen from its name '-'; name one of {words(known)}"
        )
    suffix = "." + name.rsplit("/", 1)[-1].rsplit(".", 1)[-1].lower()
    if suffix not in FORMATS:
        raise DataError(
            f"{name}: unknown file extension; known: {words(FORMATS)}; convert the file or rename it"
        )
    return FORMATS[suffix]


def text_lines(raw_lines: Iterable[bytes], name: str) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, line ends kept, a byte order mark removed.

    Raises:
        DataError: a line is not UTF-8 or holds a NUL byte, or the file is of a known binary format.

    Example:
        >>> list(text_lines([b"text,label\\n"], "train.csv"))
        ['text,label\\n']
    """
    for line_number, raw in enumerate(_with_old_line_ends(raw_lines), start=1):
        if line_number == 1:
            for magic, what in _MAGIC.items():
                if raw.startswith(magic):
                    raise DataError(f"{name}: expected lines of text, received {what}")
        if b"\0" in raw:
            raise DataError(
                f"{name}: line {line_number} holds a NUL byte: a binary file, expected text in UTF-8"
            )
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}: line {line_number} is not UTF-8 (byte {raw[error.start]:#04x} at position "
                f"{error.start + 1});"
                f" save the file as UTF-8, for instance with: iconv -f WINDOWS-1252 -t UTF-8"
            ) from error
        yield line.removeprefix("\ufeff") if line_number == 1 else line


def json_records(lines: Iterable[str], name: str) -> Iterator[Record]:
    """Yield the objects of a JSON lines file; the values keep their JSON types.

    Raises:
        DataError: a line is not JSON, not an object, names a key twice, or holds half a surrogate pair.

    Example:
        >>> list(json_records(['{"text": "good", "label": 1}'], "x.jsonl"))
        [(1, {'text': 'good', 'label': 1})]
    """
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{name}: line {line_number}"
        try:
            value = json.loads(line, object_pairs_hook=_unique_keys)
        except _DuplicateKey as error:
            raise DataError(f"{place} names the key {error.args[0]!r} twice; keep one") from error
        except (ValueError, RecursionError) as error:
            hint = (
                " (the file looks like one JSON list: write one object per line instead)"
                if line[0] == "["
                else ""
            )
            raise DataError(f"{place} is not JSON: {error}; expected one object per line{hint}") from error
        if not isinstance(value, dict):
            raise DataError(
                f'{place}: expected an object like {{"text": ..., "label": ...}}, received {value!r:.80}'
            )
        if "\\ud" in line.lower():
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"{place} holds half of a surrogate pair (\\ud800 to \\udfff alone)"
                ) from error
        yield line_number, value


def words(items: Iterable[object], limit: int = 20) -> str:
    """Return items as one comma-separated line, cut after `limit`.

    Example:
        >>> words(["a", "b"])
        'a, b'
    """
    listed = [str(item) for item in items]
    rest = f", … ({len(listed)} in all)" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + rest


def plural(count: int, noun: str) -> str:
    """Return a count with its noun.

    Example:
        >>> plural(1, "row"), plural(2, "row")
        ('1 row', '2 rows')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _with_old_line_ends(raw_lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines; a file whose lines end in carriage returns alone, which comes as one, is cut at them."""
    for index, raw in enumerate(raw_lines):
        if index == 0 and b"\r" in raw and not raw.endswith(b"\n"):
            yield from raw.splitlines(keepends=True)
        else:
            yield raw


class _DuplicateKey(Exception):
    """A JSON object names one key twice."""


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateKey(next(key for key in keys if keys.count(key) > 1))
    return row
