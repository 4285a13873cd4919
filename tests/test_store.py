"""Laws of the store: whole versions or none, checked bytes, ids that are no paths, and its commands."""

import asyncio
import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from command import hadamard, tree_of
from hadamard_adapter.errors import AdapterError, SettingsError
from hadamard_adapter.serving import AdapterBank, AdapterStore
from hadamard_adapter.serving import store as store_module
from hadamard_adapter.serving.follow import Follower
from models import tiny_model
from serve_help import tuned

BAD_IDS = ("", ".", "..", "../mood", "a/b", "a\\b", "/etc", ".hidden", "a" * 129, "a b", "ä", "a\n")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of an adapter: first/ and second/."""
    place = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("first", "second")):
        tuned("bert", seed, place / name)
    return place


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "folder" else f"memory://{tmp_path.name}"


def test_what_is_published_is_read_back_and_the_old_version_can_be_served_again(adapters: Path, url: str):
    store = AdapterStore(url)
    assert store.served() == [] and store.generation() == ""
    first = store.add("mood", adapters / "first")
    generation = store.generation()
    second = store.add("mood", adapters / "second")
    assert (second.history, second.version != first.version) == ((first.version,), True)
    assert generation != store.generation() != ""
    for version, name in ((first.version, "first"), (second.version, "second")):
        found, adapter = store.read("mood", version)
        expected = store_module.read_adapter(adapters / name)
        assert found == version and adapter.offsets.keys() == expected.offsets.keys()
        assert all(torch.equal(adapter.head[key], expected.head[key]) for key in expected.head)
    assert store.read("mood")[0] == store.version("mood") == second.version and store.version("none") is None
    assert store.roll_back("mood", first.version).history == (second.version,)
    assert [(p.id, p.version) for p in store.served()] == [("mood", first.version)]
    assert store.add("mood", adapters / "first") == store.show("mood"), "the same content is the same version"
    store.remove("mood")
    assert store.served() == [] and store.verify() == (0, [])
    with pytest.raises(AdapterError, match="no adapter 'mood' in store"):
        store.read("mood")


@pytest.mark.parametrize("id", BAD_IDS)
def test_an_id_that_could_be_a_path_is_refused_everywhere(id: str, adapters: Path, tmp_path: Path):
    store = AdapterStore(tmp_path / "store")
    for call in (
        lambda: store.add(id, adapters / "first"),
        lambda: store.show(id),
        lambda: store.read(id),
        lambda: store.remove(id),
        lambda: store.roll_back(id, "0" * 16),
    ):
        with pytest.raises(SettingsError, match="id: expected up to 128 letters"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_could_be_a_path_is_refused(adapters: Path, tmp_path: Path):
    store = AdapterStore(tmp_path / "store")
    store.add("mood", adapters / "first")
    for version in ("../../../etc", "", "0" * 15, "0" * 16):
        with pytest.raises(AdapterError, match=r"version"):
            store.read("mood", version)
        with pytest.raises(AdapterError, match="has no version"):
            store.roll_back("mood", version)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "swap the manifest", "rename its keys"])
def test_damaged_files_are_told_and_not_served(damage: str, adapters: Path, tmp_path: Path):
    store = AdapterStore(tmp_path / "store")
    version = store.add("mood", adapters / "first").version
    store.add("other", adapters / "second")
    path = tmp_path / "store" / "adapters" / "mood" / version / "adapter_model.safetensors"
    content = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(content[:-1])
    elif damage == "flip":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif damage == "remove":
        path.unlink()
    else:
        manifest = path.with_name("manifest.json")
        other = '"size": 1' if damage == "swap the manifest" else '"sizf": '
        manifest.write_text(manifest.read_text().replace('"size": ', other))
    with pytest.raises(AdapterError, match=r"not what was published|damaged manifest"):
        store.read("mood")
    n_served, (problem,) = store.verify()
    assert n_served == 2 and problem.startswith("mood: ")
    assert [published.id for published in store.served()] == ["mood", "other"]
    path.parent.joinpath("manifest.json").unlink()
    assert store.add("mood", adapters / "first").version == version
    assert store.verify() == (2, [])


def test_what_a_file_manager_left_in_a_store_is_no_adapter(adapters: Path, tmp_path: Path):
    store = AdapterStore(tmp_path / "store")
    store.add("mood", adapters / "first")
    (tmp_path / "store" / "adapters" / "Thumbs.db").write_text("pictures")
    assert [published.id for published in store.served()] == ["mood"]
    assert store.verify() == (1, [])
    assert hadamard("bank", "list", "--store", tmp_path / "store").code == 0


def test_a_folder_that_changes_while_it_is_read_is_not_published(
    adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(adapters / "first", tmp_path / "adapter")

    def changed(folder: Path) -> None:
        shutil.copytree(adapters / "second", folder, dirs_exist_ok=True)

    monkeypatch.setattr(store_module, "read_adapter", changed)
    store = AdapterStore(tmp_path / "store")
    with pytest.raises(AdapterError, match="changed while it was read; publish it again"):
        store.add("mood", tmp_path / "adapter")
    assert not list(store.served())


def test_a_damaged_pointer_is_told_and_mended_by_adding(adapters: Path, tmp_path: Path):
    store = AdapterStore(tmp_path / "store")
    store.add("mood", adapters / "first")
    pointer = tmp_path / "store" / "adapters" / "mood" / "current.json"
    for content in ("", "{}", "[]", '{"version": "../x", "history": []}', '{"version": "0", "history": 3}'):
        pointer.write_text(content)
        with pytest.raises(AdapterError, match=r"pointer of 'mood' .* is damaged; add the adapter again"):
            store.show("mood")
        assert store.verify()[0] == len(store.verify()[1]) == 1
    store.add("mood", adapters / "second")
    assert store.verify() == (1, [])


def publish_and_die(folder: Path, adapter: Path, n_writes: int) -> None:
    store, count = AdapterStore(folder), 0
    original = os.replace

    def replace(*args: Any) -> None:
        nonlocal count
        if count == n_writes:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        original(*args)

    os.replace = replace
    store.add("mood", adapter)


@pytest.mark.parametrize("n_writes", range(5))
def test_a_publisher_killed_at_any_write_leaves_the_old_version_whole(
    n_writes: int, adapters: Path, tmp_path: Path
):
    store = AdapterStore(tmp_path / "store")
    first = store.add("mood", adapters / "first").version
    context = multiprocessing.get_context("fork")
    process = context.Process(
        target=publish_and_die, args=(tmp_path / "store", adapters / "second", n_writes)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    is_pointed = n_writes == 4  # two files, the manifest, the pointer; only the generation was not written
    assert (store.read("mood")[0] == first) != is_pointed
    assert store.verify() == (1, [])
    second = store.add("mood", adapters / "second")
    assert store.read("mood")[0] == second.version != first


def test_a_first_publication_that_was_killed_is_not_served_and_not_reported(adapters: Path, tmp_path: Path):
    process = multiprocessing.get_context("fork").Process(
        target=publish_and_die, args=(tmp_path / "store", adapters / "first", 3)
    )
    process.start()
    process.join()
    store = AdapterStore(tmp_path / "store")
    assert (tmp_path / "store" / "adapters" / "mood").is_dir()
    assert store.served() == [] and store.verify() == (0, [])


def test_a_folder_without_locks_is_a_store_all_the_same(
    adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refused(*args: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refused)
    store = AdapterStore(tmp_path / "store")
    assert store.add("mood", adapters / "first") == store.show("mood")
    store.remove("mood")
    assert store.served() == []


def test_a_removal_that_was_stopped_ends_with_the_same_command(
    adapters: Path, url: str, monkeypatch: pytest.MonkeyPatch
):
    store = AdapterStore(url)
    store.add("mood", adapters / "first")
    before = store.generation()

    def stopped(self: AdapterStore) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(AdapterStore, "_changed", stopped)
    with pytest.raises(KeyboardInterrupt):
        store.remove("mood")
    monkeypatch.undo()
    assert store.find("mood") is None and store.generation() == before
    store.remove("mood")
    assert store.ids() == [] and store.generation() != before
    with pytest.raises(AdapterError, match="no adapter 'mood'"):
        store.remove("mood")


class NoCredentialsError(Exception):
    """As the clients of object stores have them: no OSError."""


@pytest.mark.parametrize("method", ["generation", "ids", "served"])
def test_an_object_store_s_own_errors_are_told_in_one_line(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise NoCredentialsError("Unable to locate credentials")

    store = AdapterStore(f"memory://{tmp_path.name}")
    monkeypatch.setattr(MemoryFileSystem, "ls", refuse)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    with pytest.raises(AdapterError, match="cannot be used: Unable to locate credentials") as found:
        getattr(store, method)()
    assert isinstance(found.value.__cause__, OSError)  # a follower tries again


def test_a_store_whose_server_is_away_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch):
    def away(*args: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("fsspec.core.url_to_fs", away)
    with pytest.raises(AdapterError, match="store 'github://a:b@c/' cannot be used: no route to host"):
        AdapterStore("github://a:b@c/")


def test_what_is_no_adapter_is_refused_and_nothing_is_written(adapters: Path, tmp_path: Path):
    store = AdapterStore(tmp_path / "store")
    broken = shutil.copytree(adapters / "first", tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"no tensors")
    for folder in (broken, tmp_path / "nowhere"):
        with pytest.raises(AdapterError):
            store.add("mood", folder)
    assert not (tmp_path / "store").exists()
    with pytest.raises(SettingsError, match="store 'gopher://x': expected a folder or a URL"):
        AdapterStore("gopher://x")


def test_a_bank_filled_from_a_store_is_one_filled_from_folders(adapters: Path, tmp_path: Path):
    store = AdapterStore(tmp_path / "store")
    store.add("mood", adapters / "first")
    bank = AdapterBank(tiny_model("bert"))
    bank.add("mood", store.read("mood")[1])
    bank.add("folder", adapters / "first")
    ids = torch.tensor([[5, 6, 7], [5, 6, 7]])
    one, other = bank.forward([bank.entry("mood").slot, bank.entry("folder").slot], input_ids=ids)
    torch.testing.assert_close(one, other)


def test_the_commands_publish_show_roll_back_verify_and_remove(adapters: Path, tmp_path: Path):
    store = ("--store", tmp_path / "store")
    versions = []
    for name in ("first", "second"):
        added = hadamard("bank", "add", *store, "mood", adapters / name)
        assert added.code == 0 and (added.out, "mood version " in added.err) == ("", True)
        versions.append(added.err.split()[2].rstrip(","))
    (listed,) = json.loads(hadamard("bank", "list", *store, "--json").out)
    assert (listed["id"], listed["version"], listed["history"]) == ("mood", versions[1], [versions[0]])
    assert versions[1] in hadamard("bank", "list", *store).out
    shown = json.loads(hadamard("bank", "show", *store, "mood").out)
    assert shown["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"] and shown["adapter_bytes"] > 0
    (tmp_path / "back.toml").write_text(f'version = "{versions[0]}"')  # a name that click has too
    assert hadamard("bank", "roll-back", *store, "mood", "--config", tmp_path / "back.toml").code == 0
    assert json.loads(hadamard("bank", "show", *store, "mood").out)["version"] == versions[0]
    assert "1 adapters, all whole" in hadamard("bank", "verify", *store).err
    (tmp_path / "store" / "adapters" / "mood" / versions[0] / "adapter_config.json").write_text("{}")
    found = hadamard("bank", "verify", *store)
    assert found.code == 2 and "mood: adapter_config.json" in found.out and "1 of 1" in found.err
    assert hadamard("bank", "remove", *store, "mood").code == 0
    before = tree_of(tmp_path)
    for words in (("show", "mood"), ("remove", "mood"), ("add", "../x", adapters / "first")):
        refused = hadamard("bank", words[0], *store, *words[1:])
        assert refused.code == 2 and refused.err.startswith("error: ") and refused.err.count("\n") == 1
    assert tree_of(tmp_path) == before


def test_earlier_versions_go_but_for_those_that_are_kept(adapters: Path, url: str) -> None:
    store = AdapterStore(url)
    for name in ("first", "second", "first"):
        served = store.add("mood", adapters / name)
    (earlier,) = served.history
    store._put(f"adapters/mood/{'0' * 16}/manifest.json", b"of a publisher that was killed")
    assert store.prune("mood", 1) == 1 and store.show("mood") == served
    assert store.prune("mood", 0) == 1 and store.show("mood").history == ()
    assert store.read("mood")[0] == served.version and store.verify() == (1, [])
    with pytest.raises(AdapterError, match=f"no version {earlier!r}"):
        store.roll_back("mood", earlier)
    with pytest.raises(AdapterError, match="no adapter 'none'"):
        store.prune("none", 0)
    with pytest.raises(SettingsError, match="expected a number from 0 on"):
        store.prune("mood", -1)


def test_the_command_prunes_all_adapters(adapters: Path, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    for id in ("mood", "topic"):
        for name in ("first", "second"):
            store.add(id, adapters / name)
    assert hadamard("bank", "prune", "--store", tmp_path / "store", "--keep", -1).code == 2
    pruned = hadamard("bank", "prune", "--store", tmp_path / "store", "--keep", 0)
    assert pruned.code == 0 and "2 earlier versions deleted" in pruned.err
    assert [one.history for one in store.served()] == [(), ()]


def test_of_publishers_at_once_none_is_lost_and_a_removal_leaves_all_or_nothing(adapters: Path, url: str):
    folders = [adapters / "first", adapters / "second"] * 2
    store = AdapterStore(url)
    writers = [AdapterStore(url) for _ in range(4)]
    for id in map("id{}".format, range(10)):
        with ThreadPoolExecutor(4) as pool:
            added = [pool.submit(writer.add, id, one) for writer, one in zip(writers, folders, strict=True)]
        shown = store.show(id)
        assert {shown.version, *shown.history} == {one.result().version for one in added}
        with ThreadPoolExecutor(2) as pool:
            ends = [
                pool.submit(writers[0].remove, id), pool.submit(writers[1].add, id, adapters / "first"),
            ]  # fmt: skip
        assert all(end.exception() is None for end in ends)
        if store.find(id) is not None:
            store.read(id)


def test_two_objects_of_one_object_store_wait_for_each_other(
    adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = MemoryFileSystem.cat_file

    def read_slowly(*args: Any, **options: Any) -> Any:
        try:
            return read(*args, **options)
        finally:
            time.sleep(0.05)

    writers = [AdapterStore(f"memory://{tmp_path.name}") for _ in range(2)]
    monkeypatch.setattr(MemoryFileSystem, "cat_file", read_slowly)
    with ThreadPoolExecutor(2) as pool:
        folders = (adapters / "first", adapters / "second")
        added = list(pool.map(lambda writer, one: writer.add("mood", one), writers, folders))
    shown = writers[0].show("mood")
    assert {shown.version, *shown.history} == {one.version for one in added}


def test_a_follower_outlives_what_it_did_not_expect(
    adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AdapterStore(tmp_path / "store")
    bank = AdapterBank(tiny_model("bert"))
    follower = Follower(bank, store, every_s=0.01)
    store.add("mood", adapters / "first")
    (tmp_path / "store/generation").write_bytes(b"\xff\xfe")
    follower.look()
    assert bank.ids == ["mood"] and not follower.problems
    with monkeypatch.context() as patch:
        patch.setattr(store, "generation", lambda: 1 / 0)
        follower.look()
        assert "ZeroDivisionError" in follower.problems[""]
    follower.look()
    assert not follower.problems


class Listed(MemoryFileSystem):
    """An object store whose listings are kept until they are dropped, as s3fs keeps them."""

    protocol = "listed"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).replace("listed://", "memory://"))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        path = self._strip_protocol(path)
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=True)
        return self.dircache[path] if detail else [entry["name"] for entry in self.dircache[path]]

    def invalidate_cache(self, path: Any = None) -> None:
        self.dircache.pop(self._strip_protocol(path), None)


def test_a_new_id_is_seen_where_listings_are_kept(adapters: Path, tmp_path: Path) -> None:
    fsspec.register_implementation("listed", Listed, clobber=True)
    publisher, store = (AdapterStore(f"{kind}://{tmp_path.name}") for kind in ("memory", "listed"))
    bank = AdapterBank(tiny_model("bert"))
    follower = Follower(bank, store)
    for ids in (["mood"], ["mood", "topic"]):
        publisher.add(ids[-1], adapters / "first")
        follower.look()
        assert sorted(bank.ids) == ids and not follower.problems


class Distant(AsyncFileSystem):
    """A file system that is asked for many files at once, as those of S3, Azure and Google are."""

    cachable = False

    def __init__(self, near: MemoryFileSystem) -> None:
        super().__init__()
        self.near, self.n_now, self.most = near, 0, 0

    async def _cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        self.n_now += 1
        self.most = max(self.most, self.n_now)
        await asyncio.sleep(0.05)
        self.n_now -= 1
        return self.near.cat_file(path)


def test_pointers_of_an_object_store_are_read_many_at_a_time(adapters: Path, tmp_path: Path) -> None:
    store = AdapterStore(f"memory://{tmp_path.name}")
    ids = [f"a{number}" for number in range(8)]
    version = {store.add(id, adapters / "first").version for id in ids}
    store._put("adapters/odd/current.json", b"damaged")
    store._fs = distant = Distant(store._fs)
    found = store.versions([*ids, "odd", "none"])
    assert distant.most == 10
    assert [set(found[id] for id in ids), found["odd"], found["none"]] == [version, None, None]
    assert store.versions(["none"]) == {"none": None} and store.versions([]) == {}


def test_a_look_that_is_stopped_ends_at_the_adapter_that_it_is_at(
    adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, bank = AdapterStore(tmp_path / "store"), AdapterBank(tiny_model("bert"))
    for number in range(5):
        store.add(f"a{number}", adapters / "first")
    follower, read = Follower(bank, store), store.read

    def stopping(id: str, *more: Any) -> Any:
        follower.stop()
        return read(id, *more)

    monkeypatch.setattr(store, "read", stopping)
    follower.look()
    assert bank.ids == ["a0"] and not follower.has_looked


def test_what_stays_unfit_is_read_once_and_what_was_away_again(
    adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, bank = AdapterStore(tmp_path / "store"), AdapterBank(tiny_model("bert"))
    follower, reads = Follower(bank, store), list[str]()
    version = store.add("mood", adapters / "first").version
    store.add("topic", adapters / "second")
    weights = tmp_path / "store/adapters/mood" / version / "adapter_model.safetensors"
    content, read = weights.read_bytes(), store.read

    def reading(id: str, *more: Any) -> Any:
        reads.append(id)
        if id == "topic" and reads.count("topic") == 1:
            with store._explained():
                raise OSError("the network is away")
        return read(id, *more)

    monkeypatch.setattr(store, "read", reading)
    weights.write_bytes(content[:-1])
    for _ in range(4):
        follower.look()
    assert (reads.count("mood"), reads.count("topic"), bank.ids) == (1, 2, ["topic"])
    assert follower.problems.keys() == {"mood"}
    store.add("mood", adapters / "first")
    follower.look()
    assert sorted(bank.ids) == ["mood", "topic"] and not follower.problems


def test_what_is_no_adapter_is_told_by_its_id(
    adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = AdapterStore(tmp_path / "store")
    shutil.copytree(adapters / "first", tmp_path / "odd")
    (tmp_path / "odd" / "adapter_model.safetensors").write_bytes(b"no weights")
    monkeypatch.setattr(store_module, "read_adapter", lambda folder: None)
    version = store.add("mood", tmp_path / "odd").version
    monkeypatch.undo()
    with pytest.raises(AdapterError) as told:
        store.read("mood")
    assert f"adapter 'mood', version {version!r}" in str(told.value) and "hadamard-store-" not in str(
        told.value
    )


def test_an_adapter_that_could_not_be_opened_for_once_is_read_again(
    adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, bank = AdapterStore(tmp_path / "store"), AdapterBank(tiny_model("bert"))
    follower = Follower(bank, store)
    store.add("mood", adapters / "first")

    def failing(folder: Path) -> None:
        try:
            raise OSError(errno.EMFILE, "Too many open files")
        except OSError as error:
            raise AdapterError("cannot be read") from error

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "read_adapter", failing)
        follower.look()
        assert follower.problems.keys() == {"mood"}
    follower.look()
    assert bank.ids == ["mood"] and not follower.problems
