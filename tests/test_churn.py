"""The checks that churn.py and onnx_engine.py of benchmarks make: they see what is wrong, and only that."""

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from churn_adapters import TUNED, caught_share, distance, nearest
from churn_check import (
    Change,
    Row,
    may_be_served,
    right_statuses,
    rows_of_classify,
    rows_of_predict,
    wrong_rows,
)
from onnx_engine import differences

A, B, THREE = np.array([[0.1, 0.9], [0.6, 0.4]]), np.array([[0.1, 0.9], [0.3, 0.7]]), np.full((2, 3), 1 / 3)
ANSWERS = {("a", "1"): A, ("b", "2"): B}
SERVED = {"a": {"1"}, "b": {"2"}}.__getitem__
RIGHT = [Row("a", "1", 1, (0.6, 0.4)), Row("b", "2", 1, (0.3, 0.7))]
WANTED = [("a", 1), ("b", 1)]


def test_adapters_are_as_far_apart_as_their_largest_difference() -> None:
    assert distance(A, A) == 0 and distance(A, B) == pytest.approx(0.3)
    assert distance(A, THREE) == math.inf == nearest(A, [THREE]) == nearest(A, [])
    assert nearest(A, [THREE, B, A + 0.2]) == pytest.approx(0.2)
    assert caught_share([A, B, THREE], 1e-4) == 0.5, "the two of a kind differ on one of two probes"


def test_what_is_right_is_found_right() -> None:
    assert wrong_rows(RIGHT, WANTED, ANSWERS, SERVED) == ([], 0.0)
    near = [dataclasses.replace(RIGHT[0], values=(0.60009, 0.4)), RIGHT[1]]
    problems, largest = wrong_rows(near, WANTED, ANSWERS, SERVED)
    assert problems == [] and largest == pytest.approx(9e-5)


@pytest.mark.parametrize(
    ("rows", "n_problems"),
    [
        pytest.param([dataclasses.replace(RIGHT[0], values=(0.3, 0.7)), RIGHT[1]], 1, id="another's values"),
        pytest.param([dataclasses.replace(RIGHT[0], values=(0.6,)), RIGHT[1]], 1, id="too few values"),
        pytest.param([dataclasses.replace(RIGHT[0], values=(0.6, math.nan)), RIGHT[1]], 1, id="no number"),
        pytest.param([dataclasses.replace(RIGHT[0], version="2"), RIGHT[1]], 1, id="no version of it"),
        pytest.param([RIGHT[0], dataclasses.replace(RIGHT[1], probe=0, values=(0.1, 0.9))], 1, id="text"),
        pytest.param([RIGHT[0]], 1, id="a row is lost"),
        pytest.param([*RIGHT, RIGHT[0]], 1, id="a row is there twice"),
        pytest.param(
            [
                dataclasses.replace(row, values=other.values)
                for row, other in zip(RIGHT, RIGHT[::-1], strict=True)
            ],
            2,
            id="crossed",
        ),
    ],
)
def test_what_is_wrong_is_found(rows: list[Row], n_problems: int) -> None:
    assert len(wrong_rows(rows, WANTED, ANSWERS, SERVED)[0]) == n_problems


def test_a_version_that_was_not_served_then_is_wrong() -> None:
    problems, _ = wrong_rows(RIGHT[:1], WANTED[:1], ANSWERS, lambda id: {"2", None})
    assert problems == ["a 1, probe 1: was not served then"]


@pytest.mark.parametrize(
    ("asked", "answered", "expected"),
    [
        (0.0, 0.5, {"a"}),
        (0.0, 1.5, {"a", None}),  # it may have gone before the answer
        (1.9, 1.95, {"a", None}),  # it goes from 1 to 2
        (2.5, 2.6, {None}),
        (2.5, 3.5, {None, "b"}),
        (9.0, 9.5, {None, "b"}),  # the change that began at 3 has not ended
    ],
)
def test_versions_may_be_served_between_two_moments(
    asked: float, answered: float, expected: set[str | None]
) -> None:
    journal = [Change("a", ended=-math.inf), Change(None, 1.0, 2.0), Change("b", 3.0)]
    assert may_be_served(journal, asked, answered) == expected


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["red-1"], {200}),
        (["blue-1"], {403}),
        (["red-1", "blue-1"], {403}),
        (["red-maybe"], {200, 404}),
        (["red-away"], {404}),
        (["red-away", "blue-1"], {404}),
        (["red-maybe", "blue-1"], {404, 403}),
        (["blue-1", "red-away"], {403}),
    ],
)
def test_another_owners_adapter_is_never_answered(ids: list[str], expected: set[int]) -> None:
    served = {"red-1": {"1"}, "blue-1": {"1"}, "red-maybe": {"1", None}, "red-away": {None}}
    assert right_statuses(ids, lambda id: id.startswith("red"), served.__getitem__) == expected


def test_both_shapes_of_reply_give_the_same_rows() -> None:
    row = {"model": "a", "version": "1", "index": 0, "probs": [0.6, 0.4], "value": None}
    scores = [{"label": "no", "score": 0.4}, {"label": "yes", "score": 0.6}]
    assert (
        rows_of_classify({"data": [row]}, [1]) == RIGHT[:1]
        == rows_of_predict([scores], "a", "1", [1], ["yes", "no"])
    )  # fmt: skip
    assert rows_of_classify({"data": [row | {"probs": [], "value": 2.5}]}, [0])[0].values == (2.5,)


def test_twenty_adapters_are_tuned_from_many_sources() -> None:
    assert len({tuned.name for tuned in TUNED}) == 20 and len({tuned.source for tuned in TUNED}) >= 10


def test_differences_count_other_labels() -> None:
    found = differences(A, B)
    assert found["other_label"] == 0.5 and found["largest"] == pytest.approx(0.3)
    assert found["mean"] == pytest.approx(0.15)
