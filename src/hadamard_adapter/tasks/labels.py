"""The labels of a table: what kind they are, their names in a fixed order, and each as a number.

The kind is inferred by these rules, the first that fits:

1. a list in a cell (JSON lines, Parquet, datasets), or a "|" in any cell: multi-label. A comma separates
   labels only where multi-label is asked for and no cell holds a "|", since single labels hold commas too. A
   cell of nothing but "|" (or an empty list) is a row to which no label applies.
2. numbers, one of them not whole: regression.
3. whole numbers with more than 20 values and fewer than 5 rows for each: regression.
4. everything else, 0/1 and star ratings too: single-label, names sorted (numbers by size).
"""

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from ..errors import DataError, SettingsError, did_you_mean
from .columns import Columns
from .metrics import choose_metrics
from .reading import plural, words
from .tables import Table
from .task import PROBLEM_TYPES, Task

__all__ = ["alike_names", "encode_labels", "infer_task"]

_SINGLE, _MULTI, _REGRESSION = PROBLEM_TYPES
_MAX_INTEGER_CLASSES, _MIN_ROWS_A_CLASS = 20, 5


def infer_task(
    table: Table,
    columns: Columns,
    problem_type: str | None = None,
    metric: str | None = None,
    threshold: float = 0.5,
) -> Task:
    """Return the task that the labels of a table describe; the rules stand in this module's docstring.

    Args:
        table: the training rows.
        columns: the columns, a label among them.
        problem_type: a key of PROBLEM_TYPES, which switches the inference off.
        metric: a key of METRICS, put first; None: the usual metrics of the kind.
        threshold: multi-label: the probability from which a label is predicted, between 0 and 1.

    Raises:
        DataError: missing labels, one class only, or labels that do not fit `problem_type`.
        SettingsError: unknown problem type, a metric that does not fit, a threshold outside (0, 1).

    Example:
        >>> rows = [{"t": "x", "y": "1"}, {"t": "z", "y": "0"}]
        >>> infer_task(Table("x.csv", ("t", "y"), rows, [2, 3]), Columns("t", None, "y")).label_names
        ('0', '1')
    """
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        raise SettingsError(
            f"expected a problem type among {words(PROBLEM_TYPES)}, received {problem_type!r}"
        )
    if not 0 < threshold < 1:
        raise SettingsError(f"expected a threshold between 0 and 1, received {threshold!r}")
    values = _present(table, columns)
    kind = problem_type or _guess(table, columns, values)
    cells = [value for value in values if isinstance(value, str)]
    at_commas = any("," in cell for cell in cells) and not any("|" in cell for cell in cells)
    separator = "," if at_commas else "|"
    names: tuple[str, ...] = ()
    if kind == _REGRESSION:
        numbers = _numbers(table, columns, values)
        if len(set(numbers)) == 1:
            raise DataError(
                f"{table.name}: every label in column {columns.label!r} is {numbers[0]!r}; there is "
                f"nothing to learn"
            )
    else:
        names = (
            _single_names(table, columns, values)
            if kind == _SINGLE
            else _multi_names(table, columns, values, separator)
        )
    metrics = choose_metrics(kind, len(names), metric)
    return Task("task", kind, names, metrics, threshold, separator if kind == _MULTI else "|")


def encode_labels(table: Table, columns: Columns, task: Task) -> list[Any]:
    """Return the labels as the task's numbers: an index, a multi-hot row of floats, or a float for each row.

    Raises:
        DataError: a label is missing, unknown to the task or not a finite number; the message lists the rows.

    Example:
        >>> task = Task("x", "single_label_classification", ("bad", "good"), ("accuracy",))
        >>> table = Table("x.csv", ("t", "y"), [{"t": "x", "y": "good"}], [2])
        >>> encode_labels(table, Columns("t", None, "y"), task)
        [1]
    """
    values = _present(table, columns)
    if task.problem_type == _REGRESSION:
        return _numbers(table, columns, values)
    index = {name: position for position, name in enumerate(task.label_names)}
    if task.problem_type == _SINGLE:
        names = [_as_known(_name(value), index) for value in values]
        _refuse_unknown(table, columns, [[name] for name in names], task)
        return [index[name] for name in names]
    found = _label_sets(table, values, task.separator, task.label_names)
    sets = [list(dict.fromkeys(_as_known(name, index) for name in members)) for members in found]
    _refuse_unknown(table, columns, sets, task)
    return [[float(name in members) for name in task.label_names] for members in sets]


def alike_names(names: Sequence[str]) -> tuple[str, str] | None:
    """The first two names that are perhaps one: equal as numbers, or but for case and Unicode's form.

    Example:
        >>> alike_names(["0", "1", "1.0"]), alike_names(["good", "Good"]), alike_names(["1", "10"])
        (('1', '1.0'), ('good', 'Good'), None)
    """
    seen: dict[Decimal | str, str] = {}
    for name in names:
        number, word = _exact(name), unicodedata.normalize("NFC", name).casefold()
        first = seen.setdefault(word if number is None or number.is_infinite() else number, name)
        if first != name:
            return first, name
    return None


def _present(table: Table, columns: Columns) -> list[Any]:
    if columns.label is None:
        raise DataError(
            f"{table.name}: no column of labels was named; columns: {words(table.columns)}; use --label"
        )
    values: list[Any] = [row[columns.label] for row in table.rows]
    numbers = [_number(value) for value in values]
    has_numbers = any(number is not None and math.isfinite(number) for number in numbers)
    missing = [index for index, value in enumerate(values) if _is_missing(value, has_numbers)]
    if missing:
        raise DataError(
            f"{table.name}: {plural(len(missing), 'row')} without a label in column {columns.label!r}: "
            f"{table.place(missing)}; fill in or remove"
        )
    nested = [index for index, value in enumerate(values) if _is_nested(value)]
    if nested:
        raise DataError(
            f"{table.name}: expected a name, a number or a list of names in column {columns.label!r}, "
            f"received {values[nested[0]]!r:.60} in {table.place(nested)}; write the names of the labels"
        )
    return values


def _is_nested(value: Any) -> bool:
    items: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(item, (dict, list, tuple)) for item in items)


def _is_missing(value: Any, has_numbers: bool) -> bool:
    """Whether a cell, or one place of a list, holds no label; `nan` as text is none among numbers alone."""
    if isinstance(value, (list, tuple)):
        return any(_is_missing(item, False) for item in value)
    if isinstance(value, str):
        return not value.strip() or (has_numbers and value.strip().lower() == "nan")
    return value is None or (isinstance(value, float) and math.isnan(value))


def _guess(table: Table, columns: Columns, values: list[Any]) -> str:
    if any(isinstance(value, (list, tuple)) or (isinstance(value, str) and "|" in value) for value in values):
        return _MULTI
    if all(
        isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]")
        for value in values
    ):
        raise DataError(
            f"{table.name}: the labels in column {columns.label!r} look like lists written as text "
            f"({values[0]!r:.60}); "
            'for several labels a row write them as "a|b", or as a list in JSON lines'
        )
    numbers = [_number(value) for value in values]
    words_at = [index for index, number in enumerate(numbers) if number is None]
    present = [number for number in numbers if number is not None]
    has_fractions = any(not number.is_integer() for number in present)
    if words_at:
        if has_fractions and len(present) > 4 * len(words_at):
            raise DataError(
                f"{table.name}: the labels in column {columns.label!r} are numbers such as {present[0]!r}, "
                f"except in {table.place(words_at)} ({values[words_at[0]]!r:.60}); correct them, or force "
                "the problem type"
            )
        return _SINGLE
    if has_fractions:
        return _REGRESSION
    n_values = len(set(present))
    is_dense = n_values > _MAX_INTEGER_CLASSES and len(present) < _MIN_ROWS_A_CLASS * n_values
    return _REGRESSION if is_dense else _SINGLE


def _single_names(table: Table, columns: Columns, values: list[Any]) -> tuple[str, ...]:
    numbers = [_number(value) for value in values]
    fractions = [index for index, number in enumerate(numbers) if not (number or 0.0).is_integer()]
    fractions = [] if None in numbers else fractions  # among words it is one of them
    lists = [index for index, value in enumerate(values) if isinstance(value, (list, tuple))]
    if lists or fractions:
        first = (lists or fractions)[0]
        what = "a list of labels" if lists else "a number that is not whole"
        instead = _MULTI if lists else _REGRESSION
        raise DataError(
            f"{table.name}: expected one class a row in column {columns.label!r}, received {what}, "
            f"{values[first]!r:.60}, in {table.place(lists or fractions)}; use --problem-type {instead}, or "
            "write the classes as words"
        )
    names = _sorted_names(_name(value) for value in values)
    if len(names) == 1:
        raise DataError(
            f"{table.name}: only one class, {names[0]!r}, in column {columns.label!r}; a classifier needs "
            f"at least two"
        )
    if len(names) == len(values) >= 10:
        raise DataError(
            f"{table.name}: each of the {len(values)} rows has a label of its own in column "
            f"{columns.label!r} (such as {names[0]!r:.60}); columns: {words(table.columns)}; name the column "
            "of labels with --label"
        )
    return names


def _multi_names(table: Table, columns: Columns, values: list[Any], separator: str) -> tuple[str, ...]:
    if _are_indicators(values):
        raise DataError(
            f"{table.name}: the labels in column {columns.label!r} look like vectors of 0 and 1 "
            f"({values[0]!r:.60}); expected the names of the labels that apply, as in "
            '["news", "sport"], or "news|sport" in CSV'
        )
    names = _sorted_names(name for members in _label_sets(table, values, separator) for name in members)
    if len(names) < 2:
        raise DataError(
            f"{table.name}: expected at least two labels in column {columns.label!r}, received "
            f"{words(names) or 'none'}"
        )
    return names


def _are_indicators(values: list[Any]) -> bool:
    """Whether all labels are lists of one length, two or more, that hold nothing but the numbers 0 and 1."""
    lengths = {len(value) if isinstance(value, (list, tuple)) else 0 for value in values}
    if len(lengths) != 1 or max(lengths) < 2:
        return False
    return all(not isinstance(item, str) and item in (0, 1) for value in values for item in value)


def _label_sets(
    table: Table, values: list[Any], separator: str, known: Sequence[str] = ()
) -> list[list[str]]:
    sets: list[list[str]] = []
    for index, value in enumerate(values):
        if isinstance(value, (list, tuple)):
            members = [_name(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
        elif isinstance(value, str) and value.strip() not in known:
            members = [part.strip() for part in value.split(separator) if part.strip()]
        else:
            members = [_name(value)]
        if len(set(members)) < len(members):
            raise DataError(
                f"{table.name}: {table.place([index])} names a label twice, {value!r:.80}; expected the "
                "names of the labels that apply, each once (a vector of 0 and 1 must be turned into names)"
            )
        sets.append(members)
    return sets


def _numbers(table: Table, columns: Columns, values: list[Any]) -> list[float]:
    numbers = [_number(value) for value in values]
    wrong = [index for index, number in enumerate(numbers) if number is None or not math.isfinite(number)]
    if wrong:
        raise DataError(
            f"{table.name}: expected finite numbers in column {columns.label!r} (regression), received "
            f"{values[wrong[0]]!r:.60} in {table.place(wrong)}; correct them, or set the problem type to a "
            f"classification"
        )
    return [number for number in numbers if number is not None]


def _refuse_unknown(table: Table, columns: Columns, sets: list[list[str]], task: Task) -> None:
    known = set(task.label_names)
    wrong = [index for index, members in enumerate(sets) if not known.issuperset(members)]
    if not wrong:
        return
    names = _sorted_names(name for index in wrong for name in sets[index] if name not in known)
    raise DataError(
        f"{table.name}: labels in column {columns.label!r} that training does not know: "
        f"{words(map(repr, names), 5)} in {table.place(wrong)}; known: {words(task.label_names)}"
        f"{did_you_mean(names[0], task.label_names, otherwise=';')} "
        "correct the rows, or train with rows of that label"
    )


def _name(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # Parquet and pandas turn whole numbers into floats
    return str(value).strip()


def _as_known(name: str, known: Mapping[str, int]) -> str:
    """The label of training that is the same written otherwise (1 for 1.0, True for true), else the name."""
    if name in known:
        return name
    if name.lower() in ("true", "false"):
        alike = [label for label in known if label.lower() == name.lower()]
    else:
        number = _exact(name)
        alike = [label for label in known if number is not None and _exact(label) == number]
    return alike[0] if len(alike) == 1 else name


def _exact(name: str) -> Decimal | None:
    """The number that a name spells, whatever its digits: beyond 2^53 floats take neighbours for one."""
    try:
        return None if _number(name) is None else Decimal(name)
    except InvalidOperation:  # an exponent of twenty digits
        return None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal, str)):
        return None
    if isinstance(value, str) and "_" in value:
        return None  # float() reads 1_000 as a number; in a table it is a name
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if isinstance(value, str) and math.isnan(number) else number  # a word, where others are


def _sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    distinct = sorted(set(names))
    numbers = {name: _number(name) for name in distinct}
    if all(number is not None and math.isfinite(number) for number in numbers.values()):
        return tuple(sorted(distinct, key=lambda name: (numbers[name], name)))
    return tuple(distinct)
