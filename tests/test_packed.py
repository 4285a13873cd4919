"""Laws of packs: what was packed is read back, damage is told, and a pack is there whole or not at all."""

import dataclasses
import random
import sqlite3
from pathlib import Path

import pytest
import torch
from torch import Tensor

from command import hadamard
from hadamard_adapter.errors import AdapterError, SettingsError
from hadamard_adapter.serving import (
    AdapterBank,
    AdapterStore,
    BankAdapter,
    PackedAdapters,
    read_adapter,
    write_pack,
)
from hadamard_adapter.serving.follow import Follower
from hadamard_adapter.serving.packed import INDEX
from models import tiny_inputs, tiny_model
from serve_help import random_adapter, tuned


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BankAdapter]:
    """Adapters of two layouts (other numbers of labels), two of each."""
    place, found = tmp_path_factory.mktemp("packed"), dict[str, BankAdapter]()
    for name, n_labels in (("mood", 2), ("topic", 5)):
        labels = {index: f"{name} {index}" for index in range(n_labels)}
        tuned("bert", n_labels, place / name, sites=["attention", "ffn"], id2label=labels)
        found[name] = dataclasses.replace(read_adapter(place / name), has_pair=n_labels == 2)
        found[f"{name}2"] = random_adapter(found[name], n_labels)
    return found


def write(folder: Path, adapters: dict[str, BankAdapter], **settings: object) -> PackedAdapters:
    items = ((id, f"version of {id}", adapter) for id, adapter in adapters.items())
    assert write_pack(folder, items, **settings) == len(adapters)  # type: ignore[arg-type]
    return PackedAdapters(folder)


def of_one_base(adapters: dict[str, BankAdapter]) -> dict[str, BankAdapter]:
    return {id: dataclasses.replace(found, base_fingerprint="one") for id, found in adapters.items()}


@pytest.mark.parametrize("shard_bytes", [1, 1 << 28])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_packed_is_read_back(
    packed: dict[str, BankAdapter], tmp_path: Path, dtype: torch.dtype, shard_bytes: int
):
    pack = write(tmp_path / "pack", packed, dtype=dtype, shard_bytes=shard_bytes)
    assert len(pack) == 4 and all(id in pack for id in packed)
    assert "mod" not in pack and "\ud800" not in pack
    assert len(list((tmp_path / "pack").glob("shard-*"))) == (4 if shard_bytes == 1 else 2)
    for id, adapter in packed.items():
        found = pack.read(id)
        assert pack.version(id) == f"version of {id}"
        for name in ("task", "max_length", "base_fingerprint", "has_pair"):
            assert getattr(found, name) == getattr(adapter, name)
        for name in ("offsets", "head"):
            own, expected = getattr(found, name), getattr(adapter, name)
            assert own.keys() == expected.keys()
            assert all(torch.equal(own[key], expected[key].to(dtype)) for key in expected)
    with pytest.raises(AdapterError, match="no adapter 'mod' in pack"):
        pack.read("mod")


def test_a_flipped_bit_or_a_cut_is_told_and_the_others_are_still_read(
    packed: dict[str, BankAdapter], tmp_path: Path
):
    pack = write(tmp_path / "pack", packed, shard_bytes=1)
    first, second = sorted((tmp_path / "pack").glob("shard-*"))[:2]
    content = first.read_bytes()
    first.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(
        AdapterError, match=r"adapter 'mood' in .* is not what was packed; pack the store again"
    ):
        pack.read("mood")
    second.write_bytes(second.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="is damaged"):
        pack.read("mood2")
    assert pack.read("topic").task == packed["topic"].task


def test_a_pack_is_there_whole_or_not_at_all(packed: dict[str, BankAdapter], tmp_path: Path):
    other = dataclasses.replace(packed["topic"], base_fingerprint="another")
    with pytest.raises(AdapterError, match="expected a store of one base model"):
        write(tmp_path / "pack", {**of_one_base(packed), "other": other})
    with pytest.raises(SettingsError, match="expected each id once"):
        write_pack(tmp_path / "pack", [("mood", "v", packed["mood"]), ("mood", "v", packed["mood"])])
    assert not list(tmp_path.iterdir())
    write(tmp_path / "pack", {})
    with pytest.raises(SettingsError, match="exists already"):
        write(tmp_path / "pack", packed)
    assert len(PackedAdapters(tmp_path / "pack")) == 0


def test_what_is_no_pack_is_refused(packed: dict[str, BankAdapter], tmp_path: Path):
    with pytest.raises(AdapterError, match="expected a folder that `hadamard bank pack` made"):
        PackedAdapters(tmp_path)
    write(tmp_path / "pack", packed)
    with sqlite3.connect(tmp_path / "pack" / INDEX) as index:
        index.execute("UPDATE pack SET format = 'later'")
    with pytest.raises(AdapterError, match="expected a pack of format 1, received 'later'"):
        PackedAdapters(tmp_path / "pack")


def test_the_command_packs_what_a_store_serves(tmp_path: Path):
    tuned("bert", 0, tmp_path / "adapter")
    store = ("--store", tmp_path / "store")
    assert hadamard("bank", "add", *store, "mood", tmp_path / "adapter").code == 0
    done = hadamard("bank", "pack", *store, "--output", tmp_path / "pack", "--dtype", "bfloat16")
    assert (done.code, "1 adapters" in done.err) == (0, True)
    version, adapter = AdapterStore(tmp_path / "store").read("mood")
    pack = PackedAdapters(tmp_path / "pack")
    assert pack.version("mood") == version
    assert pack.read("mood").head_bytes == adapter.head_bytes
    again = hadamard("bank", "pack", *store, "--output", tmp_path / "pack")
    assert again.code == 2 and "exists already" in again.err


@pytest.fixture(scope="module")
def many(packed: dict[str, BankAdapter]) -> dict[str, BankAdapter]:
    return {f"a{seed}": random_adapter(packed["topic" if seed % 2 else "mood"], seed) for seed in range(6)}


INPUTS = tiny_inputs("bert")


def logits(bank: AdapterBank, ids: list[str]) -> Tensor:
    entries = bank.hold(ids)
    try:
        return bank.forward([entry.slot for entry in entries], **INPUTS)
    finally:
        bank.release(entries)


def test_a_bank_that_holds_few_of_a_pack_answers_as_one_that_holds_all(
    many: dict[str, BankAdapter], tmp_path: Path
):
    full = AdapterBank(tiny_model("bert"))
    for id, adapter in many.items():
        full.add(id, adapter)
    bank = AdapterBank(tiny_model("bert"), pack=write(tmp_path / "pack", many), max_resident=2)
    assert len(bank) == 0 and "a5" in bank and "b" not in bank
    generator, n_rows = random.Random(0), len(INPUTS["input_ids"])
    for _ in range(20):
        ids = generator.choices(list(many), k=n_rows)
        torch.testing.assert_close(logits(bank, ids), logits(full, ids))
        assert len(bank) == max(2, len(set(ids)))
    with pytest.raises(AdapterError, match="no adapter 'b' in this bank"):
        bank.hold(["a0", "b"])


def test_what_was_not_used_for_longest_makes_room_and_what_was_added_stays(
    many: dict[str, BankAdapter], tmp_path: Path
):
    bank = AdapterBank(tiny_model("bert"), pack=write(tmp_path / "pack", many), max_resident=2)
    bank.add("own", many["a0"])
    held = {"own"}
    for id, expected in (("a1", {"a1"}), ("a2", {"a1", "a2"}), ("a1", {"a1", "a2"}), ("a3", {"a1", "a3"})):
        bank.release(bank.hold([id]))
        assert set(bank.ids) == held | expected
    bank.add("a3", many["a4"])  # what is added comes before what is packed, and stays
    for id in ("a4", "a5", "a2"):
        bank.release(bank.hold([id]))
    assert set(bank.ids) == held | {"a3", "a5", "a2"}
    ids = ["a3"] * len(INPUTS["input_ids"])
    torch.testing.assert_close(logits(bank, ids), logits(bank, ["a4"] * len(ids)))
    bank.remove("a3")
    with pytest.raises(AdapterError, match="no adapter 'a3'"):
        bank.remove("a3")
    assert bank.entry("a3").adapter.task == many["a3"].task


def test_what_is_shown_is_no_use_and_makes_nothing_go(many: dict[str, BankAdapter], tmp_path: Path) -> None:
    bank = AdapterBank(tiny_model("bert"), pack=write(tmp_path / "pack", many), max_resident=2)
    for id in ("a0", "a1"):
        bank.release(bank.hold([id]))
    for id in ("a0", "a5"):
        adapter, version = bank.show(id)
        assert (adapter.task, version) == (many[id].task, f"version of {id}")
    assert set(bank.ids) == {"a0", "a1"}
    bank.release(bank.hold(["a2"]))
    assert set(bank.ids) == {"a1", "a2"}, "a0 was used before a1"
    with pytest.raises(AdapterError, match="no adapter 'b'"):
        bank.show("b")


def test_a_slot_that_made_room_is_not_used_again_while_a_prediction_reads_it(
    many: dict[str, BankAdapter], tmp_path: Path
):
    bank = AdapterBank(tiny_model("bert"), pack=write(tmp_path / "pack", many), max_resident=1)
    ids = ["a0"] * len(INPUTS["input_ids"])
    expected = logits(bank, ids)
    under_way = bank.hold(ids)
    for id in ("a1", "a2", "a3"):
        bank.release(bank.hold([id]))
    assert bank.ids == ["a3"]
    torch.testing.assert_close(bank.forward([entry.slot for entry in under_way], **INPUTS), expected)
    bank.release(under_way)


def test_tables_in_bfloat16_answer_as_adapters_that_were_rounded(many: dict[str, BankAdapter]):
    halved, model = AdapterBank(tiny_model("bert"), dtype=torch.bfloat16), tiny_model("bert")
    for module in (model.bert.pooler, model.classifier):  # the base's own head is a row of the tables too
        module.bfloat16().float()
    rounded = AdapterBank(model)
    for id, adapter in many.items():
        halved.add(id, adapter)
        parts = {
            part: {key: t.bfloat16().float() for key, t in getattr(adapter, part).items()}
            for part in ("offsets", "head")
        }
        rounded.add(id, dataclasses.replace(adapter, **parts))
    ids = (list(many) * 2)[: len(INPUTS["input_ids"])]
    torch.testing.assert_close(logits(halved, ids), logits(rounded, ids))


def test_a_store_comes_before_a_pack_and_leaves_it_as_it_was(many: dict[str, BankAdapter], tmp_path: Path):
    tuned("bert", 7, tmp_path / "new", sites=["attention", "ffn"])
    store = AdapterStore(tmp_path / "store")
    bank = AdapterBank(tiny_model("bert"), pack=write(tmp_path / "pack", many), max_resident=2)
    follower = Follower(bank, store)
    for id in ("a0", "a1"):
        bank.release(bank.hold([id]))
    version = store.add("a0", tmp_path / "new").version
    follower.look()
    assert (set(bank.ids), bank.entry("a0").version) == ({"a0", "a1"}, version)
    for id in ("a2", "a3", "a4"):
        bank.release(bank.hold([id]))
    assert set(bank.ids) == {"a0", "a3", "a4"}
    store.remove("a0")
    follower.look()
    assert set(bank.ids) == {"a3", "a4"} and not follower.problems
    assert bank.entry("a0").version == "version of a0"


def test_an_adapter_that_does_not_say_its_base_model_is_packed_with_the_others(
    packed: dict[str, BankAdapter], tmp_path: Path
):
    assert packed["mood"].base_fingerprint is None
    pack = write(tmp_path / "pack", {"silent": packed["mood"], **of_one_base(packed)})
    assert pack.base_fingerprint == "one" and len(pack) == len(packed) + 1


def test_a_pack_of_another_base_model_is_refused(packed: dict[str, BankAdapter], tmp_path: Path):
    other = {id: dataclasses.replace(found, base_fingerprint="another") for id, found in packed.items()}
    with pytest.raises(AdapterError, match="expected fingerprint"):
        AdapterBank(tiny_model("bert"), pack=write(tmp_path / "pack", other))
    with pytest.raises(SettingsError, match="max_resident: expected a number from 1 on, received 0"):
        AdapterBank(tiny_model("bert"), max_resident=0)
