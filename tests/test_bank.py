"""Laws of the bank: every row as alone with its adapter, slot 0 the base, nothing crossed or half changed."""

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adapter_help import BOTH, logits
from hadamard_adapter.errors import AdapterError, SettingsError
from hadamard_adapter.serving import AdapterBank, PackedAdapters, read_adapter, write_pack
from hadamard_adapter.serving import rows as rows_room
from hadamard_adapter.serving.backbone import ENCODERS
from hadamard_adapter.serving.bank import near_id
from hadamard_adapter.serving.layers import BankOutput, BankProjection
from hadamard_adapter.serving.tables import RowTable
from hadamard_adapter.tuning import load
from hadamard_adapter.tuning.models import load_tokenizer
from models import TINY, tiny_inputs, tiny_model
from serve_help import random_adapter, tuned
from tuning_help import tiny_folder, tiny_tune, write_rows

FAMILIES = [name for name in TINY if TINY[name].model_type in ENCODERS]
SETTINGS: tuple[dict[str, Any], ...] = (
    {"sites": BOTH},
    {"sites": ["attention"]},
    {"sites": BOTH, "layers_to_transform": [1], "id2label": {index: f"x{index}" for index in range(5)}},
    {"sites": BOTH, "norm_modules": [], "id2label": {0: "a", 1: "b"}},
    {"sites": BOTH, "identity_modules": True},
)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_row_is_as_alone_with_its_adapter(name: str, tmp_path: Path) -> None:
    bank, inputs = AdapterBank(tiny_model(name)), tiny_inputs(name)
    plain, alone = tiny_model(name), {}
    for seed, settings in enumerate(SETTINGS):
        alone[f"a{seed}"] = tuned(name, seed, tmp_path / f"a{seed}", **settings)
        bank.add(f"a{seed}", tmp_path / f"a{seed}")
    n_rows = len(inputs["input_ids"])
    for start in range(len(alone) + 1):
        ids = ["base", *alone, *alone, "base"][start : start + n_rows]
        mixed = bank.forward([0 if id == "base" else bank.entry(id).slot for id in ids], **inputs)
        for row, id in enumerate(ids):
            expected = (plain if id == "base" else alone[id])(**inputs).logits[row].detach()
            torch.testing.assert_close(mixed[row, : len(expected)], expected, atol=1e-5, rtol=1e-4)
            assert bool((mixed[row, len(expected) :] == float("-inf")).all())


@pytest.mark.parametrize("name", FAMILIES)
def test_linear_layers_laid_out_for_onednn_say_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned(name, 0, tmp_path, sites=BOTH)
    inputs, found = tiny_inputs(name), list[Tensor]()
    for packs in (False, True):
        monkeypatch.setattr("hadamard_adapter.tuning.onednn.is_faster", lambda layer, packs=packs: packs)
        bank = AdapterBank(tiny_model(name))
        bank.add("a", tmp_path)
        assert (bank.backbone.n_packed > 0) == packs
        found.append(bank.forward([bank.entry("a").slot] * len(inputs["input_ids"]), **inputs))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_on_one_text_share_the_layers_below_the_first_adapted_one(name: str, tmp_path: Path) -> None:
    bank, inputs, n_rows_of = AdapterBank(tiny_model(name)), tiny_inputs(name), list[int]()
    settings = ({"layers_to_transform": [1]}, {"sites": BOTH}, {"layers_to_transform": [1], "sites": BOTH})
    alone = [tuned(name, seed, tmp_path / f"a{seed}", **chosen) for seed, chosen in enumerate(settings)]
    for seed in range(len(alone)):
        bank.add(f"a{seed}", tmp_path / f"a{seed}")
    projection = next(m for m in bank.backbone.layers[0].modules() if isinstance(m, BankProjection))
    projection.register_forward_hook(lambda module, args, output: n_rows_of.append(len(output)))
    rows, ids = [0, 0, 0, 0, 1, 2, 2, 3, 3], [0, 1, 2, None, 2, 1, 1, 1, 0]  # None: the base model
    slots = [0 if id is None else bank.entry(f"a{id}").slot for id in ids]
    found = bank.forward(slots, **{key: tensor[rows] for key, tensor in inputs.items()})
    assert n_rows_of == [7], "three rows of text 0 share; a1 changes layer 0, so its rows stand alone"
    for row, id, logit in zip(rows, ids, found, strict=True):
        expected = (tiny_model(name) if id is None else alone[id])(**inputs).logits[row].detach()
        torch.testing.assert_close(logit, expected, atol=1e-5, rtol=1e-4)


def test_linear_heads_share_one_identity_that_outlives_each_of_them(tmp_path: Path) -> None:
    inputs, pack = tiny_inputs("roberta"), tmp_path / "pack"
    alone = [tuned("roberta", seed, tmp_path / f"{seed}", identity_modules=True) for seed in range(2)]
    tuned("roberta", 2, tmp_path / "full")
    write_pack(pack, ((f"a{seed}", "0", read_adapter(tmp_path / f"{seed}")) for seed in range(2)))
    bank = AdapterBank(tiny_model("roberta"), pack=PackedAdapters(pack))
    assert bank.entry("a0").adapter.head_bytes == 4 * (3 * 32 + 3)
    slot = bank.entry("a1").slot
    bank.remove("a0")
    bank.add("full", tmp_path / "full")
    found = bank.forward([slot] * 4, **inputs)
    torch.testing.assert_close(found, logits(alone[1], inputs), atol=1e-5, rtol=1e-4)
    with pytest.raises(AdapterError, match=r"makes 'classifier.out_proj' the identity: expected a layer bef"):
        other = dataclasses.replace(read_adapter(tmp_path / "0"), identity=("classifier.out_proj",))
        bank.add("other", other)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder and three tuned adapters: two kinds of labels and a regression."""
    place = tmp_path_factory.mktemp("bank")
    tiny_folder(place / "model")
    words: dict[str, Any] = {"epochs": 1, "lr": 0.05, "stages": 1}
    write_rows(place / "mood.csv", 48)
    write_rows(place / "topic.csv", 48, label_of=lambda text: f"t{len(text) % 3}")
    write_rows(place / "size.csv", 48, label_of=lambda text: len(text) / 10)
    for name in ("mood", "topic", "size"):
        tiny_tune(place / "model", place / name, place / f"{name}.csv", **words)
    return place


def bank_in(place: Path, *ids: str) -> AdapterBank:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(place / "model", num_labels=2)
    bank = AdapterBank(model, load_tokenizer(str(place / "model")))
    for id in ids:
        bank.add(id, place / id)
    return bank


TEXTS = ["w10 " + "w50 " * (index * 7 % 11) for index in range(12)]


def test_predictions_are_those_of_each_adapter_alone_in_the_order_of_the_texts(place: Path) -> None:
    names = ("mood", "topic", "size")
    bank, ids = bank_in(place, *names), [names[index % 3] for index in range(12)]
    found = bank.predict(TEXTS, ids, batch_tokens=40)
    for id in names:
        rows = [row for row, other in enumerate(ids) if other == id]
        expected = load(place / id, device="cpu").predict([TEXTS[row] for row in rows])
        for row, prediction in zip(rows, expected, strict=True):
            assert found[row].label == prediction.label
            assert found[row].value == pytest.approx(prediction.value, abs=1e-5)
            assert found[row].probabilities == pytest.approx(prediction.probabilities, abs=1e-5)
    assert bank.predict([], []) == []


def test_a_text_that_several_adapters_read_is_tokenised_once_and_as_for_each_alone(place: Path) -> None:
    names, texts = ("mood", "topic", "size"), TEXTS[1:3]
    bank = bank_in(place, *names)
    entries = bank.hold(names * len(texts))
    wanted = [text for text in texts for _ in names]
    rows = bank.tokenize(wanted, entries, None)
    assert len({id(row) for row in rows}) == len(texts)
    assert rows == [bank.tokenize([wanted[at]], [entries[at]], None)[0] for at in range(len(wanted))]
    bank.release(entries)


def test_an_unknown_id_is_an_error_and_never_the_base(place: Path) -> None:
    bank = bank_in(place, "mood")
    with pytest.raises(AdapterError, match=r"no adapter 'moot' in this bank of 1; did you mean 'mood'\?"):
        bank.predict(["w10", "w10"], ["mood", "moot"])
    with pytest.raises(AdapterError, match="no adapter 'topic'"):
        bank.remove("topic")
    bank.remove("mood")
    assert len(bank) == 0 and "mood" not in bank
    with pytest.raises(AdapterError, match="no adapter 'mood' in this bank of 0"):
        bank.predict(["w10"], ["mood"])


def test_what_does_not_fit_is_refused_and_changes_nothing(place: Path, tmp_path: Path) -> None:
    bank, adapter = bank_in(place, "mood"), read_adapter(place / "mood")
    before = bank.predict(TEXTS, ["mood"] * 12)
    place_of_one = next(iter(adapter.offsets))
    key = next(key for key in adapter.head if key.endswith("weight"))
    others: dict[str, tuple[Any, str]] = {
        "fingerprint": ({"base_fingerprint": "0" * 64}, "expected fingerprint .* received 0000"),
        "width": ({"offsets": {place_of_one: torch.zeros(7)}}, r"another width: expected 32 .*\(7,\)"),
        "site": ({"offsets": {("bert.pooler.dense", "scale"): torch.zeros(32)}}, "no site of this model"),
        "head": ({"head": {**adapter.head, key: torch.zeros(3, 7)}}, "head tensor .*expected shape"),
        "half a head": ({"head": {}}, "lacks 'classifier.bias', and so does the base"),
        "no head for its labels": (
            {"head": {}, "task": dataclasses.replace(adapter.task, label_names=("a", "b", "c"))},
            r"no weight of 'classifier'.*3 outputs",
        ),
        "a bias alone": (
            {"head": {k: v for k, v in adapter.head.items() if k != "classifier.weight"}},
            "no weight of 'classifier'",
        ),
        **{
            f"no {name} of the pooler": (
                {"head": {k: v for k, v in adapter.head.items() if k != f"bert.pooler.dense.{name}"}},
                f"lacks 'bert.pooler.dense.{name}' beside .*not whole",
            )
            for name in ("weight", "bias")
        },
        "beyond float32": (
            {"head": {**adapter.head, key: torch.full_like(adapter.head[key], 1e300, dtype=torch.float64)}},
            "expected finite numbers",
        ),
        "NaN": ({"head": {**adapter.head, key: adapter.head[key] * float("nan")}}, "expected finite numbers"),
        "infinity": (
            {"offsets": {**adapter.offsets, place_of_one: torch.full((32,), float("inf"))}},
            "expected finite numbers",
        ),
        "strange head": ({"head": {**adapter.head, "score.weight": torch.zeros(2, 2)}}, "no such tensor"),
    }
    for changes, message in others.values():
        with pytest.raises(AdapterError, match=message):
            bank.add("mood", dataclasses.replace(adapter, **changes))
    assert bank.ids == ["mood"] and bank.predict(TEXTS, ["mood"] * 12) == before
    tuned("bert", 0, tmp_path / "input", position="input")
    with pytest.raises(AdapterError, match="expected position \"output\", received 'input'"):
        bank.add("input", tmp_path / "input")


def test_other_models_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"a bank takes encoders \(bert.*received model type 'gpt2'"):
        AdapterBank(tiny_model("gpt2"))
    with pytest.raises(SettingsError, match="takes a sequence classifier, received BertModel"):
        AdapterBank(tiny_model("bert", "headless"))


def test_texts_ids_and_pairs_must_match(place: Path) -> None:
    bank = bank_in(place, "mood")
    with pytest.raises(SettingsError, match=r"expected one id .*received 2 texts, 1 ids"):
        bank.predict(["a", "b"], ["mood"])
    with pytest.raises(SettingsError, match=r"text 0: expected one text, .*received a second one"):
        bank.predict(["a"], ["mood"], ["b"])
    with pytest.raises(SettingsError, match="expected a bank with a tokenizer"):
        AdapterBank(tiny_model("bert")).predict(["a"], [])


@pytest.mark.parametrize("disturbed", ["not", "by a new row", "by a row that is taken again"])
def test_a_table_grows_while_its_lock_is_free_and_loses_no_row(
    disturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, lock, copies = RowTable(torch.zeros(2)), threading.Lock(), list[Tensor]()
    table.put(torch.ones(2))
    grown = table._grown

    def copying() -> Tensor:
        assert len(copies) or not lock.locked()
        copies.append(grown())
        if disturbed != "not" and len(copies) == 1:  # by another thread
            table.put(torch.full((2,), 2.0), 1 if disturbed == "by a row that is taken again" else None)
        return copies[-1]

    monkeypatch.setattr(table, "_grown", copying)
    table.make_room(lock)
    room, row = table.values, table.put(torch.full((2,), 3.0))
    assert table.values is room
    between = {"not": [[1, 1]], "by a new row": [[1, 1], [2, 2]], "by a row that is taken again": [[2, 2]]}
    assert table.values[: row + 1].tolist() == [[0, 0], *between[disturbed], [3, 3]]


def test_slots_of_what_is_gone_are_used_again_and_leave_no_trace(place: Path) -> None:
    bank, like = bank_in(place), read_adapter(place / "mood")
    for seed in range(20):
        bank.add(f"a{seed}", random_adapter(like, seed))
    kept = {id: bank.predict(TEXTS[:2], [id] * 2) for id in bank.ids}
    for seed in range(0, 20, 2):
        bank.remove(f"a{seed}")
    for seed in range(0, 20, 2):
        bank.add(f"b{seed}", dataclasses.replace(random_adapter(like, seed), offsets={}))
    assert {bank.entry(id).slot for id in bank.ids} == set(range(1, 21))
    for seed in range(1, 20, 2):
        assert bank.predict(TEXTS[:2], [f"a{seed}"] * 2) == kept[f"a{seed}"]
    fresh = bank_in(place)
    fresh.add("b4", dataclasses.replace(random_adapter(like, 4), offsets={}))
    found, expected = bank.predict(TEXTS[:2], ["b4"] * 2), fresh.predict(TEXTS[:2], ["b4"] * 2)
    for one, other in zip(found, expected, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_a_number_of_labels_that_nobody_has_any_more_takes_no_memory(place: Path) -> None:
    bank, like = bank_in(place), read_adapter(place / "mood")
    bank.add("mood", random_adapter(like, 1))
    (output,) = (module for module in bank.backbone.model.modules() if isinstance(module, BankOutput))
    sizes = set(output.of_size)
    names = tuple(f"x{index}" for index in range(9))
    many = dataclasses.replace(
        random_adapter(like, 2), task=dataclasses.replace(like.task, label_names=names)
    )
    many.head.update(
        {
            key: torch.randn(9, *tensor.shape[1:])
            for key, tensor in many.head.items()
            if len(tensor) == len(like.task.label_names)
        }
    )
    for id in ("many", "others"):
        bank.add(id, many)
    assert set(output.of_size) == sizes | {9}
    bank.remove("many")
    assert (
        set(output.of_size) == sizes | {9} and len(bank.predict(TEXTS[:1], ["others"])[0].probabilities) == 9
    )
    bank.remove("others")
    assert set(output.of_size) == sizes
    bank.add("many", many)
    assert len(bank.predict(TEXTS[:1], ["many"])[0].probabilities) == 9


def test_a_wrong_id_is_compared_with_a_few_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = list[str]()
    monkeypatch.setattr(
        "hadamard_adapter.serving.bank.did_you_mean", lambda id, ids, **_: compared.extend(ids) or ""
    )
    near_id("x" * 128, [f"{'long' * (index % 2) * 20}{index}" for index in range(5000)])
    assert len(compared) == 50 and max(map(len, compared)) < 64


@pytest.mark.parametrize("fails_at", range(6))
def test_memory_that_fails_once_leaves_the_bank_as_it_was(
    fails_at: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, like = bank_in(place), read_adapter(place / "mood")
    bank.add("a", random_adapter(like, 0))
    bank.add("gone", random_adapter(like, 3))
    bank.remove("gone")  # so that the next one takes rows that were freed
    expected, n_calls, put = bank.predict(TEXTS[:2], ["a"] * 2), [0], RowTable.put

    class Immovable(torch.Tensor):
        def to(self, *arguments: Any, **options: Any) -> torch.Tensor:
            raise torch.OutOfMemoryError

    def full(table: RowTable, row: torch.Tensor, at: int | None = None) -> int:
        n_calls[0] += 1
        return put(table, row.as_subclass(Immovable) if n_calls[0] == fails_at + 1 else row, at)

    monkeypatch.setattr(RowTable, "put", full)
    with pytest.raises(torch.OutOfMemoryError):
        bank.add("b", random_adapter(like, 1))
    assert bank.ids == ["a"]
    for id, seed in (("b", 1), ("c", 2)):
        bank.add(id, random_adapter(like, seed))
    assert [bank.entry(id).slot for id in bank.ids] == [1, 2, 3]
    fresh = bank_in(place)
    for id, seed in (("b", 1), ("c", 2)):
        fresh.add(id, random_adapter(like, seed))
        assert bank.predict(TEXTS[:2], [id] * 2) == fresh.predict(TEXTS[:2], [id] * 2)
    assert bank.predict(TEXTS[:2], ["a"] * 2) == expected


def test_threads_take_turns_at_the_tokenizer_which_keeps_where_it_cuts(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, n_at_work, most, original = bank_in(place, "mood"), [0], [0], rows_room.tokenize

    def seen(*args: Any) -> Any:
        n_at_work[0] += 1
        most[0] = max(most[0], n_at_work[0])
        time.sleep(0.01)
        found = original(*args)
        n_at_work[0] -= 1
        return found

    monkeypatch.setattr(rows_room, "tokenize", seen)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda _: bank.predict(TEXTS[:2], ["mood"] * 2), range(8)))) == 8
    assert most == [1]


def test_the_pace_is_that_of_rows_that_differ_and_fit(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, seen, original = bank_in(place), list[torch.Tensor](), AdapterBank.forward

    def forward(self: AdapterBank, slots: list[int], **inputs: torch.Tensor) -> torch.Tensor:
        seen.append(inputs["input_ids"])
        return original(self, slots, **inputs)

    monkeypatch.setattr(AdapterBank, "forward", forward)
    assert bank.measure_pace() > 0
    monkeypatch.setattr(bank, "_limit", 5)
    assert bank.measure_pace() > 0
    assert [len(ids.unique(dim=0)) for ids in seen] == [8] * 4
    assert [ids.shape[1] for ids in seen[::2]] == [min(64, bank_in(place)._limit or 64), 5]


def test_token_ids_have_no_second_text(place: Path) -> None:
    bank = bank_in(place, "mood")
    entries = [dataclasses.replace(one, adapter=dataclasses.replace(one.adapter, has_pair=None))
               for one in bank.hold(["mood"])]  # fmt: skip
    assert bank.tokenize([(5, 6)], entries, None)[0]["input_ids"] == [5, 6]
    with pytest.raises(SettingsError, match="text 0: expected texts where there is a second one"):
        bank.tokenize([(5, 6)], entries, ["second"])


def test_a_prediction_is_wholly_of_one_version_while_adapters_change(place: Path) -> None:
    bank, like = bank_in(place, "mood"), read_adapter(place / "mood")
    versions = [random_adapter(like, seed) for seed in range(4)]
    expected = []
    for version in versions:
        bank.add("x", version)
        expected.append([p.probabilities["good"] for p in bank.predict(TEXTS, ["x"] * 12)])
    assert min(np.abs(np.subtract(a, b)).max() for a in expected for b in expected if a is not b) > 0.01
    stop, failures = threading.Event(), list[str]()

    def change() -> None:
        count = 0
        while not stop.is_set():
            bank.add("x", versions[count % 4])
            bank.add(f"y{count % 3}", versions[count % 4])
            count += 1

    def ask() -> None:
        for _ in range(15):
            found = [p.probabilities["good"] for p in bank.predict(TEXTS, ["x"] * 12, batch_tokens=30)]
            if not any(np.allclose(found, one, atol=1e-5) for one in expected):
                failures.append(str(found))

    changer = threading.Thread(target=change)
    askers = [threading.Thread(target=ask) for _ in range(2)]
    for thread in (changer, *askers):
        thread.start()
    for thread in askers:
        thread.join()
    stop.set()
    changer.join()
    assert not failures
    assert bank.backbone.n_slots < 12, "slots of replaced versions are freed"


def test_sizes_of_offsets_and_head_are_told_apart(place: Path) -> None:
    bank = bank_in(place, "mood")
    adapter = bank.entry("mood").adapter
    assert adapter.offset_bytes == 4 * 2 * 2 * 4 * 32  # layers, sites, kinds, width
    assert adapter.head_bytes == 4 * (32 * 32 + 32 + 2 * 32 + 2)
