"""The rows of a run: read, split, encoded, and told apart by a fingerprint."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hadamard_adapter.errors import SettingsError
from hadamard_adapter.tasks import (
    Columns,
    Examples,
    Task,
    choose_metrics,
    data_fingerprint,
    encode,
    find_columns,
    infer_task,
    load_glue,
    read_table,
    shared_texts,
    stratified_split,
)
from hadamard_adapter.tasks.labels import alike_names
from hadamard_adapter.tasks.reading import plural, words
from hadamard_adapter.tuning.content import base_content
from hadamard_adapter.tuning.settings import TuneSettings
from hadamard_adapter.tuning.shared import shared_content

__all__ = ["TuneData", "key_without_content", "read_data", "run_key"]

_NOT_IN_KEY = (
    *("output", "overwrite", "quiet", "allow_remote_code", "start", "basis"),
    # What these led to is in the key instead: the same rows under another name are the same run.
    *("train", "dev", "data", "train_split", "dev_split", "text", "pair", "label", "quoting", "delimiter"),
)

_LEFT_OUT_AT_DEFAULT = {"group_by_length": True, "shuffle_groups": False, "micro_batch_tokens": None}
"""Settings younger than runs and results that are there: as these were made, they are in no key."""

LARGE = 10.0
"""Mean or standard deviation of numbers to be learned from which on it is said that they are large. So is a
mean of as many standard deviations: half precision tells few numbers apart that lie close together."""


@dataclass(frozen=True)
class TuneData:
    """What a run trains on and what chooses the epoch."""

    task: Task
    """Kind, labels, metrics."""
    columns: Columns
    """Names of the columns, as the files spell them."""
    train: Examples
    """Training rows."""
    dev: Examples
    """Rows that choose the epoch."""
    dev_name: str
    """What the dev rows are, in a word or two."""
    how_split: str
    """One line for the user: how many rows, and where dev comes from."""
    notes: tuple[str, ...] = ()
    """A line for each thing about the rows that may mislead."""


def read_data(settings: TuneSettings) -> TuneData:
    """The task and its encoded rows; without dev rows a seeded, stratified part of train is set aside.

    Raises:
        DataError: a file or a row is not as it must be.
        SettingsError: no such GLUE task, or a threshold where there are no several labels a row.
    """
    task, columns, train, dev = _read_glue(settings) if settings.task else _read_tables(settings)
    if dev is None:
        train, dev = stratified_split(train, task, settings.dev_fraction, settings.seed)
        wanted, name = settings.dev_fraction, "rows set aside"
        found = len(dev.texts) / (len(train.texts) + len(dev.texts))
        share = f"{100 * wanted:g} %"
        if found > 1.5 * wanted:
            share = f"{100 * found:.0f} %, where {share} would be less than a row of each class"
        stratified = ", stratified" if task.problem_type == "single_label_classification" else ""
        how = f"no dev file: {len(dev.texts)} rows ({share}) set aside{stratified}, seed {settings.seed}"
    else:
        name, how = "dev", f"{len(dev.texts)} dev rows choose the epoch"
    how = f"{len(train.texts)} training rows; {how}"
    return TuneData(task, columns, train, dev, name, how, tuple(_notes(task, train, dev)))


def run_key(settings: TuneSettings, data: TuneData, n_processes: int, content: str = "") -> dict[str, Any]:
    """What must be equal for two runs to end at the same adapter, as JSON would give it back, and more
    (`resume.is_same_run`).

    Args:
        settings: resolved.
        data: its rows.
        n_processes: processes that share the work; their number changes sums of gradients.
        content: "model_content" of another run's key with the same model; empty: the model is read for it.
    """
    key = key_without_content(settings, data, n_processes)
    content = content or base_content(settings.model) or "unknown"
    if content != "unknown":
        del key["model"]
    return {**key, "model_content": content}


def key_without_content(settings: TuneSettings, data: TuneData, n_processes: int) -> dict[str, Any]:
    """`run_key` but for what the base model's folder or name holds; nothing of the model is read."""
    key = {name: value for name, value in dataclasses.asdict(settings).items() if name not in _NOT_IN_KEY}
    key = {name: value for name, value in key.items() if (name, value) not in _LEFT_OUT_AT_DEFAULT.items()}
    rows = {"train_data": data_fingerprint(data.train), "dev_data": data_fingerprint(data.dev)}
    rows |= {"labels": data.task.label_names, "columns": dataclasses.asdict(data.columns)}
    shared = shared_content(settings.start, settings.basis)
    return json.loads(json.dumps({**key, **rows, **shared, "n_processes": n_processes}))


def _notes(task: Task, train: Examples, dev: Examples) -> Iterator[str]:
    shared = shared_texts(train, dev)
    if shared:
        yield f"{plural(shared, 'dev row')} with the text of a training row: dev scores are flattered"
    alike = alike_names(task.label_names)
    if alike is not None:
        yield f"labels {alike[0]!r} and {alike[1]!r} count as two: if they are one, write them alike"
    if task.problem_type == "single_label_classification":
        there = set(dev.labels or [])
        missing = [name for index, name in enumerate(task.label_names) if index not in there]
        if missing:
            yield f"no dev row of {words(missing, 5)}: dev scores do not tell how well that is learned"
    if task.problem_type == "regression":
        mean, sd = np.mean(train.labels or [0.0]), np.std(train.labels or [0.0])
        if max(abs(mean), sd) > LARGE or abs(mean) > LARGE * sd > 0:
            yield (
                f"labels have mean {mean:.4g} and sd {sd:.4g}; a head starts near 0 and may not get there: "
                "train on (label - mean) / sd, and turn predictions back"
            )


def _read_glue(settings: TuneSettings) -> tuple[Task, Columns, Examples, Examples | None]:
    task, train, dev = load_glue(str(settings.task), str(settings.data))
    if settings.metric is not None:
        chosen = choose_metrics(task.problem_type, len(task.label_names), settings.metric)
        task = dataclasses.replace(task, metrics=(*chosen[:1], *(m for m in task.metrics if m != chosen[0])))
    return task, Columns("text", "pair" if train.pairs is not None else None, "label"), train, dev


def _read_tables(settings: TuneSettings) -> tuple[Task, Columns, Examples, Examples | None]:
    table = read_table(
        str(settings.train),
        quoting=settings.quoting,
        delimiter=settings.delimiter,
        split=settings.train_split,
    )
    columns = find_columns(table, settings.text, settings.pair, settings.label)
    task = infer_task(table, columns, settings.problem_type, settings.metric, settings.threshold)
    if task.problem_type != "multi_label_classification" and settings.threshold != TuneSettings.threshold:
        raise SettingsError(
            f"threshold: expected none for {task.problem_type}, received {settings.threshold!r}; only "
            "several labels a row have one: leave it out"
        )
    train = encode(table, columns, task)
    if settings.dev is None and settings.dev_split is None:
        return task, columns, train, None
    source = settings.dev if settings.dev is not None else str(settings.train)
    dev_table = read_table(
        source, quoting=settings.quoting, delimiter=settings.delimiter, split=settings.dev_split
    )
    dev_columns = find_columns(dev_table, columns.text, columns.pair, columns.label)
    return task, columns, train, encode(dev_table, dev_columns, task)
