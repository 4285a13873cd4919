"""Laws of the batcher: turns are fair and within the budget, and what nobody waits for is not computed."""

import asyncio
import math
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from hadamard_adapter.errors import AdapterError
from hadamard_adapter.serving import AdapterBank, read_adapter, write_pack
from hadamard_adapter.serving.batcher import Batcher, DeadlineError, QueueFullError, choose
from hadamard_adapter.serving.load import load_bank
from serve_help import make_place


@pytest.mark.parametrize("seed", range(50))
def test_a_turn_is_fair_within_the_budget_and_holds_the_oldest_row(seed: int) -> None:
    chance = random.Random(seed)
    ids = [chance.choice("aaaaabc") for _ in range(chance.randint(1, 60))]
    n_tokens = [chance.randint(1, 128) for _ in ids]
    budget = chance.choice([1, 64, 500, 100_000])
    chosen = choose(ids, n_tokens, budget)
    assert 0 in chosen and len(set(chosen)) == len(chosen)
    assert len(chosen) == 1 or len(chosen) * max(n_tokens[at] for at in chosen) <= budget
    taken = {id: [at for at in chosen if ids[at] == id] for id in set(ids)}
    for id, positions in taken.items():
        own = [at for at, other in enumerate(ids) if other == id]
        assert positions == own[: len(positions)], "the oldest of each adapter first"
        for other in taken.values():
            is_waiting = len(positions) < len(own)
            assert not is_waiting or len(other) <= len(positions) + 1, (
                "none is two rows ahead of one that waits"
            )
    if budget == 100_000:
        assert sorted(chosen) == list(range(len(ids)))


@pytest.mark.parametrize("seed", range(20))
def test_rows_that_have_waited_long_come_first_in_the_order_of_arrival(seed: int) -> None:
    chance = random.Random(seed)
    ids = [chance.choice("aaaaabc") for _ in range(40)]
    n_tokens = [chance.randint(1, 128) for _ in ids]
    n_old = chance.randint(1, 30)
    chosen = choose(ids, n_tokens, chance.choice([1, 500, 2000, 100_000]), n_old)
    assert chosen[:n_old] == list(range(min(n_old, len(chosen))))


def test_rows_that_have_waited_long_overtake_another_adapter_s_first() -> None:
    assert choose(["a", "a", "a", "b"], [10] * 4, budget=20) == [0, 3]
    assert choose(["a", "a", "a", "b"], [10] * 4, budget=20, n_old=2) == [0, 1]


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> AdapterBank:
    place: Path = make_place(tmp_path_factory.mktemp("batcher"))
    bank = load_bank(str(place / "model"), "cpu")
    bank.add("mood", place / "mood-0", "m0")
    bank.add("topic", place / "topic-0", "t0")
    return bank


def run(batcher: Batcher, scenario: Any) -> Any:
    async def whole() -> Any:
        await batcher.start()
        try:
            return await scenario()
        finally:
            await batcher.stop()

    return asyncio.run(whole())


def n_held(bank: AdapterBank) -> int:
    return sum(bank.entry(id).n_users for id in bank.ids)


def test_many_requests_share_passes_and_are_answered_as_alone(bank: AdapterBank) -> None:
    passes: list[tuple[int, int]] = []
    texts = [f"w{index} " * (1 + index % 9) for index in range(40)]
    ids = [("mood", "topic")[index % 2] for index in range(40)]

    async def scenario() -> Any:
        one = (batcher.predict([text], [id], [None], 10) for text, id in zip(texts, ids, strict=True))
        return await asyncio.gather(*one)

    batcher = Batcher(bank, told=lambda n_rows, n_tokens: passes.append((n_rows, n_tokens)))
    found = run(batcher, scenario)
    for answer, alone, id in zip(found, bank.predict(texts, ids), ids, strict=True):
        assert answer.predictions[0].label == alone.label
        assert answer.predictions[0].probabilities == pytest.approx(alone.probabilities, abs=1e-5)
        assert answer.versions == [{"mood": "m0", "topic": "t0"}[id]]
    assert sum(n_rows for n_rows, _ in passes) == 40 and len(passes) < 20
    assert n_held(bank) == 0


def test_a_full_queue_and_unknown_ids_are_refused_and_hold_nothing(bank: AdapterBank) -> None:
    batcher = Batcher(bank, n_queue=3)

    async def scenario() -> None:
        with pytest.raises(QueueFullError, match="limit 3"):
            await batcher.predict(["w1"] * 4, ["mood"] * 4, [None] * 4, 10)
        with pytest.raises(AdapterError, match="no adapter 'nood'"):
            await batcher.predict(["w1"], ["nood"], [None], 10)

    run(batcher, scenario)
    assert n_held(bank) == 0 and batcher.n_rows == 0


def test_more_work_than_the_deadline_allows_is_refused_with_the_seconds_to_wait(bank: AdapterBank) -> None:
    batcher = Batcher(bank)

    async def scenario() -> None:
        under_way = asyncio.ensure_future(batcher.predict(["w1 w2 w3"], ["mood"], [None], 60))
        while not batcher._queue:
            await asyncio.sleep(0)
        batcher._s_per_token = 0.5
        (row,) = batcher._queue
        expected_s = 0.5 * row.n_tokens
        batcher.refuse_full(1, expected_s / 0.4 + 0.01)
        with pytest.raises(QueueFullError, match=f"about {expected_s:.1f} s of work") as refused:
            batcher.refuse_full(1, expected_s / 0.4 - 0.01)
        assert refused.value.retry_after_s == math.ceil(expected_s / 2)
        await under_way

    run(batcher, scenario)
    assert n_held(bank) == 0


def test_token_ids_have_the_limits_of_predictions(bank: AdapterBank) -> None:
    batcher = Batcher(bank, n_queue=1, wait_s=0.2)

    async def scenario() -> None:
        under_way = asyncio.ensure_future(batcher.predict(["w1"], ["mood"], [None], 10))
        await asyncio.sleep(0.03)
        with pytest.raises(QueueFullError, match="limit 1"):
            await batcher.token_ids("w1", "mood", 10)
        await under_way
        with bank._words, pytest.raises(DeadlineError, match=r"within 0\.001 s"):  # its tokenizer is taken
            await batcher.token_ids("w1 " * 100_000, "mood", 0.001)
        asked = asyncio.ensure_future(batcher.token_ids("w1 " * 10_000, "mood", 10))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="1 texts are under way"):
            await batcher.predict(["w1"], ["mood"], [None], 10)
        ids, longest = await asked
        assert len(ids) == longest

    run(batcher, scenario)
    assert n_held(bank) == 0 and batcher.n_rows == 0


def test_an_adapter_that_fails_in_a_shared_pass_fails_alone(
    bank: AdapterBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, broken = bank.logits, bank.entry("topic")
    (alone,) = bank.predict(["w1 w2"], ["mood"])
    n_together = 0

    def logits(rows: Any, entries: Any) -> Any:
        nonlocal n_together
        n_together += len({entry.version for entry in entries}) > 1
        if broken in entries:
            raise ValueError("broken")
        return compute(rows, entries)

    monkeypatch.setattr(bank, "logits", logits)
    batcher = Batcher(bank, wait_s=0.1)

    async def scenario() -> Any:
        asked = (batcher.predict(["w1 w2"], [id], [None], 10) for id in ("mood", "topic", "mood"))
        return await asyncio.gather(*asked, return_exceptions=True)

    first, failed, last = run(batcher, scenario)
    assert n_together == 1 and isinstance(failed, ValueError)
    for answer in (first, last):
        assert answer.predictions[0].probabilities == pytest.approx(alone.probabilities, abs=1e-5)
    assert n_held(bank) == 0 and batcher.n_rows == 0


def test_a_row_that_fails_in_a_pass_of_its_adapter_fails_alone(
    bank: AdapterBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = bank.logits

    def logits(rows: Any, entries: Any) -> Any:
        if any(len(row["input_ids"]) == 9 for row in rows):
            raise ValueError("broken")
        return compute(rows, entries)

    monkeypatch.setattr(bank, "logits", logits)
    batcher = Batcher(bank, wait_s=0.1)

    async def scenario() -> Any:
        asked = (batcher.predict(["w1 " * n], ["mood"], [None], 10) for n in (6, 7, 8))
        return await asyncio.gather(*asked, return_exceptions=True)

    first, failed, last = run(batcher, scenario)
    assert isinstance(failed, ValueError) and first.versions == last.versions == ["m0"]
    assert n_held(bank) == 0 and batcher.n_rows == 0


def test_what_waits_to_be_read_for_nobody_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place(tmp_path)
    write_pack(tmp_path / "pack", [(f"p{n}", "v", read_adapter(place / "topic-0")) for n in range(30)])
    bank = load_bank(str(place / "model"), "cpu", str(tmp_path / "pack"))
    assert bank.pack is not None
    read, disk_answers, n_read = bank.pack.read, threading.Event(), list[str]()

    def read_slowly(id: str) -> Any:
        n_read.append(id)
        assert disk_answers.wait(30)
        return read(id)

    monkeypatch.setattr(bank.pack, "read", read_slowly)
    batcher = Batcher(bank)

    async def scenario() -> Any:
        asked = (batcher.predict(["w1"], [f"p{n}"], [None], 0.2) for n in range(29))
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(one) for one in found} <= {DeadlineError, QueueFullError}
        disk_answers.set()
        return await batcher.predict(["w1"], ["p29"], [None], 30)

    assert run(batcher, scenario).versions == ["v"]
    assert len(n_read) < 10 and n_held(bank) == 0 and batcher.n_rows == 0


def test_a_row_whose_deadline_is_over_or_whose_client_has_gone_is_not_computed(bank: AdapterBank) -> None:
    passes: list[tuple[int, int]] = []
    batcher = Batcher(bank, wait_s=0.2, told=lambda n_rows, n_tokens: passes.append((n_rows, n_tokens)))

    async def scenario() -> None:
        late = asyncio.ensure_future(batcher.predict(["w1"], ["mood"], [None], 0.05))
        gone = asyncio.ensure_future(batcher.predict(["w2"], ["mood"], [None], 10))
        await asyncio.sleep(0.03)
        gone.cancel()
        with pytest.raises(DeadlineError, match=r"within 0\.05 s"):
            await late
        await batcher.predict(["w3"], ["topic"], [None], 10)

    run(batcher, scenario)
    assert [n_rows for n_rows, _ in passes] == [1]
    assert n_held(bank) == 0 and batcher.n_rows == 0


def test_what_is_read_from_a_pack_makes_nobody_else_wait_and_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place(tmp_path)
    packed = [(f"p{number}", "v", read_adapter(place / "topic-0")) for number in range(2)]
    write_pack(tmp_path / "pack", packed)
    bank = load_bank(str(place / "model"), "cpu", str(tmp_path / "pack"))
    bank.add("mood", place / "mood-0", "m0")
    assert bank.pack is not None
    read, disk_answers = bank.pack.read, threading.Event()

    def read_slowly(id: str) -> Any:
        assert disk_answers.wait(30), "others waited for the disk"
        return read(id)

    monkeypatch.setattr(bank.pack, "read", read_slowly)
    batcher = Batcher(bank)

    async def scenario() -> Any:
        waiting = asyncio.ensure_future(batcher.predict(["w1"], ["p0"], [None], 60))
        gone = asyncio.ensure_future(batcher.predict(["w1"], ["p1"], [None], 60))
        with pytest.raises(DeadlineError):
            await batcher.token_ids("w1", "p0", 0.01)
        answer = await batcher.predict(["w1"], ["mood"], [None], 10)
        assert answer.versions == ["m0"] and not waiting.done()
        gone.cancel()
        await asyncio.sleep(0)
        disk_answers.set()
        return await waiting

    assert run(batcher, scenario).versions == ["v"]
    assert set(bank.ids) == {"mood", "p0", "p1"} and n_held(bank) == 0 and batcher.n_rows == 0
