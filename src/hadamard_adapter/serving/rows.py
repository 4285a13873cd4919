"""The two ends of a batch's rows: from texts to the model's inputs, and from logits to predictions."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float32

from hadamard_adapter.errors import SettingsError
from hadamard_adapter.serving.source import BankAdapter
from hadamard_adapter.tuning.classifier import Prediction, read_logits
from hadamard_adapter.tuning.models import quiet_libraries, tokenize

__all__ = ["Text", "encode_rows", "longest_text", "read_rows"]

Text: TypeAlias = str | tuple[int, ...]
"""A text, or the token ids of one, special ones included."""


def encode_rows(
    tokenizer: Any,
    limit: int | None,
    texts: Sequence[Text],
    adapters: Sequence[BankAdapter],
    pairs: Sequence[str | None] | None,
    n_words: int | None = None,
) -> list[dict[str, Any]]:
    """Model inputs of each row, cut as in the training of its adapter; equal rows are tokenised once.

    Token ids are taken as they are, and as one text.

    Args:
        tokenizer: of the base model.
        limit: tokens that the base model takes at most; None: not known.
        texts: one a row.
        adapters: of each row.
        pairs: the second text of each row, None where its adapter takes one text.
        n_words: token ids that both tokenizer and base model know, counted from 0; None: the tokenizer's.

    Raises:
        SettingsError: not as many of each, a second text missing or too many, ids that are no tokens or more
            than the adapter's longest text has.

    Example:
        >>> encode_rows(None, None, [], [], None)
        []
    """
    seconds = [None] * len(texts) if pairs is None else list(pairs)
    if not len(texts) == len(adapters) == len(seconds):
        raise SettingsError(
            f"expected one id (and second text) a text, received {len(texts)} texts, {len(adapters)} ids "
            f"and {len(seconds)} second texts"
        )
    found: list[Any] = [None] * len(texts)
    groups: dict[tuple[int, bool], dict[tuple[str, str | None], list[int]]] = {}
    for row, (text, adapter, second) in enumerate(zip(texts, adapters, seconds, strict=True)):
        wants = adapter.has_pair
        if wants is not None and wants != (second is not None):
            raise SettingsError(
                f"text {row}: expected {'a second text' if wants else 'one text'}, as in the training of "
                f"its adapter, received {'none' if second is None else 'a second one'}"
            )
        longest = longest_text(adapter, limit)
        if isinstance(text, tuple):
            if second is not None:
                raise SettingsError(
                    f"text {row}: expected texts where there is a second one, received token ids of the first"
                )
            found[row] = _row_of_ids(row, text, tokenizer, n_words or len(tokenizer), longest)
            continue
        groups.setdefault((longest, second is not None), {}).setdefault((text, second), []).append(row)
    with quiet_libraries():
        for (longest, has_pair), rows_of in groups.items():
            second_texts = [str(second) for _, second in rows_of] if has_pair else None
            tokens = tokenize(tokenizer, [text for text, _ in rows_of], second_texts, longest)
            for rows, one in zip(rows_of.values(), tokens.rows, strict=True):
                for row in rows:
                    found[row] = one
    return found


def longest_text(adapter: BankAdapter, limit: int | None) -> int:
    """Tokens after which a text is cut for an adapter."""
    return min(adapter.max_length, limit or adapter.max_length)


def _row_of_ids(row: int, ids: tuple[int, ...], tokenizer: Any, n_words: int, longest: int) -> dict[str, Any]:
    if not 0 < len(ids) <= longest or not all(0 <= id < n_words for id in ids):
        raise SettingsError(
            f"text {row}: expected 1 to {longest} token ids from 0 to {n_words - 1}, received "
            f"{len(ids)} from {min(ids, default=0)} to {max(ids, default=0)}; /tokenize gives those of a text"
        )
    filled = {"input_ids": list(ids), "attention_mask": [1] * len(ids), "token_type_ids": [0] * len(ids)}
    return {name: filled[name] for name in tokenizer.model_input_names if name in filled}


def read_rows(
    adapters: Sequence[BankAdapter], logits: Sequence[Float32[np.ndarray, " _"]]
) -> list[Prediction]:
    """One prediction a row, by the task of its adapter.

    Args:
        adapters: of each row.
        logits: of each row; what stands behind its adapter's outputs is not read.

    Example:
        >>> read_rows([], [])
        []
    """
    rows_of: dict[int, list[int]] = {}
    for row, adapter in enumerate(adapters):
        rows_of.setdefault(id(adapter), []).append(row)
    predictions: list[Any] = [None] * len(adapters)
    for rows in rows_of.values():
        task = adapters[rows[0]].task
        values = np.stack([logits[row][: task.n_outputs] for row in rows])
        for row, prediction in zip(rows, read_logits(task, values), strict=True):
            predictions[row] = prediction
    return predictions
