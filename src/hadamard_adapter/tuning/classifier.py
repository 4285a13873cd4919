"""Use of a tuned adapter: load it with checks, and predict."""

import contextlib
import copy
import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from peft import get_peft_model

from hadamard_adapter.adapter import HadamardConfig
from hadamard_adapter.adapter.fingerprint import HASHED, fingerprint
from hadamard_adapter.errors import (
    AdapterError,
    DataError,
    HadamardError,
    SettingsError,
    is_out_of_memory,
    option,
    refuse_below,
)
from hadamard_adapter.files import expanded
from hadamard_adapter.offset_name import split
from hadamard_adapter.tasks import Columns, Table, Task, find_columns, predictions
from hadamard_adapter.tasks.reading import words
from hadamard_adapter.tuning.first_token import cut_last_layer
from hadamard_adapter.tuning.folder import read_config, read_run, task_of
from hadamard_adapter.tuning.models import (
    collator,
    load_base,
    load_tokenizer,
    pick_device,
    quiet_libraries,
    tokenize,
    usable_length,
)
from hadamard_adapter.tuning.precision import autocast, cast_frozen
from hadamard_adapter.tuning.probe import PROBES, to_device
from hadamard_adapter.tuning.weights import WEIGHTS, load_weights, read_weights

__all__ = ["Classifier", "Prediction", "largest_change", "load", "read_logits", "token_logits"]


@dataclass(frozen=True)
class Prediction:
    """What the classifier says about one text."""

    label: str | tuple[str, ...] | None
    """Name of the most probable label; multi-label: all from the threshold on; regression: None."""
    probabilities: dict[str, float] = field(default_factory=dict)
    """Name of each label -> its probability; empty for regression."""
    value: float | None = None
    """The predicted number, for regression."""


@dataclass(frozen=True)
class Classifier:
    """A base model with one tuned adapter, ready to predict; made by `load`."""

    task: Task
    """Kind of the task, names of its labels, threshold."""
    model: Any
    """The PEFT model, in evaluation mode; after `merged` a plain one."""
    tokenizer: Any
    """Of the base model."""
    max_length: int
    """Tokens after which a text is cut, as in training."""
    columns: Columns | None
    """Names of the columns in training, if known."""
    folder: Path
    """Where the adapter was read."""
    dtype: str = "float32"
    """Type of the products that it computes: float32, or bfloat16 after `halved`."""

    def predict(
        self, texts: list[str], pairs: list[str] | None = None, batch_size: int = 32
    ) -> list[Prediction]:
        """One prediction per text, in the order of the texts.

        Args:
            texts: (first) texts.
            pairs: second texts, if the task has them.
            batch_size: rows at a time.

        Raises:
            SettingsError: as many pairs as texts are expected.

        Example:
            >>> load("out").predict(["a fine film"])[0].label  # doctest: +SKIP
            'positive'
        """
        return self.read(self.logits(texts, pairs, batch_size))

    def merged(self) -> "Classifier":
        """The same classifier, faster: its adapter folded into the weights, its last layer cut short.

        Predictions are the same up to rounding. An adapter that cannot be folded (a shift without a bias)
        stays beside the weights. The last layer computes only the first token where the head reads no other,
        so hidden states of the new model mean nothing at other positions. The model is changed in place: do
        not go on with this classifier.

        Example:
            >>> load("out").merged().predict(["a fine film"])[0].label  # doctest: +SKIP
            'positive'
        """
        model = self.model
        with quiet_libraries():
            with contextlib.suppress(AdapterError):
                model = model.merge_and_unload()
            model.eval().requires_grad_(False)
            rows = tokenize(self.tokenizer, [*PROBES], None, self.max_length).rows
            cut_last_layer(
                model, to_device(collator(self.tokenizer, self.task.problem_type)(rows), model.device)
            )
        return dataclasses.replace(self, model=model)

    def halved(
        self, texts: list[str], pairs: list[str] | None = None, batch_size: int = 32
    ) -> tuple["Classifier", float]:
        """The same classifier in bfloat16, and how far its probabilities are from those in float32.

        This classifier's model stays as it is, so the two are in memory together.

        Args:
            texts: to compare on; one at least.
            pairs: second texts, if the task has them.
            batch_size: rows at a time.

        Raises:
            SettingsError: as `logits`, the model's code does not compute in bfloat16, or there is no memory
                for a second model.

        Example:
            >>> half, difference = load("out").merged().halved(["a fine film"])  # doctest: +SKIP
            >>> difference < 1e-2  # doctest: +SKIP
            True
        """
        whole = self.logits(texts, pairs, batch_size)
        predictions(self.task, whole)  # what is wrong in float32 is no matter of bfloat16
        try:
            model = copy.deepcopy(self.model).requires_grad_(False)
            cast_frozen(model, "bfloat16")
            half = dataclasses.replace(self, model=model, dtype="bfloat16")
            return half, largest_change(self.task, whole, half.logits(texts, pairs, batch_size))
        except (RuntimeError, MemoryError) as error:
            reason = "whose code does not compute in bfloat16"
            if is_out_of_memory(error):
                reason = "of which a second one in bfloat16, to compare with, does not fit into memory"
            raise SettingsError(f"dtype: expected 'float32' for this model, {reason} ({error})") from error

    def read(self, logits: Float[np.ndarray, "b l"]) -> list[Prediction]:
        """One prediction per row of logits (b, l)."""
        return read_logits(self.task, logits)

    def logits(
        self, texts: list[str], pairs: list[str] | None = None, batch_size: int = 32
    ) -> Float32[np.ndarray, "b l"]:
        """Logits (b, l) as float32, in the order of the texts; short rows are computed with short ones.

        Raises:
            SettingsError: as many pairs as texts are expected, and none if training had none.
        """
        return self.logits_and_cuts(texts, pairs, batch_size)[0]

    def logits_and_cuts(
        self, texts: list[str], pairs: list[str] | None = None, batch_size: int = 32
    ) -> tuple[Float32[np.ndarray, "b l"], int]:
        """Logits as `logits` gives them, and the number of rows that were cut to `max_length` tokens.

        Raises:
            DataError: the tokenizer makes no token of a text.
            SettingsError: as many pairs as texts are expected, and none if training had none; a text in place
                of a list of them; batch_size below 1.
        """
        given: list[object] = [*texts, *(pairs or ())]
        if isinstance(texts, str) or not all(isinstance(text, str) for text in given):
            raise SettingsError(f"texts: expected a list of texts, received {texts!r:.60}")
        refuse_below("batch_size", batch_size, 1)
        if self.columns is not None and (pairs is None) != (self.columns.pair is None):
            expected = "no second texts" if self.columns.pair is None else "a second text for every text"
            received = "none" if pairs is None else f"{len(pairs)} second texts"
            raise SettingsError(
                f"pairs: expected {expected}, as in training, received {received}; "
                f"{'pass pairs=[...]' if pairs is None else 'leave pairs out'}"
            )
        if pairs is not None and len(pairs) != len(texts):
            raise SettingsError(
                f"pairs: expected {len(texts)} second texts, one per text, received {len(pairs)}"
            )
        with quiet_libraries():
            tokens = tokenize(self.tokenizer, texts, pairs, self.max_length)
            bare = [index for index, row in enumerate(tokens.rows) if not len(row["input_ids"])]
            if bare:  # a tokenizer that adds no tokens of its own
                raise DataError(
                    f"texts: expected one token or more in each, received {texts[bare[0]]!r:.60} at {bare[0]}"
                )
            logits = token_logits(self.task, self.model, self.tokenizer, tokens.rows, self.dtype, batch_size)
            return logits, tokens.n_truncated

    def columns_in(
        self,
        table: Table,
        text: str | None = None,
        pair: str | None = None,
        label: str | None = None,
        need_label: bool = False,
    ) -> Columns:
        """The columns of a table: those named, else those of the training if they are there, else the usual.

        There is a second text if, and only if, training had one.

        Raises:
            DataError: a column is not there, or the table has a second text where training had none.
            SettingsError: a second text is named where training had none.
        """
        known = self.columns
        if known is None:
            return find_columns(table, text, pair, label, need_label)
        there = {name for name in (known.text, known.pair, known.label) if name in table.columns}
        if known.pair is None and pair is not None:
            raise SettingsError(
                f"--pair {pair!r}: expected one text a row, as in training (column {known.text!r}), received "
                "a second one; leave --pair out"
            )
        # A text and its pair belong together: where one of training's is missing, both are found anew.
        has_pair = known.pair is None or known.pair in there or pair is not None
        text = known.text if text is None and known.text in there and has_pair else text
        pair = known.pair if pair is None and known.pair in there else pair
        if label is None and need_label and known.label in there - {text, pair}:
            label = known.label
        found = find_columns(table, text, pair, label, need_label)
        if (found.pair is None) != (known.pair is None):
            raise DataError(_other_number_of_texts(table, found, known))
        return found


@torch.inference_mode()
def token_logits(
    task: Task,
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    dtype: str = "float32",
    batch_size: int = 32,
) -> Float32[np.ndarray, "b l"]:
    """Logits of rows of tokens, in their order; rows of like length are computed together.

    Args:
        task: says how many outputs there are.
        model: in evaluation mode.
        tokenizer: pads a batch.
        rows: as `tokenize` makes them, with or without "labels".
        dtype: of the products.
        batch_size: rows at a time.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    collate = collator(tokenizer, task.problem_type)
    found = np.empty((len(rows), task.n_outputs), dtype=np.float32)
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        batch = to_device(collate([rows[i] for i in chosen]), model.device)
        batch.pop("labels", None)  # a model that is given them computes a loss too
        with autocast(model.device, dtype):
            found[chosen] = model(**batch).logits.float().cpu().numpy()
    return found


def largest_change(
    task: Task,
    before: Float32[np.ndarray, "b l"],
    after: Float32[np.ndarray, "b l"],
    spread: float = 0.0,
) -> float:
    """The largest difference of a probability between logits of the same rows.

    For regression it is that of a value, as a share of their range: of values that lie close together and far
    from 0 bfloat16 tells few apart.

    Args:
        task: kind of the outputs.
        before: logits; they give the unit of regression.
        after: logits of the same rows.
        spread: regression: the range of other rows' values.

    Example:
        >>> number = Task("stars", "regression", (), ("pearson",))
        >>> largest_change(number, np.float32([[9.0], [5.0]]), np.float32([[9.0], [6.0]]))
        0.25
    """
    is_value = task.problem_type == "regression"
    found = (predictions(task, logits) for logits in (before, after))
    first, second = (np.asarray(values if is_value else shares) for values, shares in found)
    difference = np.abs(second - first).max()
    return float(difference / max(np.ptp(first), spread, 1e-6) if is_value else difference)


def read_logits(task: Task, logits: Float[np.ndarray, "b l"]) -> list[Prediction]:
    """One prediction per row of logits.

    Args:
        task: kind, labels, threshold.
        logits: as many a row as the task has outputs.

    Example:
        >>> mood = Task("mood", "single_label_classification", ("bad", "good"), ("accuracy",))
        >>> read_logits(mood, np.array([[0.0, 2.0]]))[0].label
        'good'
    """
    if not len(logits):
        return []
    labels, probabilities = predictions(task, logits)
    if task.problem_type == "regression":
        return [Prediction(None, value=float(value)) for value in labels]
    return [
        Prediction(
            label if isinstance(label, str) else tuple(label), dict(zip(task.label_names, row, strict=True))
        )
        for label, row in zip(labels, probabilities.tolist(), strict=True)
    ]


def load(
    folder: str | Path, model: str | None = None, device: str | None = None, allow_remote_code: bool = False
) -> Classifier:
    """The classifier in a folder that `tune` made.

    Args:
        folder: of the adapter.
        model: the base model, where it is no longer where the adapter's config says.
        device: cpu, cuda or mps; None: the fastest that is there.
        allow_remote_code: whether code that comes with the base model may run.

    Raises:
        AdapterError: no Hadamard adapter there, a damaged or a pickle file, another base model, or none.
        SettingsError: no such device.

    Example:
        >>> load("out").predict(["a fine film"])[0].label  # doctest: +SKIP
        'positive'
    """
    place = pick_device(device)
    folder = expanded(folder)
    config = read_config(folder)
    run = read_run(folder)
    task = task_of(folder, config, run)
    read_weights(folder / WEIGHTS)  # a damaged file is told before the base model is loaded
    source = model if model is not None else config.base_model_name_or_path
    with quiet_libraries():
        tokenizer, base = _load_base(folder, source, task, model is None, allow_remote_code)
        _check_base(folder, config, base, str(source))
        config.inference_mode = True
        try:
            peft_model = get_peft_model(base, config)
        except (HadamardError, ValueError, KeyError, AttributeError, TypeError, re.error) as error:
            raise AdapterError(f"the adapter in {str(folder)!r} does not fit {source!r}: {error}") from error
        load_weights(peft_model, folder / WEIGHTS)
    max_length = run.max_length or usable_length(base, tokenizer)
    return Classifier(task, peft_model.eval().to(place), tokenizer, max_length, run.columns, folder)


def _other_number_of_texts(table: Table, found: Columns, known: Columns) -> str:
    if known.pair is not None:
        return (
            f"{table.name}: expected a second text a row, as in training (columns {known.text!r} and "
            f"{known.pair!r}), received only {found.text!r}; columns: {words(table.columns)}; name "
            "the second with --pair"
        )
    return (
        f"{table.name}: expected one text a row, as in training (column {known.text!r}), received what looks "
        f"like pairs ({found.text!r} and {found.pair!r}); name the one text with --text"
    )


def _load_base(
    folder: Path, source: str | None, task: Task, is_recorded: bool, allow_remote_code: bool
) -> tuple[Any, Any]:
    if not source:
        raise AdapterError(f"{str(folder)!r} does not say what its base model is; pass {option('model')}")
    try:
        own = (folder / "tokenizer_config.json").is_file()
        tokenizer = load_tokenizer(str(folder) if own else source, allow_remote_code, source)
        return tokenizer, load_base(source, task, tokenizer.pad_token_id, allow_remote_code)
    except HadamardError as error:
        hint = f"; it was there in training; if it has moved, pass {option('model')}" if is_recorded else ""
        raise AdapterError(f"base model of {str(folder)!r}: {error}{hint}") from error


def _check_base(folder: Path, config: HadamardConfig, base: torch.nn.Module, source: str) -> None:
    """Refuse a backbone with another fingerprint; say its width too where that differs."""
    if config.base_fingerprint is None:
        return
    found = fingerprint(base)
    if found == config.base_fingerprint:
        return
    widths = {len(t) for t in split(read_weights(folder / WEIGHTS))[0].values()}
    width = getattr(base.config, "hidden_size", None)
    other = f" (width {width}, the adapter's tensors: {sorted(widths)})" if width not in widths else ""
    raise AdapterError(
        f"the adapter in {str(folder)!r} belongs to another base model than {source!r}{other}: expected "
        f"fingerprint {config.base_fingerprint}, received {found} (a sha256 of {HASHED}); "
        f"pass the right one as {option('model')}"
    )
