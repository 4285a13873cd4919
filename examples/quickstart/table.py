"""Score the quickstart's five rows on the test file, print the table and write results.json.

Rows: majority class, TF-IDF with logistic regression, the frozen model with its tuned head (stage 1),
Hadamard (stage 2), and Hadamard merged into a plain transformers model. The test file is used here and by
`hadamard eval` only: every choice was made on dev before.

Command: python examples/quickstart/table.py --folder quickstart (about 1 minute on 2 cores)
Expected: TF-IDF about 0.81, stage 1 about 0.76, Hadamard about 0.85.
"""

import argparse
import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import safe_open
from scipy.stats import bootstrap

from baselines import Split, majority, tfidf

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_PREFIX = "hadamard_"
N_RESAMPLES = 9999
BATCH_SIZE = 32


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    """Key in results.json."""
    title: str
    """Name in the table."""
    predictions: list[str]
    """One label for each test sentence."""
    adapter_parameters: int
    """Numbers trained in the adapter and its norms."""
    head_parameters: int
    """Numbers trained in the classifier."""
    adapter_bytes: int
    """What the adapter's tensors take on disk."""
    head_bytes: int
    """What the classifier's tensors take on disk."""
    file_bytes: int
    """Size of the file that a user keeps (merged: the whole model)."""
    seconds: float
    """Time to train (merged: to merge)."""


def paired_interval(
    ours: Sequence[bool], theirs: Sequence[bool], seed: int = 0
) -> tuple[float, float, float]:
    """The difference of two accuracies on the same examples, with its 95 % paired bootstrap interval.

    Examples are resampled in pairs, so what is hard for both does not widen the interval.

    Args:
        ours: whether our prediction is right, one value for each example.
        theirs: the same for the other classifier, in the same order.
        seed: of the resampling.

    Returns:
        (difference, low, high), each in -1..1.

    Example:
        paired_interval([True, True, False], [True, False, False])
    """

    def difference(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return a.mean(axis=axis) - b.mean(axis=axis)

    samples = (np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float))
    interval = bootstrap(
        samples, difference, paired=True, method="percentile", n_resamples=N_RESAMPLES, batch=500,
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(difference(*samples)), float(interval.low), float(interval.high)


def baseline_rows(train: Split, dev: Split, test: Split) -> list[Row]:
    """The rows `majority` and `tfidf`; the coefficients of the regression count as its head."""
    common, linear = majority(train, test), tfidf(train, dev, test)
    return [
        Row("majority", "majority class", common.predictions, 0, 0, 0, 0, 0, common.seconds),
        Row(
            "tfidf", "TF-IDF + logistic regression", linear.predictions,
            0, linear.n_parameters, 0, linear.size_bytes, linear.size_bytes, linear.seconds,
        ),
    ]  # fmt: skip


def adapter_row(
    name: str, title: str, folder: Path, texts: list[str], seconds: float
) -> tuple[Row, np.ndarray]:
    """The row of an adapter folder, and its probabilities (b, l), classes in the order of their names."""
    from hadamard_adapter import load

    predicted = load(folder).predict(texts, batch_size=BATCH_SIZE)
    file = folder / ADAPTER_FILE
    n_adapter, adapter_bytes, n_head, head_bytes = _measure(file)
    row = Row(
        name, title, [prediction.label for prediction in predicted],
        n_adapter, n_head, adapter_bytes, head_bytes, file.stat().st_size, seconds,
    )  # fmt: skip
    return row, _by_class([dict(prediction.probabilities) for prediction in predicted])


def merged_row(folder: Path, texts: list[str], hadamard: Row, seconds: float) -> tuple[Row, np.ndarray]:
    """The row of the merged model, run as a plain transformers pipeline, and its probabilities (b, l)."""
    from transformers import pipeline
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    classify = pipeline(
        "text-classification", str(folder), top_k=None, batch_size=BATCH_SIZE, truncation=True
    )
    scores = [{entry["label"]: float(entry["score"]) for entry in scored} for scored in classify(texts)]
    labels = [max(score, key=lambda label: score[label]) for score in scores]
    size_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    row = Row(
        "merged", "Hadamard, merged into the model", labels,
        0, hadamard.head_parameters, 0, hadamard.head_bytes, size_bytes, seconds,
    )  # fmt: skip
    return row, _by_class(scores)


def score_rows(
    folder: Path, train: Split, dev: Split, test: Split, merge_seconds: float
) -> tuple[list[Row], float]:
    """All five rows in order, and the largest gap between the merged and the unmerged probabilities.

    Seconds of the Hadamard row are those of both stages, since the second needs the first. Stage 1 leaves the
    adapter at the identity (all offsets zero), so its row counts the head alone.
    """
    spent = json.loads((folder / "adapter" / "run.json").read_text(encoding="utf-8"))["seconds"]
    title = "frozen model, tuned head (stage 1)"
    head, _ = adapter_row("head", title, folder / "adapter" / "head", test.texts, spent["head"])
    head = replace(head, adapter_parameters=0, adapter_bytes=0, file_bytes=head.head_bytes)
    both = spent["head"] + spent["adapter"]
    hadamard, apart = adapter_row("hadamard", "Hadamard (stage 2)", folder / "adapter", test.texts, both)
    merged, together = merged_row(folder / "merged", test.texts, hadamard, merge_seconds)
    rows = [*baseline_rows(train, dev, test), head, hadamard, merged]
    return rows, float(np.abs(apart - together).max())


def format_table(rows: Sequence[Row], test: Split) -> str:
    """The table as text, one line for each row.

    Example:
        print(format_table(rows, test))
    """
    header = (
        "",
        "test accuracy",
        "adapter parameters",
        "head parameters",
        "adapter bytes",
        "head bytes",
        "file bytes",
        "seconds",
    )
    lines = [header, *(_cells(row, test) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def as_results(rows: Sequence[Row], test: Split) -> dict[str, dict[str, object]]:
    """The table as an object by row name, for results.json."""
    return {
        row.name: {
            "score": _accuracy(row, test),
            "adapter_parameters": row.adapter_parameters,
            "head_parameters": row.head_parameters,
            "bytes": row.file_bytes,
            "adapter_bytes": row.adapter_bytes,
            "head_bytes": row.head_bytes,
            "seconds": round(row.seconds, 2),
        }
        for row in rows
    }


def _read(path: Path) -> Split:
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return Split([row["text"] for row in rows], [row["label"] for row in rows])


def _measure(path: Path) -> tuple[int, int, int, int]:
    """Numbers and bytes of the adapter's tensors, then of the head's."""
    n_adapter, adapter_bytes, n_head, head_bytes = 0, 0, 0, 0
    with safe_open(path, "np") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - safe_open is no dict
            tensor = tensors.get_tensor(name)
            if ADAPTER_PREFIX in name:
                n_adapter, adapter_bytes = n_adapter + tensor.size, adapter_bytes + tensor.nbytes
            else:
                n_head, head_bytes = n_head + tensor.size, head_bytes + tensor.nbytes
    return n_adapter, adapter_bytes, n_head, head_bytes


def _by_class(scores: list[dict[str, float]]) -> np.ndarray:
    names = sorted(scores[0])
    return np.array([[score[name] for name in names] for score in scores])


def _correct(row: Row, test: Split) -> list[bool]:
    return [ours == label for ours, label in zip(row.predictions, test.labels, strict=True)]


def _accuracy(row: Row, test: Split) -> float:
    return float(np.mean(_correct(row, test)))


def _cells(row: Row, test: Split) -> tuple[str, ...]:
    numbers = (
        row.adapter_parameters, row.head_parameters, row.adapter_bytes, row.head_bytes, row.file_bytes,
    )  # fmt: skip
    return (row.title, f"{_accuracy(row, test):.4f}", *map("{:,}".format, numbers), f"{row.seconds:.1f}")


def _write_json(path: Path, content: object) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def main() -> None:
    """Score, print, write."""
    parser = argparse.ArgumentParser(description="Print the quickstart's table and write results.json.")
    parser.add_argument("--folder", type=Path, required=True, help="the quickstart's folder")
    parser.add_argument("--merge-seconds", type=float, default=0.0, help="what `hadamard merge` took")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    train, dev, test = (_read(folder / f"{name}.csv") for name in ("train", "dev", "test"))
    rows, gap = score_rows(folder, train, dev, test, arguments.merge_seconds)
    ours, theirs = _correct(rows[3], test), _correct(rows[1], test)
    difference, low, high = paired_interval(ours, theirs)
    results = as_results(rows, test)
    results["hadamard"]["minus_tfidf"] = {"difference": difference, "low": low, "high": high, "level": 0.95}
    results["merged"]["largest_probability_gap"] = gap
    _write_json(folder / "results.json", results)
    print(format_table(rows, test))
    print(
        f"Hadamard minus TF-IDF: {100 * difference:+.1f} points of accuracy on {len(ours):,} test sentences, "
        f"95 % interval {100 * low:+.1f} to {100 * high:+.1f} (paired bootstrap, {N_RESAMPLES:,} resamples)"
    )
    gain = _accuracy(rows[3], test) - _accuracy(rows[2], test)
    print(f"Hadamard minus its own stage 1: {100 * gain:+.1f} points")
    print(f"Merged and unmerged probabilities differ by at most {gap:.1e}")
    print(f"The same numbers: {folder / 'results.json'}")


if __name__ == "__main__":
    main()
