"""What is right under churn: the versions that an answer may name, the replies that a request may get.

Every change of an adapter is written into its journal before it begins, and ended there when the server is
known to have followed. A change takes effect at some moment in between. So a version may have been served
during a request if its change began before the answer came, and the next change ended after it was asked.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from churn_adapters import Answers

TOLERANCE = 1e-4


@dataclass
class Change:
    """One change of what is served under an id."""

    version: str | None
    """From now on; None: the adapter is away."""
    began: float = -math.inf
    """Seconds on the clock of the requests, before anything was done."""
    ended: float = math.inf
    """When the server was known to serve it."""


@dataclass(frozen=True)
class Row:
    """One prediction of a reply."""

    id: str
    version: str
    probe: int
    """Number of the text among the probes."""
    values: tuple[float, ...]
    """Of each label in the adapter's order; of a regression its value."""


def may_be_served(journal: Sequence[Change], asked: float, answered: float) -> set[str | None]:
    """The versions that may have been served at some moment between two; None: that it was away.

    Args:
        journal: all changes of one id so far, the first one from the start.
        asked: when the request was sent.
        answered: when its reply was there.

    Example:
        >>> journal = [Change("a"), Change("b", 2.0, 3.0)]
        >>> [sorted(may_be_served(journal, t, t + 0.5)) for t in (1.0, 2.2, 3.2)]
        [['a'], ['a', 'b'], ['b']]
    """
    changes = list(journal)
    ends = [change.ended for change in changes[1:]] + [math.inf]
    return {c.version for c, end in zip(changes, ends, strict=True) if c.began <= answered and end >= asked}


def right_statuses(
    ids: Sequence[str], may_use: Callable[[str], bool], served: Callable[[str], Collection[str | None]]
) -> set[int]:
    """The statuses that a request for these ids may get.

    Args:
        ids: in the order of the request, in which the server looks at them.
        may_use: whether the key that asks may use an id.
        served: versions of an id that may have been served meanwhile, with None if it may have been away.

    Example:
        >>> right_statuses(["red-1", "blue-1"], lambda id: id.startswith("red"), lambda id: {"a"})
        {403}
    """
    found: set[int] = set()
    for id in ids:
        if not may_use(id):
            return found | {403}
        versions = served(id)
        if None in versions:
            found.add(404)
            if len(versions) == 1:
                return found
    return found | {200}


def wrong_rows(
    rows: Sequence[Row],
    wanted: Collection[tuple[str, int]],
    answers: Mapping[tuple[str, str], Answers],
    served: Callable[[str], Collection[str | None]],
) -> tuple[list[str], float]:
    """A line for everything that is not right in the rows of an answer, and the largest difference.

    Args:
        rows: of the reply.
        wanted: (id, probe) that were asked for.
        answers: (id, version) -> what it says of each probe offline.
        served: versions of an id that may have been served meanwhile.

    Example:
        >>> answers = {("a", "1"): np.array([[0.1, 0.9]]), ("b", "2"): np.array([[0.8, 0.2]])}
        >>> wrong_rows([Row("a", "1", 0, (0.8, 0.2))], [("a", 0)], answers, lambda id: {"1"})[0]
        ['a 1, probe 0: expected [0.1, 0.9], received (0.8, 0.2)']
    """
    problems, largest = list[str](), 0.0
    if sorted((row.id, row.probe) for row in rows) != sorted(wanted):
        problems.append(f"expected rows {sorted(wanted)}, received {sorted((r.id, r.probe) for r in rows)}")
    for row in rows:
        expected = answers.get((row.id, row.version))
        if expected is None or row.version not in served(row.id):
            what = "is no version of it" if expected is None else "was not served then"
            problems.append(f"{row.id} {row.version}, probe {row.probe}: {what}")
            continue
        same = len(row.values) == expected.shape[1]
        apart = float(np.abs(expected[row.probe] - np.array(row.values)).max()) if same else math.inf
        largest = max(largest, apart)
        if not apart <= TOLERANCE:
            told = [round(float(value), 6) for value in expected[row.probe]]
            problems.append(
                f"{row.id} {row.version}, probe {row.probe}: expected {told}, received {row.values}"
            )
    return problems, largest


def rows_of_classify(body: dict[str, Any], probes: Sequence[int]) -> list[Row]:
    """The rows of a reply in vLLM's shape.

    Args:
        body: of the reply.
        probes: number of each text of the request.
    """
    return [
        Row(row["model"], row["version"], probes[row["index"]], tuple(row["probs"] or [row["value"]]))
        for row in body["data"]
    ]


def rows_of_predict(
    body: list[list[dict[str, Any]]], id: str, version: str, probes: Sequence[int], labels: Sequence[str]
) -> list[Row]:
    """The rows of a reply in TEI's shape, which lists labels by probability.

    Args:
        body: of the reply.
        id: that was asked.
        version: from the reply's header.
        probes: number of each text of the request.
        labels: of the adapter, in its order.
    """
    found: list[Row] = []
    for probe, scores in zip(probes, body, strict=True):
        of_label = {score["label"]: score["score"] for score in scores}
        found.append(Row(id, version, probe, tuple(of_label[label] for label in labels)))
    return found
