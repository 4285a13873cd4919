"""Labels: what is inferred, what is refused, how tables become examples, and how they are split."""

from pathlib import Path
from typing import Any

import pytest

from hadamard_adapter.errors import DataError, SettingsError
from hadamard_adapter.tasks import (
    Columns,
    Examples,
    Table,
    Task,
    data_fingerprint,
    describe_task,
    encode,
    encode_texts,
    infer_task,
    read_table,
    stratified_split,
)

COLUMNS = Columns("text", None, "label")
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
MOOD = Task("mood", SINGLE, ("bad", "good"), ("accuracy",))


def table_with(labels: list[Any], texts: list[Any] | None = None) -> Table:
    texts = texts or [f"text {index}" for index in range(len(labels))]
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    return Table("train.csv", ("text", "label"), rows, list(range(2, len(rows) + 2)))


INFERRED = {
    "words": (["pos", "neg", " pos "], SINGLE, ("neg", "pos")),
    "zero and one": (["1", "0", "1"], SINGLE, ("0", "1")),
    "numbers by size": (["10", "9", "2"], SINGLE, ("2", "9", "10")),
    "typed integers": ([1, 0, 2], SINGLE, ("0", "1", "2")),
    "integers that Parquet made floats": ([1.0, 0.0], SINGLE, ("0", "1")),
    "truth values": ([True, False], SINGLE, ("false", "true")),
    "commas in single labels": (["Bonn, DE", "Rome, IT"], SINGLE, ("Bonn, DE", "Rome, IT")),
    "numbers and words": (["1", "2", "n/a"], SINGLE, ("1", "2", "n/a")),
    "numbers with points among words": (["1.5", "none"], SINGLE, ("1.5", "none")),
    "what looks like a huge number among words": (["ab", "cd", "12e456"], SINGLE, ("12e456", "ab", "cd")),
    "nan among words": (["naan", "nan"], SINGLE, ("naan", "nan")),
    "sets of 0 and 1": ([[0], [1], [0, 1]], MULTI, ("0", "1")),
    "underscored": (["1_0", "1_1"], SINGLE, ("1_0", "1_1")),
    "many integer classes": ([str(index % 30) for index in range(300)], SINGLE, tuple(map(str, range(30)))),
    "fractions": (["5.000", "3.75"], REGRESSION, ()),
    "dense integers": ([str(index) for index in range(50)], REGRESSION, ()),
    "bars": (["a|b", "a", "c | b"], MULTI, ("a", "b", "c")),
    "lists": ([["a", "b"], [], ["c"]], MULTI, ("a", "b", "c")),
}


@pytest.mark.parametrize("case", INFERRED)
def test_the_kind_and_the_names_are_inferred(case: str) -> None:
    labels, kind, names = INFERRED[case]
    task = infer_task(table_with(labels), COLUMNS)
    assert (task.problem_type, task.label_names) == (kind, names)
    assert "\n" not in describe_task(task)


def test_each_kind_can_be_forced() -> None:
    assert infer_task(table_with(["1", "2"]), COLUMNS, REGRESSION).problem_type == REGRESSION
    assert infer_task(table_with(["a|b", "c"]), COLUMNS, SINGLE).label_names == ("a|b", "c")
    forced = infer_task(table_with(["a, b", "c"]), COLUMNS, MULTI, threshold=0.3)
    assert (forced.label_names, forced.separator, forced.threshold) == (("a", "b", "c"), ",", 0.3)


def test_several_labels_stand_at_bars_unless_the_rows_have_commas() -> None:
    for labels, separator in (([["a", "b"], []], "|"), (["a|b", "c,d"], "|"), (["a,b", "c"], ",")):
        assert infer_task(table_with(labels), COLUMNS, MULTI).separator == separator


def test_the_chosen_metric_comes_first_and_must_fit() -> None:
    assert infer_task(table_with(["a", "b"]), COLUMNS, metric="f1").metrics == ("f1", "accuracy", "macro-f1")
    with pytest.raises(
        SettingsError, match=r"'f1' needs exactly two classes, these are 3; expected one of accuracy, macro"
    ):
        infer_task(table_with(["a", "b", "c"]), COLUMNS, metric="f1")
    with pytest.raises(SettingsError, match="'accuracy' does not fit regression; expected one of pearson"):
        infer_task(table_with(["1.5", "2.5"]), COLUMNS, metric="accuracy")
    with pytest.raises(SettingsError, match="'acuracy' is not known"):
        infer_task(table_with(["a", "b"]), COLUMNS, metric="acuracy")
    with pytest.raises(SettingsError, match="problem type among"):
        infer_task(table_with(["a", "b"]), COLUMNS, "binary")
    with pytest.raises(SettingsError, match=r"threshold between 0 and 1, received 1.5"):
        infer_task(table_with(["a", "b"]), COLUMNS, threshold=1.5)


REFUSED = {
    "one class": (["a", "a"], None, "only one class, 'a'"),
    "one number": (["1.5", "1.5"], None, "every label in column 'label' is 1.5"),
    "missing": (["a", "", "b", None], None, "2 rows without a label in column 'label': lines 3, 5"),
    "nan from Parquet": ([0.5, float("nan")], None, "1 row without a label in column 'label': line 3"),
    "words for numbers": (["1", "two"], REGRESSION, "received 'two' in line 3"),
    "nan among fractions": (["1.5", "nan", "2"], None, "1 row without a label in column 'label': line 3"),
    "nan among classes": (["0", "1", "NaN"], None, "1 row without a label in column 'label': line 4"),
    "indicator vectors": (
        [[1, 0], [0, 1]],
        None,
        "look like vectors of 0 and 1 ([1, 0]); expected the names",
    ),
    "truth vectors": ([[True, False], [False, True]], None, "look like vectors of 0 and 1"),
    "an object": ([{"a": 1}, {"b": 1}], None, "received {'a': 1} in lines 2, 3; write the names"),
    "a list of objects": ([["a"], [{"a": 1}]], None, "received [{'a': 1}] in line 3; write the names"),
    "a list of lists": ([["a"], [["a", "b"]]], MULTI, "received [['a', 'b']] in line 3"),
    "infinity": (["1.5", "-inf", "2"], REGRESSION, "received '-inf' in line 3"),
    "numbers for classes": (["1", "3.75"], SINGLE, "a number that is not whole, '3.75', in line 3"),
    "a list for a class": ([["a", "b"], ["a"]], SINGLE, "received a list of labels"),
    "numbers with a slip": (["1.5", "2.5", "3.5", "4.5", "5.5", "o.5"], None, "except in line 7 ('o.5')"),
    "a label a row": (
        [f"note {index}" for index in range(12)],
        None,
        "each of the 12 rows has a label of its own",
    ),
    "a list as text": (["['a', 'b']", "['a']"], None, "look like lists written as text"),
    "a label twice": ([["a", "b", "a"], ["b"]], None, "names a label twice"),
    "one multi-label": ([["a"], []], None, "at least two labels in column 'label', received a"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_labels_that_cannot_be_learned_are_refused_with_their_rows(case: str) -> None:
    labels, kind, expected = REFUSED[case]
    with pytest.raises(DataError) as caught:
        infer_task(table_with(labels), COLUMNS, kind)
    assert expected in str(caught.value)
    assert str(caught.value).startswith("train.csv: ")


def test_at_most_ten_rows_are_listed() -> None:
    with pytest.raises(DataError, match=r"lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, … \(30 in all\)"):
        infer_task(table_with([""] * 30), COLUMNS)


ENCODED = [
    (MOOD, ["good", " bad", "good"], [1, 0, 1]),
    (Task("x", SINGLE, ("0", "1"), ("accuracy",)), ["1", 0, 1.0], [1, 0, 1]),
    (Task("x", SINGLE, ("0.0", "1.0"), ("accuracy",)), ["1", 0, "1.0", 1.0], [1, 0, 1, 1]),
    (Task("x", SINGLE, ("False", "True"), ("accuracy",)), [True, "false"], [1, 0]),
    (Task("x", SINGLE, ("1", "1.0"), ("accuracy",)), ["1", "1.0"], [0, 1]),
    (Task("x", REGRESSION, (), ("pearson",)), ["0.1", 2, "1e3"], [0.1, 2.0, 1000.0]),
    (Task("x", MULTI, ("a", "b"), ("micro-f1",)), ["a|b", ["b"], "|"], [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]),
    (Task("x", MULTI, ("a, b", "c"), ("micro-f1",), separator=","), ["a, b", "c"], [[1.0, 0.0], [0.0, 1.0]]),
]


@pytest.mark.parametrize(("task", "labels", "expected"), ENCODED)
def test_labels_become_numbers(task: Task, labels: list[Any], expected: list[Any]) -> None:
    assert encode(table_with(labels), COLUMNS, task).labels == expected


def test_a_dev_label_that_training_lacks_is_refused_with_its_rows() -> None:
    with pytest.raises(
        DataError, match=r"does not know: 'goood' in lines 3, 4; known: bad, good; did you mean 'good'\?"
    ):
        encode(table_with(["good", "goood", "goood"]), COLUMNS, MOOD)
    with pytest.raises(DataError, match="does not know: 'z' in line 2; known: a, b"):
        encode(table_with([["a", "z"]]), COLUMNS, Task("x", MULTI, ("a", "b"), ("micro-f1",)))


def test_whole_numbers_that_floats_take_for_one_are_two_labels() -> None:
    task = Task("x", SINGLE, ("1", "9007199254740993"), ("accuracy",))
    assert encode(table_with(["9007199254740993", "1.0"]), COLUMNS, task).labels == [1, 0]
    for label in ("9007199254740992", "1e99999999999999999999"):
        with pytest.raises(DataError, match=f"does not know: '{label}'"):
            encode(table_with([label]), COLUMNS, task)


def test_a_label_that_could_be_two_of_training_is_none_of_them() -> None:
    with pytest.raises(DataError, match=r"does not know: '1\.00'"):
        encode(table_with(["1.00"]), COLUMNS, Task("x", SINGLE, ("1", "1.0"), ("accuracy",)))


def test_empty_texts_and_texts_that_are_none_are_refused() -> None:
    with pytest.raises(
        DataError, match="2 rows with an empty text in column 'text': lines 3, 4; fill in or remove"
    ):
        encode(table_with(["good"] * 3, ["a", " ", None]), COLUMNS, MOOD)
    with pytest.raises(DataError, match="expected text in column 'text', received 7 in line 2"):
        encode(table_with(["good"], [7]), COLUMNS, MOOD)
    with pytest.raises(DataError, match="empty text in column 'label'"):
        encode_texts(table_with(["good", ""]), Columns("text", "label"))


def test_prediction_needs_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("text,pair\na,b\nc,d\n")
    assert encode_texts(read_table(str(path)), Columns("text", "pair")) == Examples(["a", "c"], ["b", "d"])
    assert encode(read_table(str(path)), Columns("text"), MOOD).labels is None


def test_a_split_is_seeded_disjoint_complete_and_keeps_the_shares() -> None:
    examples = Examples(
        [str(index) for index in range(100)], None, [int(index % 5 == 0) for index in range(100)]
    )
    train, dev = stratified_split(examples, MOOD, 0.2, 7)
    assert (len(train), len(dev), sum(dev.labels or [])) == (80, 20, 4)
    assert sorted(train.texts + dev.texts, key=int) == examples.texts
    assert stratified_split(examples, MOOD, 0.2, 7) == (train, dev)
    assert stratified_split(examples, MOOD, 0.2, 8) != (train, dev)


def test_a_class_with_one_row_stays_in_train() -> None:
    task = Task("x", SINGLE, ("a", "b", "rare"), ("accuracy",))
    train, dev = stratified_split(Examples(list("abcdefghi"), None, [0, 1] * 4 + [2]), task, 0.25, 0)
    assert 2 in (train.labels or [])
    assert 2 not in (dev.labels or [])


def test_regression_and_pairs_are_split_too() -> None:
    examples = Examples(list("abcd"), list("efgh"), [0.1, 0.2, 0.3, 0.4])
    train, dev = stratified_split(examples, Task("x", REGRESSION, (), ("pearson",)), 0.25, 0)
    assert (len(train), len(dev)) == (3, 1)
    position = examples.texts.index(dev.texts[0])
    assert (dev.pairs, dev.labels) == ([list("efgh")[position]], [[0.1, 0.2, 0.3, 0.4][position]])


def test_too_few_rows_for_a_split_are_refused() -> None:
    with pytest.raises(DataError, match="2 rows are too few to split off a dev part"):
        stratified_split(Examples(["a", "b"], None, [0, 1]), MOOD, 0.5, 0)
    with pytest.raises(SettingsError, match=r"fraction between 0 and 1, received 1\.0"):
        stratified_split(Examples(["a", "b"], None, [0, 1]), MOOD, 1.0, 0)
    with pytest.raises(SettingsError, match=r"fraction between 0 and 1, received 0"):
        stratified_split(Examples(["a", "b"], None, [0, 1]), MOOD, 0, 0)
    with pytest.raises(DataError, match="too few"):
        stratified_split(Examples(list("abcd"), None, [0, 1, 0, 1]), MOOD, 3, 0)


def test_the_fingerprint_sees_texts_pairs_labels_and_their_order() -> None:
    base = Examples(["a", "b"], ["c", "d"], [0, 1])
    others = [
        Examples(["a", "B"], ["c", "d"], [0, 1]),
        Examples(["a", "b"], ["c", "e"], [0, 1]),
        Examples(["a", "b"], ["c", "d"], [1, 0]),
        Examples(["b", "a"], ["d", "c"], [1, 0]),
        Examples(["a", "b"], None, [0, 1]),
    ]
    prints = {data_fingerprint(examples) for examples in [base, *others]}
    assert len(prints) == 6
    assert all(len(found) == 64 for found in prints)


@pytest.mark.parametrize("hole", [None, "", float("nan")])
def test_a_hole_in_a_list_of_labels_is_told(hole: Any) -> None:
    with pytest.raises(DataError, match=r"1 row without a label.*line 3"):
        infer_task(table_with([["a"], ["a", hole], ["b"]]), COLUMNS)
