"""Laws of batches in parts of like length: every row once, never dearer than whole, the least there is."""

import itertools
import random

import pytest
import torch

from hadamard_adapter.tuning import parts
from hadamard_adapter.tuning.parts import like_length, parts_of


def cost(found: list[list[int]], lengths: list[int], overhead: int) -> int:
    return sum(len(part) * max(lengths[index] for index in part) + overhead for part in found)


@pytest.mark.parametrize("seed", range(20))
def test_no_other_cut_of_the_rows_in_order_costs_less(seed: int) -> None:
    chance, most = random.Random(seed), (60, 4)[seed % 2]
    lengths = [chance.randrange(1, most) for _ in range(chance.randrange(1, 9))]
    overhead = chance.choice((0, 5, 40, 1000))
    found = like_length(lengths, overhead)
    assert sorted(itertools.chain(*found)) == list(range(len(lengths))) and like_length([], overhead) == []
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    cuts = itertools.chain(*(itertools.combinations(range(1, len(order)), n) for n in range(len(order))))
    others = [[order[a:b] for a, b in itertools.pairwise((0, *cut, len(order)))] for cut in cuts]
    assert cost(found, lengths, overhead) == min(cost(other, lengths, overhead) for other in others)


@pytest.mark.parametrize("seed", range(20))
def test_a_part_has_the_tokens_that_it_may_or_one_row_and_no_other_cut_costs_less(seed: int) -> None:
    chance, longest = random.Random(seed), (60, 4)[seed % 2]
    lengths = [chance.randrange(1, longest) for _ in range(chance.randrange(1, 9))]
    overhead, most = chance.choice((0, 40, 10**9)), chance.choice((1, longest, 2 * longest, 10**6))
    found = like_length(lengths, overhead, most)
    assert sorted(itertools.chain(*found)) == list(range(len(lengths)))
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    cuts = itertools.chain(*(itertools.combinations(range(1, len(order)), n) for n in range(len(order))))
    others = [[order[a:b] for a, b in itertools.pairwise((0, *cut, len(order)))] for cut in cuts]
    fitting = [other for other in others if fits(other, lengths, most)]
    assert fits(found, lengths, most)
    assert cost(found, lengths, overhead) == min(cost(other, lengths, overhead) for other in fitting)
    if most == 10**6:
        assert cost(found, lengths, overhead) == cost(like_length(lengths, overhead), lengths, overhead)


def fits(found: list[list[int]], lengths: list[int], most: int) -> bool:
    return all(len(part) == 1 or cost([part], lengths, 0) <= most for part in found)


def test_few_parts_are_as_few_as_fit_whatever_padding_costs() -> None:
    mask = (torch.arange(64) < torch.tensor([64, 3, 3, 3, 3, 3, 3, 3])[:, None]).long()
    batch = {"input_ids": mask, "attention_mask": mask, "labels": torch.arange(8), "task": torch.tensor(7)}
    shapes = [[tuple(part["input_ids"].shape) for part in parts_of(batch, *how)] for how in (
        (None, True), (8 * 64, True), (2 * 64, True), (6, True), (2 * 64, False)
    )]  # fmt: skip
    whole, two = [(8, 64)], [(1, 64), (7, 3)]  # of two ways to have two the cheaper
    assert shapes[:3] == [whole, whole, two] and shapes[4] == two
    assert shapes[3][0] == (1, 64) and sorted(shapes[3][1:]) == [(1, 3), (2, 3), (2, 3), (2, 3)]
    assert all(int(part["task"]) == 7 for part in parts_of(batch, 6, is_few=True))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("n_labels", [None, 6])
def test_a_part_is_the_batch_of_its_rows_padded_to_their_longest(
    side: str, n_labels: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "OVERHEAD_TOKENS", 3)
    lengths = [2, 6, 1, 5, 2]
    mask = torch.zeros(5, 6, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, slice(0, length) if side == "right" else slice(6 - length, 6)] = 1
    ids, states = torch.arange(30).reshape(5, 6) * mask, torch.randn(5, 6, 3)
    labels = torch.arange(5) if n_labels is None else torch.randn(5, n_labels)  # as many labels as tokens
    batch = {"input_ids": ids, "attention_mask": mask, "prefix": states, "labels": labels}
    found = parts_of(batch)
    assert [part["input_ids"].shape for part in found] == [(2, 6), (3, 2)]
    own = slice(0, 2) if side == "right" else slice(4, 6)
    for part, rows, columns in zip(found, ([1, 3], [0, 4, 2]), (slice(0, 6), own), strict=True):
        assert torch.equal(part["input_ids"], ids[rows][:, columns])
        assert torch.equal(part["prefix"], states[rows][:, columns])
        assert torch.equal(part["attention_mask"], mask[rows][:, columns])
        assert torch.equal(part["labels"], labels[rows])
    assert parts_of({"input_ids": ids, "labels": labels})[0]["input_ids"] is ids
    unmasked = {"input_ids": ids, "labels": labels}  # all rows count as equally long
    pairs = parts_of(unmasked, 12, is_few=True)
    assert [part["input_ids"].shape for part in pairs] == [(1, 6), (2, 6), (2, 6)]
    assert torch.equal(torch.cat([part["input_ids"] for part in pairs]).sort(dim=0)[0], ids.sort(dim=0)[0])
    assert parts_of({"labels": labels}, 1, is_few=True) == [{"labels": labels}]
