"""Laws of a server in trouble: a store that hangs, damaged adapters, clients that go, bugs; others go on."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from hadamard_adapter.errors import AdapterError
from hadamard_adapter.serving import AdapterStore, follow, read_adapter, write_pack
from hadamard_adapter.serving.http.errors import ApiError
from hadamard_adapter.serving.limits import Limits
from hadamard_adapter.serving.source import BankAdapter
from serve_help import in_process, make_place, zipped

ASKED = {"model": "mood", "input": "w1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def store(place: Path, tmp_path: Path) -> Path:
    AdapterStore(tmp_path / "store").add("mood", place / "mood-0")
    return tmp_path / "store"


@contextlib.contextmanager
def hanging(monkeypatch: pytest.MonkeyPatch, store: AdapterStore, *names: str) -> Iterator[None]:
    """Methods of a store that answer when the block is left."""
    answers = threading.Event()

    def wait_for_answer(act: Any) -> Any:
        def waiting(*arguments: Any) -> Any:
            assert answers.wait(60)
            return act(*arguments)

        return waiting

    for name in names:
        monkeypatch.setattr(store, name, wait_for_answer(getattr(store, name)))
    try:
        yield
    finally:
        answers.set()


def test_a_store_that_hangs_holds_up_nobody_who_does_not_need_it(
    place: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(timeout_s=5)
    with (
        in_process(place, store, limits=limits) as (serving, client),
        ThreadPoolExecutor(50) as pool,
        hanging(monkeypatch, serving.store, "find", "add"),
    ):
        upload = {"content": zipped(place / "mood-1"), "headers": {"content-type": "application/zip"}}
        put = pool.submit(client.put, "/v1/adapters/mood", **upload)
        asked = [pool.submit(client.get, "/v1/adapters/mood") for _ in range(48)]
        time.sleep(0.5)
        for path in ("/health", "/ready", "/info", "/v1/models", "/v1/adapters", "/metrics"):
            assert client.get(path).status_code == 200
        assert client.post("/classify", json=ASKED).status_code == 200
        replies = [one.result().json() for one in asked]
        assert {reply["history"] is None for reply in replies} == {True}, "the store did not say"
        assert put.result().status_code == 503


def test_a_store_that_hangs_does_not_keep_a_server_from_its_end(
    place: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "STOP_S", 0.2)
    answers, looks = threading.Event(), threading.Event()

    def generation() -> str:
        looks.set()
        assert answers.wait(60)
        return ""

    with in_process(place, store) as (serving, _):
        monkeypatch.setattr(serving.store, "generation", generation)
        assert looks.wait(30)
        started = time.monotonic()
    assert time.monotonic() - started < 20
    answers.set()


def slow(act: Any, seconds: float, done: list[Any]) -> Any:
    """A method that takes its time, and notes what it was called with once it is done."""

    def slowly(*arguments: Any) -> Any:
        time.sleep(seconds)
        found = act(*arguments)
        done.append(arguments)
        return found

    return slowly


def test_many_who_ask_a_slow_store_wait_for_each_other(
    place: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_process(place, store) as (serving, client), ThreadPoolExecutor(70) as pool:
        monkeypatch.setattr(serving.store, "find", slow(serving.store.find, 0.3, []))
        asked = [pool.submit(client.get, "/v1/adapters/mood") for _ in range(70)]
        assert [one.result().json()["history"] for one in asked] == [[]] * 70


def test_who_reads_a_store_that_hangs_takes_no_place_of_who_changes_it(
    place: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = {"content": zipped(place / "mood-1"), "headers": {"content-type": "application/zip"}}
    with (
        in_process(place, store, limits=Limits(timeout_s=20)) as (serving, client),
        ThreadPoolExecutor(50) as pool,
        hanging(monkeypatch, serving.store, "find"),
    ):
        asked = [pool.submit(client.get, "/v1/adapters/mood") for _ in range(48)]
        time.sleep(0.5)
        assert client.put("/v1/adapters/mood", **upload).status_code == 200
        assert not any(one.done() for one in asked)


def test_a_place_at_the_store_comes_back_and_a_change_that_fails_late_is_logged(
    place: Path, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    upload = {"content": zipped(place / "mood-1"), "headers": {"content-type": "application/zip"}}
    with in_process(place, store, limits=Limits(timeout_s=1)) as (serving, client):
        with ThreadPoolExecutor(20) as pool, monkeypatch.context() as patch:
            with hanging(patch, serving.store, "add"):
                puts = [pool.submit(client.put, "/v1/adapters/mood", **upload) for _ in range(12)]
                messages = [one.result().json()["error"]["message"] for one in puts]
            assert {message.rpartition("; ")[2] for message in messages} == {
                "a change may still be made",
                "nothing was changed",
            }
        deadline = time.monotonic() + 30
        while serving.changes._places._value < 8:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with monkeypatch.context() as patch:
            answers = threading.Event()

            def fail(*arguments: Any) -> Any:
                assert answers.wait(60)
                raise AdapterError("the disk is read-only")

            patch.setattr(serving.store, "add", fail)
            assert client.put("/v1/adapters/mood", **upload).status_code == 503
            answers.set()
            while "failed late" not in caplog.text:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        (record,) = [record for record in caplog.records if "failed late" in record.message]
        assert "the disk is read-only" in record.problem  # type: ignore[attr-defined]
        with monkeypatch.context() as patch:

            def no_thread(self: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            for _ in range(20):
                with patch.context() as inner:
                    inner.setattr(threading.Thread, "start", no_thread)
                    reply = client.portal.call(_put_once, serving)  # type: ignore[union-attr]
                assert "can't start new thread; nothing was changed" in reply
        assert client.put("/v1/adapters/mood", **upload).status_code == 200


async def _put_once(serving: Any) -> str:
    with pytest.raises(ApiError) as raised:
        await serving.changes.run(5.0, serving.store.find, "mood")
    assert raised.value.status_code == 503
    return str(raised.value.detail)


def test_a_change_that_has_begun_is_made_before_a_server_ends(
    place: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = {"content": zipped(place / "mood-1"), "headers": {"content-type": "application/zip"}}
    done: list[Any] = []
    with in_process(place, store, limits=Limits(timeout_s=0.2)) as (serving, client):
        monkeypatch.setattr(serving.store, "add", slow(serving.store.add, 1.5, done))
        assert client.put("/v1/adapters/mood", **upload).status_code == 503
        assert not done
    assert done and len(AdapterStore(store).show("mood").history) == 1


def test_a_server_is_ready_when_the_store_has_been_read_once(
    place: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: AdapterStore) -> str:
        raise AdapterError("away")

    with monkeypatch.context() as patch:
        patch.setattr(AdapterStore, "generation", away)
        with in_process(place, store) as (_, client):
            assert client.get("/health").status_code == 200
            assert client.get("/ready").status_code == 503
            assert client.get("/v1/problems").json()["problems"] == {"": "away"}
            patch.undo()
            deadline = time.monotonic() + 30
            while client.get("/ready").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert client.post("/classify", json=ASKED).status_code == 200


def packed(place: Path, folder: Path) -> BankAdapter:
    """Makes a pack of one adapter, "packed", that is damaged."""
    adapter = read_adapter(place / "mood-0")
    write_pack(folder, [("packed", "v", adapter)])
    (shard,) = folder.glob("shard-*")
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 255]))
    return adapter


def test_a_damaged_adapter_of_a_pack_is_no_missing_one_and_who_runs_the_server_is_told(
    place: Path, store: Path, tmp_path: Path
) -> None:
    adapter = packed(place, tmp_path / "pack")
    with in_process(place, store, tmp_path / "pack") as (serving, client):
        asked = {"model": "packed", "input": "w1"}
        replies = [
            client.post("/classify", json=asked),
            client.post("/adapters/packed", json={"inputs": "w1"}),
            client.post("/tokenize", json={"model": "packed", "prompt": "w1"}),
            client.get("/v1/adapters/packed"),
        ]
        for reply in replies:
            error = reply.json()["error"]
            assert (reply.status_code, error["type"]) == (503, "unreadable_adapter"), reply.text
            assert str(tmp_path) not in reply.text
        assert "not what was packed" in client.get("/v1/problems").json()["problems"]["packed"]
        assert "hadamard_store_problems 1.0" in client.get("/metrics").text
        assert client.post("/classify", json=ASKED).status_code == 200
        serving.bank.add("packed", adapter)
        assert client.post("/classify", json=asked).status_code == 200
        assert client.get("/v1/problems").json()["problems"] == {}


def test_a_pack_that_is_away_is_no_fault_of_who_asks(place: Path, store: Path, tmp_path: Path) -> None:
    write_pack(tmp_path / "pack", [("packed", "v", read_adapter(place / "mood-0"))])
    with in_process(place, store, tmp_path / "pack") as (serving, client):
        (tmp_path / "pack").rename(tmp_path / "away")
        for reply in (
            client.post("/classify", json={"model": "packed", "input": "w1"}),
            client.post("/tokenize", json={"model": "packed", "prompt": "w1"}),
            client.get("/v1/adapters/packed"),
            client.post("/classify", json={"model": "made-up", "input": "w1"}),
        ):
            error = reply.json()["error"]
            assert (reply.status_code, error["type"]) == (503, "unreadable_adapter"), reply.text
            assert str(tmp_path) not in reply.text
        (problem,) = client.get("/v1/problems").json()["problems"].values()
        assert "cannot be read" in problem and len(serving.unread) == 1
        assert client.delete("/v1/adapters/packed").status_code == 404, "what a pack holds stays"
        removed = client.delete("/v1/adapters/mood")
        assert (removed.status_code, removed.json()["is_in_pack"]) == (200, None)
        (tmp_path / "away").rename(tmp_path / "pack")
        assert client.post("/classify", json={"model": "packed", "input": "w1"}).status_code == 200
        assert client.get("/v1/problems").json()["problems"] == {}


def test_an_id_that_a_pack_alone_can_have_is_shown(place: Path, store: Path, tmp_path: Path) -> None:
    write_pack(tmp_path / "pack", [("kunde 7", "v", read_adapter(place / "mood-0"))])
    with in_process(place, store, tmp_path / "pack") as (_, client):
        reply = client.get("/v1/adapters/kunde 7")
        assert (reply.status_code, reply.json()["id"]) == (200, "kunde 7"), reply.text


def test_an_adapter_that_goes_while_it_is_asked_for_names_no_other(
    place: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_process(place, store) as (serving, client):
        monkeypatch.setattr(type(serving), "check_ids", lambda *_: None)  # it was there then
        reply = client.post("/classify", json={"model": "mood-00", "input": "w1"})
        assert (reply.status_code, reply.json()["error"]["type"]) == (404, "no_such_adapter"), reply.text
        assert "mood-0'" not in reply.text and "removed in the meantime" in reply.text


def test_an_adapter_whose_numbers_overflow_is_no_bug_of_the_server(place: Path, store: Path) -> None:
    with in_process(place, store) as (serving, client):
        adapter = read_adapter(place / "mood-0")
        huge = {key: torch.full_like(tensor, 3e38) for key, tensor in adapter.head.items()}
        serving.bank.add("huge", dataclasses.replace(adapter, head=huge))
        reply = client.post("/classify", json={"model": "huge", "input": "w1"})
        assert (reply.status_code, reply.json()["error"]["type"]) == (503, "diverged")
        assert "huge" in reply.json()["error"]["message"]
        assert client.post("/classify", json=ASKED).status_code == 200


def test_a_bug_is_answered_and_logged_with_the_id_of_its_request(
    place: Path, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with in_process(place, store) as (serving, client):
        monkeypatch.setattr(serving.bank, "tokenize", lambda *arguments: 1 / 0)
        reply = client.post("/classify", json=ASKED, headers={"x-request-id": "one"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (500, "bug")
    assert reply.headers["x-request-id"] == "one"
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.request_id == "one" and "ZeroDivisionError" in caplog.text  # type: ignore[attr-defined]


@pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/adapters/new"), ("POST", "/classify")])
def test_a_client_that_goes_in_the_middle_of_a_body_is_no_bug(
    method: str, path: str, place: Path, store: Path
) -> None:
    with in_process(place, store) as (_, client):
        kind = "application/zip" if method == "PUT" else "application/json"
        head = {"host": "localhost", "content-type": kind, "content-length": "1000"}
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(),
            "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1",
            "headers": [(name.encode(), value.encode()) for name, value in head.items()],
            "client": ("127.0.0.1", 1), "server": ("localhost", 80), "app": client.app,
        }  # fmt: skip
        messages = iter([{"type": "http.request", "body": b"PK", "more_body": True}])
        sent: list[Any] = []

        async def receive() -> Any:
            return next(messages, {"type": "http.disconnect"})

        async def send(message: Any) -> None:
            sent.append(message)

        assert client.portal is not None
        client.portal.call(client.app, scope, receive, send)
        assert sent[0]["status"] == 499
        page = client.get("/metrics").text
        assert 'status="499"' in page and 'hadamard_refused_total{reason="client_gone"} 1.0' in page
        assert 'status="400"' not in page and 'status="500"' not in page


def test_while_a_server_ends_nothing_new_is_begun(place: Path, store: Path) -> None:
    with in_process(place, store) as (serving, client):
        serving.is_open = False
        upload = {"content": zipped(place / "mood-1"), "headers": {"content-type": "application/zip"}}
        replies: list[httpx.Response] = [
            client.post("/classify", json=ASKED),
            client.post("/tokenize", json={"model": "mood", "prompt": "w1"}),
            client.put("/v1/adapters/new", **upload),
            client.delete("/v1/adapters/mood"),
            client.get("/ready"),
        ]
        assert {reply.status_code for reply in replies} == {503}
        assert serving.store.ids() == ["mood"] and client.get("/health").status_code == 200


def test_trouble_of_the_store_is_not_the_client_s(
    place: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_process(place, store) as (serving, client):
        version = AdapterStore(store).show("mood").version

        def away(*arguments: Any) -> Any:
            with serving.store._explained():
                raise OSError("the network is away")

        with monkeypatch.context() as patch:
            patch.setattr(serving.store, "read", away)
            reply = client.put("/v1/adapters/mood", json={"version": version})
        assert (reply.status_code, reply.json()["error"]["type"]) == (503, "store")
        remove = serving.store.remove

        def removed_by_another(id: str) -> None:
            remove(id)
            remove(id)

        monkeypatch.setattr(serving.store, "remove", removed_by_another)
        assert client.delete("/v1/adapters/mood").status_code == 404
