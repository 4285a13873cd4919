"""Texts with labels as numbers, ready for training: encoding a table, splitting off a dev part, a
fingerprint."""

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError, SettingsError
from .columns import Columns
from .labels import encode_labels
from .reading import plural, words
from .tables import Table
from .task import Task

__all__ = ["Examples", "data_fingerprint", "encode", "encode_texts", "shared_texts", "stratified_split"]


@dataclass(frozen=True)
class Examples:
    """Texts, maybe pairs, maybe labels, of equal length: `Examples(["good"], None, [1])`."""

    texts: list[str]
    """The texts, or the first texts of the pairs."""
    pairs: list[str] | None = None
    """The second texts; None for single texts."""
    labels: list[Any] | None = None
    """Class indices, multi-hot rows of floats, or floats; None in prediction."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> "Examples":
        """Return the rows at these positions.

        Example:
            >>> Examples(["a", "b"]).take([1]).texts
            ['b']
        """
        return Examples(
            [self.texts[index] for index in indices],
            None if self.pairs is None else [self.pairs[index] for index in indices],
            None if self.labels is None else [self.labels[index] for index in indices],
        )


def encode(table: Table, columns: Columns, task: Task) -> Examples:
    """Return the rows of a table as examples of a known task; without a label column the labels are None.

    Raises:
        DataError: a text is empty or no text, a label is missing, unknown or no number; the message lists
            the rows.

    Example:
        >>> task = Task("x", "single_label_classification", ("bad", "good"), ("accuracy",))
        >>> table = Table("x.csv", ("t", "y"), [{"t": "fine", "y": "good"}], [2])
        >>> encode(table, Columns("t", None, "y"), task)
        Examples(texts=['fine'], pairs=None, labels=[1])
    """
    examples = encode_texts(table, columns)
    if columns.label is None:
        return examples
    return Examples(examples.texts, examples.pairs, encode_labels(table, columns, task))


def encode_texts(table: Table, columns: Columns) -> Examples:
    """Return the texts of a table without labels, for prediction.

    Raises:
        DataError: a text is empty or no text; the message lists the rows.

    Example:
        >>> encode_texts(Table("x.csv", ("t",), [{"t": "fine"}], [2]), Columns("t")).texts
        ['fine']
    """
    pairs = None if columns.pair is None else _texts(table, columns.pair)
    return Examples(_texts(table, columns.text), pairs)


def stratified_split(
    examples: Examples, task: Task, size: float | int, seed: int
) -> tuple[Examples, Examples]:
    """Return (train, dev): a seeded split that keeps the shares of the classes; the order of the rows is
    kept.

    A class with a single row stays in train, so that dev does not measure it. Regression and multi-label are
    split without regard to the labels.

    Args:
        examples: labelled rows.
        task: what they belong to.
        size: share of dev, between 0 and 1, of the rows that are not alone in their class; or, a whole
            number, how many rows it has. More where there are more classes.
        seed: seed of the split.

    Raises:
        SettingsError: the share is not between 0 and 1, or the number not above 0.
        DataError: too few rows for both parts.

    Example:
        >>> task = Task("x", "single_label_classification", ("bad", "good"), ("accuracy",))
        >>> train, dev = stratified_split(Examples(list("abcdefgh"), None, [0, 1] * 4), task, 0.25, 0)
        >>> sorted(dev.labels)
        [0, 1]
    """
    if not (size > 0 if isinstance(size, int) else 0 < size < 1):
        raise SettingsError(f"expected a dev fraction between 0 and 1, received {size!r}")
    from sklearn.model_selection import train_test_split

    labels = examples.labels or []
    is_single = task.problem_type == "single_label_classification"
    counts: Counter[Any] = Counter(labels if is_single else [])
    is_lone = [is_single and counts[label] == 1 for label in labels] or [False] * len(examples)
    lone = [index for index, alone in enumerate(is_lone) if alone]
    movable = [index for index, alone in enumerate(is_lone) if not alone]
    n_classes = len({labels[index] for index in movable}) if is_single else 1
    n_dev = max(size if isinstance(size, int) else math.ceil(size * len(movable)), n_classes)
    if not movable or len(movable) - n_dev < n_classes:
        raise DataError(
            f"{task.name}: {plural(len(examples), 'row')} are too few to split off a dev part; expected at "
            "least two for each class; give a dev file"
        )
    strata = [labels[index] for index in movable] if is_single else None
    train, dev = train_test_split(movable, test_size=n_dev, random_state=seed, stratify=strata)
    return examples.take(sorted([*train, *lone])), examples.take(sorted(dev))


def data_fingerprint(examples: Examples) -> str:
    """Return the sha256 of texts, pairs and labels in their order, 64 hexadecimal digits.

    Hashed is one JSON list [text, pair, label] a row, in ASCII, each with a line end.

    Example:
        >>> data_fingerprint(Examples(["good"], None, [1]))[:8]
        '9cb07649'
    """
    digest = hashlib.sha256()
    for index, text in enumerate(examples.texts):
        pair = None if examples.pairs is None else examples.pairs[index]
        label = None if examples.labels is None else examples.labels[index]
        digest.update(json.dumps([text, pair, label]).encode() + b"\n")
    return digest.hexdigest()


def shared_texts(train: Examples, dev: Examples) -> int:
    """Return how many dev rows have the very text, and pair, of a training row, whatever their labels.

    Example:
        >>> shared_texts(Examples(["good", "dull"]), Examples(["good", "good", "fine"]))
        2
    """
    known = set(_text_pairs(train))
    return sum(row in known for row in _text_pairs(dev))


def _text_pairs(examples: Examples) -> Iterable[tuple[str, str | None]]:
    return zip(examples.texts, examples.pairs or itertools.repeat(None), strict=False)


def _texts(table: Table, column: str) -> list[str]:
    values = [row.get(column) for row in table.rows]  # a later batch of a stream may lack the key
    empty = [
        index
        for index, value in enumerate(values)
        if value is None or (isinstance(value, str) and not value.strip())
    ]
    if empty:
        raise DataError(
            f"{table.name}: {plural(len(empty), 'row')} with an empty text in column {column!r}: "
            f"{table.place(empty)}; fill in or remove"
        )
    wrong = [index for index, value in enumerate(values) if not isinstance(value, str)]
    if wrong:
        raise DataError(
            f"{table.name}: expected text in column {column!r}, received {values[wrong[0]]!r:.60} in "
            f"{table.place(wrong)}; columns: {words(table.columns)}; name the column of texts with --text"
        )
    return [str(value) for value in values]
