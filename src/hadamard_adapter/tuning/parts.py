"""A batch in parts of like length or of few tokens: the gradient of the whole, less padding and memory."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hadamard_adapter.tuning.stage import Row

__all__ = ["like_length", "parts_of", "rows_to_evaluate"]

OVERHEAD_TOKENS = 80
"""What a forward and backward pass costs beside its tokens, in tokens: of MiniLM on one thread of an AMD EPYC
in bfloat16 11 ms a pass, 0.14 ms a token (docs/log.md of 2026-11-27); fewer of larger models."""
_FEWEST = 10**9
"""An overhead for which the cheapest parts are the fewest that fit."""


def like_length(lengths: Sequence[int], overhead: int, most: int | None = None) -> list[list[int]]:
    """Rows, by index, in the parts that cost least; the longest rows are in the first.

    A part of n rows, the longest of l tokens, costs n l + overhead. With rows in the order of their length
    l_1 ≥ l_2 ≥ ..., and C_0 = 0, the least cost of the first j is

        C_j = min over i < j of C_i + (j - i) l_{i+1} + overhead

    With `most` only over those i whose part has at most so many tokens, (j - i) l_{i+1}, or one row.

    Args:
        lengths: tokens of each row.
        overhead: of a part, in tokens.
        most: tokens of a part, padding included; None: any number.

    Example:
        >>> like_length([3, 50, 4, 48], overhead=10), like_length([3, 50, 4, 48], overhead=200)
        ([[1, 3], [2, 0]], [[1, 3, 2, 0]])
        >>> like_length([3, 50, 4, 48], overhead=200, most=99)
        [[1], [3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    falling = [lengths[index] for index in order]
    pairs = zip(falling, [*falling[1:], -1], strict=False)
    is_cut = most is not None  # also between rows of one length
    ends = [end for end, (length, following) in enumerate(pairs, 1) if is_cut or length > following]
    best = {0: (0, 0)}  # end of a part -> least cost up to it, its start
    for end in ends:
        best[end] = min(
            (cost + (end - start) * falling[start] + overhead, start)
            for start, (cost, _) in best.items()
            if most is None or (end - start) * falling[start] <= most or end - start == 1
        )
    parts, end = list[list[int]](), len(order)
    while end:
        start = best[end][1]
        parts.insert(0, order[start:end])
        end = start
    return parts


def parts_of(
    batch: dict[str, Tensor], most: int | None = None, is_few: bool = False
) -> list[dict[str, Tensor]]:
    """The parts of a padded batch, each cut to its longest row; the batch itself where one part costs least.

    Args:
        batch: model inputs (b, s) or (b, s, d), "labels" (b, ...), and scalars, which all parts have. Without
            "attention_mask" (b, s) all rows count as equally long; without "input_ids" too it stays whole.
        most: tokens of a part, as in `like_length`.
        is_few: whether there are to be as few parts as `most` allows, whatever padding costs.
    """
    if is_few and most is None:
        return [batch]
    mask = batch.get("attention_mask")
    if mask is None and "input_ids" in batch:
        mask = torch.ones_like(batch["input_ids"])
    if mask is None or (is_few and most is not None and mask.numel() <= most):
        return [batch]
    found = like_length(mask.sum(dim=1).tolist(), _FEWEST if is_few else OVERHEAD_TOKENS, most)
    if len(found) == 1:
        return [batch]
    parts = list[dict[str, Tensor]]()
    for rows in found:
        columns = mask[rows].any(dim=0).nonzero().flatten()
        own = slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else slice(0, 1)
        of_rows = {name: value[rows] if value.dim() else value for name, value in batch.items()}
        by_token = {name for name in batch if name != "labels" and batch[name].shape[1:2] == mask.shape[1:]}
        parts.append(of_rows | {name: of_rows[name][:, own] for name in by_token})
    return parts


def rows_to_evaluate(rows: Sequence[Row], n_rows: int, most: int | None) -> int:
    """Rows to compute at a time without gradients: of the longest no more than have twice `most` tokens.

    Args:
        rows: as tokens.
        n_rows: at a time, at most.
        most: tokens that are computed at once with gradients; None: any number.

    Example:
        >>> rows_to_evaluate([{"input_ids": [1] * 20}], 16, 50), rows_to_evaluate([], 16, 50)
        (5, 16)
    """
    longest = max((len(row.get("input_ids", ())) for row in rows), default=0)
    return n_rows if most is None or not longest else min(n_rows, max(1, 2 * most // longest))
