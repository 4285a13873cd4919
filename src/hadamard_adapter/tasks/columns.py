"""Which columns of a table hold the text, the second text of a pair, and the label."""

from dataclasses import dataclass

from ..errors import DataError, did_you_mean
from .reading import words
from .tables import Table

__all__ = ["Columns", "describe_columns", "find_columns"]

_TEXT_NAMES = (
    *("text", "sentence1", "question", "sentence", "question1", "premise", "review", "content", "comment"),
    *("tweet", "text1", "sentence_a", "body", "document", "utterance", "query"),
)
"""Usual names of the column of texts, the first that is there is taken."""
_PAIR_NAMES = {
    "text": ("text_pair", "text2", "pair"),
    "text1": ("text2",),
    "sentence": ("sentence2",),
    "sentence1": ("sentence2",),
    "sentence_a": ("sentence_b",),
    "question": ("sentence", "question2"),
    "question1": ("question2",),
    "premise": ("hypothesis",),
}
"""Name of the text to the usual names of its companion."""
_LABEL_NAMES = (
    *("label", "labels", "target", "score", "class", "category", "sentiment", "rating", "gold_label"),
    *("intent", "topic", "is_duplicate", "stars", "y"),
)
"""Usual names of the column of labels, the first that is there is taken."""


@dataclass(frozen=True)
class Columns:
    """Which columns hold the text, the second text of a pair, and the label: `Columns("text", None,
    "label")`."""

    text: str
    """The text, or the first text of a pair."""
    pair: str | None = None
    """The second text; None for single texts."""
    label: str | None = None
    """The label; None where there is none, as in prediction."""


def find_columns(
    table: Table,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    need_label: bool = True,
) -> Columns:
    """Return the columns of text, pair and label: those named, else those with usual names.

    Not named, the text is the first of _TEXT_NAMES in the table, else the only column of words; the pair is
    the usual companion of that text (sentence1 → sentence2) and only looked for where the text was not named
    either; the label is the first of _LABEL_NAMES, else the only other column.

    Args:
        table: the rows.
        text: name of the text column.
        pair: name of the column of second texts.
        label: name of the label column.
        need_label: False in prediction: the label is None unless named.

    Raises:
        DataError: a named column is not there, two of the three are one column, or nothing fits.

    Example:
        >>> find_columns(Table("x.csv", ("review", "stars"), [{"review": "good", "stars": "5"}], [2]))
        Columns(text='review', pair=None, label='stars')
    """
    for option, name in (("--text", text), ("--pair", pair), ("--label", label)):
        _check_column(table, option, name)
    by_lower = {name.lower(): name for name in reversed(table.columns)}
    chosen_label = label
    if chosen_label is None and need_label:
        chosen_label = next(
            (by_lower[n] for n in _LABEL_NAMES if n in by_lower and by_lower[n] not in (text, pair)), None
        )
    chosen_text = text or _default_text(table, by_lower, {pair, chosen_label})
    if pair is None and text is None:
        companions = _PAIR_NAMES.get(chosen_text.lower(), ())
        pair = next((by_lower[n] for n in companions if n in by_lower and by_lower[n] != chosen_label), None)
    if chosen_label is None and need_label:
        others = [name for name in table.columns if name not in (chosen_text, pair)]
        if len(others) != 1:
            raise DataError(
                f"{table.name}: no column with labels found; columns: {words(table.columns)}; name it with "
                f"--label"
            )
        chosen_label = others[0]
    _check_distinct(table, chosen_text, pair, chosen_label)
    return Columns(chosen_text, pair, chosen_label)


def describe_columns(columns: Columns) -> str:
    """One line for the user: what is read, and how to choose otherwise.

    Example:
        >>> describe_columns(Columns("question", None, "score"))
        "columns: text 'question', label 'score' (--text, --pair and --label choose others)"
    """
    named = (("text", columns.text), ("pair", columns.pair), ("label", columns.label))
    shown = ", ".join(f"{kind} {name!r}" for kind, name in named if name is not None)
    return f"columns: {shown} (--text, --pair and --label choose others)"


def _check_column(table: Table, option: str, name: str | None) -> None:
    if name is None or name in table.columns:
        return
    hint = did_you_mean(name, table.columns, cutoff=0.5, otherwise=";")
    raise DataError(
        f"{table.name}: no column {name!r}; columns found: {words(table.columns)}{hint} "
        f"name a column with {option} (the first line of a CSV or TSV file must hold the names)"
    )


def _check_distinct(table: Table, text: str, pair: str | None, label: str | None) -> None:
    for one, first, other, second in (
        ("--text", text, "--label", label),
        ("--pair", pair, "--label", label),
        ("--text", text, "--pair", pair),
    ):
        if first is not None and first == second:
            raise DataError(
                f"{table.name}: {one} and {other} are both {first!r}, expected two columns of "
                f"{words(table.columns)}"
            )


def _default_text(table: Table, by_lower: dict[str, str], taken: set[str | None]) -> str:
    usual = [by_lower[name] for name in _TEXT_NAMES if name in by_lower and by_lower[name] not in taken]
    if usual:
        return usual[0]
    wordy = [name for name in table.columns if name not in taken and _holds_words(table, name)]
    if len(wordy) == 1:
        return wordy[0]
    raise DataError(
        f"{table.name}: no column with texts found; columns: {words(table.columns)}; name it with --text "
        f"(the first line of a CSV or TSV file must hold the names)"
    )


def _holds_words(table: Table, name: str) -> bool:
    values = [row.get(name) for row in table.rows[:200]]
    return all(isinstance(value, str) for value in values) and any(
        any(letter.isalpha() for letter in str(value)) for value in values
    )
