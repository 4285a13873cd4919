"""Laws of the server: every answer is the named version's, limits hold, and whatever is sent gets no 5xx."""

import concurrent.futures
import functools
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from pydantic import BaseModel, ValidationError

from command import assert_refused, hadamard
from hadamard_adapter.errors import AdapterError, SettingsError
from hadamard_adapter.serving import AdapterStore, read_adapter, write_pack
from hadamard_adapter.serving.http.classify import ClassifyRequest
from hadamard_adapter.serving.http.predict import PredictRequest
from hadamard_adapter.serving.http.upload import unpack
from hadamard_adapter.serving.keys import find_key, make_key, read_keys
from hadamard_adapter.serving.limits import Limits
from hadamard_adapter.serving.load import load_bank
from serve_help import LABELS, Served, in_process, make_adapter, make_place, served, zipped

TEXTS = [f"w{index} " * (1 + index * 7 % 23) for index in range(40)]
N_REQUESTS = 1200


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Served]:
    store = AdapterStore(place / "store")
    for id in LABELS:
        store.add(id, place / f"{id}-0")
    with served(place / "model", place / "store", place / "log") as running:
        yield running


@pytest.fixture(scope="module")
def offline(place: Path, server: Served) -> dict[tuple[str, str], dict[str, list[float]]]:
    """(id, version) -> text -> probabilities, from a bank of the test's own."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    bank, scratch = load_bank(str(place / "model"), "cpu"), AdapterStore(place / "scratch")
    for id in LABELS:
        for index in range(2):
            version = scratch.add(id, place / f"{id}-{index}").version
            bank.add(id, place / f"{id}-{index}")
            answers = bank.predict(TEXTS, [id] * len(TEXTS))
            found[id, version] = {
                text: list(answer.probabilities.values()) for text, answer in zip(TEXTS, answers, strict=True)
            }
    return found


def assert_answers(reply: dict[str, Any], texts: list[str], offline: Any) -> None:
    """Every row of a reply is what the version that it names says offline."""
    for row in reply["data"]:
        expected = offline[row["model"], row["version"]][texts[row["index"]]]
        np.testing.assert_allclose(row["probs"], expected, atol=1e-4)


def test_every_answer_is_that_of_the_version_it_names_while_adapters_come_and_go(
    place: Path, server: Served, offline: Any
) -> None:
    stopped, seen = threading.Event(), set[tuple[str, str]]()

    def churn() -> None:
        index = 0
        with httpx.Client(base_url=server.url, timeout=30) as client:
            while not stopped.is_set():
                index += 1
                for id in ("mood", "topic"):
                    content = zipped(place / f"{id}-{index % 2}")
                    headers = {"content-type": "application/zip"}
                    reply = client.put(f"/v1/adapters/{id}", content=content, headers=headers)
                    assert reply.status_code == 200, reply.text
                if index % 5 == 0:  # 404: what another process added last is not served yet
                    assert client.delete("/v1/adapters/shop-size").status_code in (200, 404)
                    AdapterStore(place / "store").add("shop-size", place / f"shop-size-{index % 2}")

    def ask(seed: int) -> int:
        chance, n_answered = random.Random(seed), 0
        with httpx.Client(base_url=server.url, timeout=30) as client:
            for _ in range(N_REQUESTS // 4):
                texts, ids = chance.sample(TEXTS, chance.randint(1, 3)), chance.sample(list(LABELS), 2)
                reply = client.post("/v1/classify", json={"models": ids, "input": texts})
                if "shop-size" in ids and reply.status_code == 404:  # the one that is away at times
                    continue
                assert reply.status_code == 200, reply.text
                n_answered += 1
                assert len(reply.json()["data"]) == len(texts) * len(ids)
                assert_answers(reply.json(), texts, offline)
                seen.update((row["model"], row["version"]) for row in reply.json()["data"])
        return n_answered

    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        churner = pool.submit(churn)
        try:
            n_answered = sum(pool.map(ask, range(4)))
        finally:
            stopped.set()
        churner.result()
    assert n_answered > N_REQUESTS // 4  # a third asks only those that are never away
    assert len(seen) >= 5
    wait_for(lambda: "shop-size" in models(server))


def test_a_crossed_row_is_caught_by_the_same_check(server: Served, offline: Any) -> None:
    reply = server.client.post("/classify", json={"model": "mood", "input": TEXTS[:2]}).json()
    assert_answers(reply, TEXTS[:2], offline)
    reply["data"][0]["probs"] = reply["data"][1]["probs"]
    with pytest.raises(AssertionError):
        assert_answers(reply, TEXTS[:2], offline)


def models(server: Served) -> list[str]:
    return [model["id"] for model in server.client.get("/v1/models").json()["data"]]


def wait_for(holds: Any, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("path", ["/adapters/topic", "/adapters/topic/predict"])
def test_inference_client_gets_every_label_most_probable_first(
    server: Served, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it refuses local servers too
    found = InferenceClient(model=server.url + path).text_classification("w1 w2")
    assert {one.label for one in found} == set(LABELS["topic"])
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert len(InferenceClient(model=server.url + path).text_classification("w1 w2", top_k=1)) == 1


def test_tei_shape_has_a_list_for_one_input_and_a_list_of_lists_for_a_batch(server: Served) -> None:
    ask = lambda inputs: server.client.post("/adapters/mood/predict", json={"inputs": inputs})  # noqa: E731
    one = ask("w1")
    assert one.json() == ask(["w1"]).json() and len(one.json()) == 2
    assert [row["label"] for row in ask([["w1"], ["w2"]]).json()[0]] == [row["label"] for row in one.json()]
    assert one.headers["x-adapter-version"] == server.client.get("/v1/adapters/mood").json()["version"]


def test_vllm_shape(server: Served) -> None:
    body = {"model": "topic", "input": ["w1", "w2 w3"], "truncate_prompt_tokens": -1}
    reply = server.client.post("/classify", json=body).json()
    assert reply["object"] == "list" and reply["model"] == "topic"
    assert [row["index"] for row in reply["data"]] == [0, 1]
    for row in reply["data"]:
        assert row["num_classes"] == len(row["probs"]) == 3
        assert row["label"] == LABELS["topic"][int(np.argmax(row["probs"]))]
    assert reply["usage"]["prompt_tokens"] == reply["usage"]["total_tokens"] > 4


def put(server: Served, id: str, content: bytes, **query: Any) -> httpx.Response:
    headers = {"content-type": "application/zip"}
    return server.client.put(f"/v1/adapters/{id}", content=content, headers=headers, params=query)


def test_upload_dry_run_roll_back_and_removal(place: Path, server: Served) -> None:
    assert put(server, "new", zipped(place / "mood-0"), dry_run=True).json()["version"] is None
    assert server.client.get("/v1/adapters/new").status_code == 404
    first = put(server, "new", zipped(place / "mood-0", "folder/")).json()["version"]
    second = put(server, "new", zipped(place / "mood-1")).json()["version"]
    assert server.client.get("/v1/adapters/new").json()["history"] == [first] != [second]
    assert server.client.put("/v1/adapters/new", json={"version": first}).json()["version"] == first
    assert server.client.put("/v1/adapters/new", json={"version": "0" * 16}).status_code == 404
    page = server.client.get("/v1/adapters", params={"limit": 1}).json()
    assert len(page["data"]) == 1 and page["next"] == page["data"][0]["id"]
    assert server.client.delete("/v1/adapters/new").json()["removed"]
    assert server.client.delete("/v1/adapters/new").status_code == 404


def test_what_is_published_by_another_process_is_served_within_two_seconds(place: Path, server: Served):
    store = AdapterStore(place / "store")
    version = store.add("other", place / "topic-1").version
    wait_for(lambda: "other" in models(server), within_s=5)  # two, and three more on a busy machine
    assert server.client.get("/v1/adapters/other").json()["version"] == version
    store.remove("other")
    wait_for(lambda: "other" not in models(server), within_s=5)


def test_damaged_uploads_change_nothing(place: Path, server: Served) -> None:
    good, before = zipped(place / "mood-1"), server.client.get("/v1/adapters/mood").json()
    chance = random.Random(0)
    statuses: dict[int, int] = {}
    for index in range(60):
        bad = bytearray(good[: chance.randrange(len(good))] if index % 2 else good)
        if not index % 2:
            bad[chance.randrange(len(bad) // 2)] ^= 1 << chance.randrange(8)
        status = put(server, "mood", bytes(bad)).status_code
        statuses[status] = statuses.get(status, 0) + 1
    print("damaged uploads:", statuses)
    assert set(statuses) <= {200, 422} and statuses[422] >= 55  # a bit of a date may flip unnoticed
    if 200 not in statuses:
        assert server.client.get("/v1/adapters/mood").json() == before


@pytest.mark.parametrize(
    ("id", "status"),
    [("..%2fmood", (404, 405)), (".hidden", (422,)), ("a%20b", (422,)), ("%2e%2e", (404, 405, 422))],
)
def test_ids_that_are_paths_are_refused(
    place: Path, server: Served, id: str, status: tuple[int, ...]
) -> None:
    assert put(server, id, zipped(place / "mood-0")).status_code in status


def test_a_body_without_a_length_is_read_up_to_the_limit_and_a_zip_is_unpacked_up_to_its_own(
    server: Served, tmp_path: Path
) -> None:
    parts = iter([b"x" * 600_000] * 2)
    assert server.client.post("/classify", content=parts).status_code == 413
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("run.json", b"\0" * 10_000_000)
    with pytest.raises(AdapterError, match="expected at most 1000 bytes unpacked"):
        unpack(packed.getvalue(), tmp_path, 1000)
    assert not list(tmp_path.iterdir())


def test_zip_names_that_lead_elsewhere_are_refused(place: Path, server: Served) -> None:
    for prefix in ("../../", "/etc/x-"):
        reply = put(
            server, "evil", zipped(place / "mood-0", prefix + "evil/" if prefix == "../../" else prefix)
        )
        if prefix == "../../":  # the folder's name is not used; the files are an adapter all the same
            assert reply.status_code == 200 and not (place.parent / "evil").exists()
            server.client.delete("/v1/adapters/evil")
        else:
            assert reply.status_code == 422 and not Path("/etc/x-adapter_config.json").exists()


BAD: list[tuple[str, str, Any, int]] = [
    ("POST", "/classify", {"model": "moood", "input": "x"}, 404),
    ("POST", "/classify", {"model": "mood"}, 422),
    ("POST", "/classify", {"input": "x"}, 422),
    ("POST", "/classify", {"model": "mood", "models": ["topic"], "input": "x"}, 422),
    ("POST", "/classify", {"model": "mood", "input": []}, 422),
    ("POST", "/classify", {"model": "mood", "input": ["x"] * 33}, 422),
    ("POST", "/classify", {"models": ["mood"] * 2000, "input": ["x"] * 2000}, 422),
    ("POST", "/classify", {"model": "mood", "input": [None] * 150_000}, 422),
    ("POST", "/classify", {"model": "mood", "input": ["x"], "pairs": [1]}, 422),
    ("POST", "/classify", {"models": [1], "input": ["x"]}, 422),
    ("POST", "/classify", {"model": "mood", "input": ["x"], "pairs": ["y", "z"]}, 422),
    ("POST", "/classify", {"model": "mood", "input": "x" * 1_100_000}, 413),
    ("POST", "/adapters/mood/predict", {"inputs": [["a", "b", "c"]]}, 422),
    ("POST", "/adapters/mood", {"inputs": "x", "parameters": {"top_k": 0}}, 422),
    ("POST", "/adapters/mood", {"inputs": "x", "parameters": {"top_k": True}}, 422),
    ("POST", "/adapters/mood", {"inputs": "x", "parameters": {"function_to_apply": "none"}}, 422),
    ("POST", "/classify", {"model": "mood", "input": "x", "use_activation": False}, 422),
    ("GET", "/nowhere", None, 404),
    ("PUT", "/classify", {}, 405),
    ("PUT", "/v1/adapters/mood", {"version": 3}, 422),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), BAD)
def test_errors_have_one_shape(server: Served, method: str, path: str, body: Any, status: int) -> None:
    reply = server.client.request(method, path, json=body)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert error["code"] == status and error["message"] and error["type"]
    if body and body.get("model") == "moood":
        assert "did you mean 'mood'?" in error["message"]


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"[" * 5000, b'{"model": "mood", "input": "\\ud800"}'])
def test_malformed_bodies_are_the_clients_error(server: Served, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    assert 400 <= server.client.post("/classify", content=body, headers=headers).status_code < 500


@pytest.mark.parametrize("item", [None, 1e300, {}, [None], [[]], ["w1", 3]], ids=str)
@pytest.mark.parametrize("n_items", [3000, 20_000])
def test_a_list_of_wrong_items_is_one_error(item: Any, n_items: int) -> None:
    calls: list[tuple[type[BaseModel], dict[str, Any]]] = [(PredictRequest, {"inputs": [item] * n_items})]
    for field in ("input", "pairs", "models"):
        calls.append((ClassifyRequest, {"input": "w1", field: [item] * n_items}))
    for model, body in calls:
        with pytest.raises(ValidationError) as refused:
            model.model_validate(body)
        assert refused.value.error_count() == 1, body.keys()


def test_a_limit_that_is_no_number_is_refused() -> None:
    with pytest.raises(SettingsError, match="--timeout-s: expected a number above 0, received nan"):
        Limits(timeout_s=float("nan"))


@pytest.mark.parametrize("item", ["w1", 5, [5], ["w1"]], ids=str)
def test_a_long_list_is_refused_before_its_items_are_read(item: Any) -> None:
    for model, field in ((ClassifyRequest, "input"), (PredictRequest, "inputs")):
        with pytest.raises(ValidationError, match="expected at most 16384 items, received 20000"):
            model.model_validate({field: [item] * 20_000})


def test_too_many_texts_times_adapters_are_refused_before_there_are_rows(place: Path, tmp_path: Path) -> None:
    AdapterStore(tmp_path / "store").add("mood", place / "mood-0")
    body = {"models": ["mood"] * 1000, "input": ["w1"] * 1000}
    with in_process(place, tmp_path / "store") as (_, client):
        client.post("/classify", json={"model": "mood", "input": "w1"})
        tracemalloc.start()
        try:
            reply = client.post("/classify", json=body)
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert reply.status_code == 422 and "received 1000000" in reply.text
    assert peak_bytes < 10_000_000


def test_what_only_a_pack_holds_is_not_deleted_and_says_so(place: Path, tmp_path: Path) -> None:
    write_pack(tmp_path / "pack", [("packed", "v", read_adapter(place / "mood-0"))])
    with in_process(place, tmp_path / "store", tmp_path / "pack") as (_, client):
        reply = client.delete("/v1/adapters/packed")
        assert reply.status_code == 404 and "what a pack holds stays" in reply.json()["error"]["message"]
        assert client.post("/classify", json={"model": "packed", "input": "w1"}).status_code == 200


def test_what_is_stored_and_does_not_fit_can_be_removed(place: Path, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    version = store.add("odd", place / "mood-0").version
    (tmp_path / "store/adapters/odd" / version / "adapter_config.json").write_text("{}")
    with in_process(place, tmp_path / "store") as (_, client):
        assert client.get("/v1/problems").json() and "odd" not in client.get("/v1/models").text
        assert client.delete("/v1/adapters/odd").status_code == 200
        assert store.ids() == [] and client.delete("/v1/adapters/odd").status_code == 404


def test_deep_brackets_are_no_json(place: Path, tmp_path: Path) -> None:
    with in_process(place, tmp_path / "store") as (_, client):
        headers = {"content-type": "application/json"}
        deep = "[" * 200_000
        assert client.put("/v1/adapters/mood", content=deep, headers=headers).status_code == 400


def test_an_address_or_a_certificate_that_is_no_use_is_refused_before_the_model_is_loaded(
    place: Path, tmp_path: Path
) -> None:
    words = ("serve", "--model", tmp_path / "none", "--store", tmp_path / "store")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = hadamard(*words, "--port", port)
    assert found.code == 2 and f"--port {port}: cannot listen there" in found.err
    (tmp_path / "key.pem").write_text("no key")
    tls = ("--tls-cert", tmp_path / "key.pem", "--tls-key", tmp_path / "key.pem")
    found = hadamard(*words, "--port", 0, *tls)
    assert found.code == 2 and "expected a certificate and its own key as PEM" in found.err
    found = hadamard(*words, "--port", 0, "--tls-cert", tmp_path / "gone.pem", *tls[2:])
    assert found.code == 2 and "gone.pem': No such file" in found.err


def test_an_upload_is_answered_with_its_own_version(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = AdapterStore(tmp_path / "other").add("mood", place / "mood-0").version
    with in_process(place, tmp_path / "store") as (serving, client):
        take = serving.follower.take

        def take_later(id: str) -> None:
            serving.store.add(id, place / "mood-1")
            take(id)

        monkeypatch.setattr(serving.follower, "take", take_later)
        headers = {"content-type": "application/zip"}
        reply = client.put("/v1/adapters/mood", content=zipped(place / "mood-0"), headers=headers)
        assert reply.json()["version"] == expected
        assert client.get("/v1/adapters/mood").json()["history"] == [expected]


def test_pages_probes_and_metrics(server: Served) -> None:
    for path in ("/", "/docs"):
        text = server.client.get(path).text
        assert text.startswith("<!doctype html>") and "http://" not in text and "https://" not in text
    assert server.client.get("/health").status_code == server.client.get("/ready").status_code == 200
    limits = server.client.get("/info").json()["limits"]
    assert limits["queue_texts"] == 512 and limits.keys() == {limit.name for limit in fields(Limits)}
    server.client.post("/classify", json={"model": "mood", "input": "a secret text"})
    assert 'hadamard_texts_total{adapter="mood"}' in server.client.get("/metrics").text
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    assert any(line.get("path") == "/classify" and len(line["request_id"]) == 16 for line in lines)
    assert "secret" not in server.log.read_text()


def test_adapters_are_listed_page_by_page(place: Path, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    for id in ("b", "a-2", "c", "a", "d"):
        store.add(id, place / "mood-0")
    pages, after = list[list[str]](), ""
    with in_process(place, tmp_path / "store") as (_, client):
        while after is not None:
            page = client.get("/v1/adapters", params={"after": after, "limit": 2}).json()
            assert page["n_adapters"] == 5
            pages.append([one["id"] for one in page["data"]])
            after = page["next"]
    assert pages == [["a", "a-2"], ["b", "c"], ["d"]]


def test_a_full_queue_is_429_with_the_seconds_to_wait_and_then_open_again(
    place: Path, tmp_path: Path
) -> None:
    AdapterStore(tmp_path / "store").add("mood", place / "mood-0")
    with in_process(place, tmp_path / "store", limits=Limits(queue_texts=1)) as (serving, client):
        body = {"model": "mood", "input": ["w1"]}
        never = client.post("/classify", json={**body, "input": ["w1", "w2"]})
        assert never.status_code == 422 and "expected 1 to 1 predictions" in never.text
        serving.batcher.n_rows += 1
        reply = client.post("/classify", json=body)
        assert reply.status_code == 429 and int(reply.headers["retry-after"]) >= 1
        assert reply.json()["error"]["type"] == "queue_full" and "limit 1" in reply.json()["error"]["message"]
        serving.batcher.n_rows -= 1
        assert client.post("/classify", json=body).status_code == 200


def test_a_pack_is_served_with_few_of_its_adapters_held(place: Path, offline: Any, tmp_path: Path) -> None:
    ids, store = ("mood", "topic"), AdapterStore(tmp_path / "source")
    for id in ids:
        store.add(id, place / f"{id}-0")
    made = hadamard("bank", "pack", "--store", tmp_path / "source", "--output", tmp_path / "pack")
    assert made.code == 0, made.err
    words = ("--pack", tmp_path / "pack", "--max-resident", 1)
    with served(place / "model", tmp_path / "store", tmp_path / "log", *words) as server:
        for id in (*ids, *ids):
            reply = server.client.post("/classify", json={"model": id, "input": TEXTS[:3]})
            assert reply.status_code == 200, reply.text
            assert_answers(reply.json(), TEXTS[:3], offline)
            assert models(server) == [id]


def test_a_full_queue_refuses_at_once_deadlines_hold_and_vanished_clients_cost_nothing(
    place: Path, tmp_path: Path
) -> None:
    AdapterStore(tmp_path / "store").add("mood", place / "mood-0")
    limits = ("--queue-texts", 40, "--timeout-s", 0.02, "--request-texts", 40)
    with served(place / "model", tmp_path / "store", tmp_path / "log", *limits) as server:
        body = {"model": "mood", "input": ["w1 " * 60] * 21}

        def ask(_: int) -> tuple[int, float, str | None]:
            started = time.perf_counter()
            reply = httpx.post(server.url + "/classify", json=body, timeout=30)
            return reply.status_code, time.perf_counter() - started, reply.headers.get("retry-after")

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            found = list(pool.map(ask, range(40)))
        assert {status for status, _, _ in found} <= {200, 429, 504}, found
        assert all(int(after or 0) >= 1 for status, _, after in found if status == 429)
        assert {429, 504} & {status for status, _, _ in found}
        host, port = server.url.removeprefix("http://").split(":")
        for _ in range(20):
            text = json.dumps({"model": "mood", "input": "w1"})
            with socket.create_connection((host, int(port))) as client:
                head = f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(text)}\r\n"
                client.sendall(f"{head}Content-Type: application/json\r\n\r\n{text}".encode())
        metrics = lambda: server.client.get("/metrics").text  # noqa: E731
        wait_for(lambda: "hadamard_texts_under_way 0.0" in metrics())


def test_keys_use_what_they_may_and_learn_of_nothing_else(place: Path, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    for id in LABELS:
        store.add(id, place / f"{id}-0")
    shop = make_key(tmp_path / "keys", "shop", ["shop-*"])
    root = make_key(tmp_path / "keys", "root", ["*"], may_administrate=True)
    clerk = make_key(tmp_path / "keys", "clerk", ["shop-*"], may_administrate=True)
    words = ("--keys", tmp_path / "keys")
    with served(place / "model", tmp_path / "store", tmp_path / "log", *words) as server:

        def ask(key: str | None, id: str) -> httpx.Response:
            headers = {} if key is None else {"authorization": f"Bearer {key}".encode()}
            return server.client.post("/classify", json={"model": id, "input": "w1"}, headers=headers)

        assert [ask(key, "mood").status_code for key in (None, "wrong", "ü", root)] == [401, 401, 401, 200]
        assert ask(shop, "shop-size").status_code == 200
        there, missing = ask(shop, "mood"), ask(shop, "nood")
        assert there.status_code == missing.status_code == 403
        assert there.text.replace("mood", "nood") == missing.text
        assert "mood" not in ask(shop, "shop-mood").text.replace("shop-mood", "")
        headers = {"authorization": f"Bearer {shop}"}
        assert [one["id"] for one in server.client.get("/v1/models", headers=headers).json()["data"]] == [
            "shop-size"
        ]
        assert server.client.get("/v1/adapters", headers=headers).json()["n_adapters"] == 1
        assert server.client.delete("/v1/adapters/shop-size", headers=headers).status_code == 403
        assert server.client.get("/metrics", headers=headers).status_code == 403
        assert shop not in server.log.read_text() and shop not in (tmp_path / "keys").read_text()
        zip_headers = {"content-type": "application/zip"}
        routes: list[tuple[str, str, dict[str, Any], tuple[int, int]]] = [
            # method, path, what is sent, status for the caller's key and the administrator's of shop-* alone
            ("PUT", "/v1/adapters/mood", {"content": zipped(place / "mood-1")}, (403, 403)),
            ("DELETE", "/v1/adapters/mood", {}, (403, 403)),
            ("PUT", "/v1/adapters/shop-size", {"content": zipped(place / "shop-size-0")}, (403, 200)),
            ("GET", "/v1/adapters/mood", {}, (403, 403)),
            ("GET", "/v1/adapters/shop-size", {}, (200, 200)),
            ("POST", "/tokenize", {"json": {"model": "mood", "prompt": "w1"}}, (403, 403)),
            ("GET", "/v1/problems", {}, (403, 200)),
        ]
        for method, path, sent, expected in routes:
            found = []
            for key in (None, shop, clerk):
                given = {} if key is None else {"authorization": f"Bearer {key}"}
                more = zip_headers if method == "PUT" else {}
                reply = server.client.request(method, path, headers=given | more, **sent)
                found.append(reply.status_code)
            assert found == [401, *expected], (method, path)
        owner, own = ({"authorization": f"Bearer {key}"} for key in (root, clerk))
        assert server.client.get("/metrics", headers=owner).status_code == 200
        assert server.client.get("/metrics", headers=own).status_code == 403, "it names all adapters"
        for id in ("mood", "shop-size"):
            (tmp_path / "store/adapters" / id / "current.json").write_text("damaged")
        (tmp_path / "store/generation").write_text("another")
        told = lambda given: server.client.get("/v1/problems", headers=given).json()["problems"].keys()  # noqa: E731
        wait_for(lambda: told(owner) == {"mood", "shop-size"})
        assert told(own) == {"shop-size"}
        assert ask(root, "mood").status_code == 200


def test_sigterm_ends_what_is_in_flight_and_leaves_with_zero(place: Path, tmp_path: Path) -> None:
    AdapterStore(tmp_path / "store").add("mood", place / "mood-0")
    words = ("--drain-s", 3, "--batch-tokens", 64, "--timeout-s", 60)  # a request takes many passes
    with served(place / "model", tmp_path / "store", tmp_path / "log", *words) as server:
        body = {"model": "mood", "input": ["w1 " * 60] * 32}
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            ask = functools.partial(httpx.post, server.url + "/classify", json=body, timeout=30)
            under_way = [pool.submit(ask) for _ in range(4)]
            wait_for(lambda: "hadamard_texts_under_way 0.0" not in server.client.get("/metrics").text)
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: server.client.get("/ready").status_code == 503)
            assert server.client.get("/health").status_code == 200
            found = [task.result().status_code for task in under_way]
            assert set(found) <= {200, 503} and 200 in found
        assert server.process.wait(20) == 0


def test_a_store_that_goes_away_or_is_damaged_does_not_stop_the_serving(place: Path, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    store.add("mood", place / "mood-0")
    with served(place / "model", tmp_path / "store", tmp_path / "log") as server:
        ask = lambda: server.client.post("/classify", json={"model": "mood", "input": "w1"})  # noqa: E731
        before = ask().json()["data"]
        version = store.add("mood", place / "mood-1").version
        wait_for(lambda: ask().json()["data"][0]["version"] == version)
        after = ask().json()["data"]
        weights = next((tmp_path / "store/adapters/mood").glob(f"{before[0]['version']}/*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-9])
        pointer = tmp_path / "store/adapters/mood/current.json"
        pointer.write_text(json.dumps({"version": before[0]["version"], "history": [version]}))
        (tmp_path / "store/generation").write_text("damaged")
        wait_for(lambda: "mood" in server.client.get("/v1/problems").json()["problems"])
        assert ask().json()["data"] == after
        (tmp_path / "store").rename(tmp_path / "away")
        wait_for(lambda: "" in server.client.get("/v1/problems").json()["problems"])
        assert ask().json()["data"] == after
        (tmp_path / "store").write_text("no folder")
        assert put(server, "new", zipped(place / "mood-0")).status_code == 503
        assert ask().json()["data"] == after


def test_a_publisher_that_is_killed_is_never_half_visible(place: Path, server: Served, offline: Any) -> None:
    code = (
        "import sys; from hadamard_adapter.serving import AdapterStore\n"
        "store = AdapterStore(sys.argv[1])\nprint('go', flush=True)\n"
        "while True:\n    for i in (0, 1): store.add('mood', f'{sys.argv[2]}/mood-{i}')"
    )
    for index in range(3):
        words = [sys.executable, "-c", code, str(place / "store"), str(place)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline()
        time.sleep(0.1 + 0.037 * index)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        reply = server.client.post("/classify", json={"model": "mood", "input": TEXTS[:3]})
        assert_answers(reply.json(), TEXTS[:3], offline)
    assert AdapterStore(place / "store").verify()[1] == []


def test_without_keys_other_machines_are_not_listened_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(lambda: ["serve", "--model", "m", "--store", "s", "--host", "0.0.0.0"], "--keys FILE")
    assert_refused(lambda: ["serve", "--model", "m", "--store", "s", "--port", "70000"], "0 to 65535")
    assert_refused(lambda: ["serve", "--model", "m", "--store", "s", "--queue-texts", "0"], "--queue-texts")
    assert_refused(lambda: ["serve", "--model", "m", "--store", "s", "--tls-cert", "x"], "both or none")


def test_pairs_multi_label_and_regression_are_answered_as_offline(place: Path, tmp_path: Path) -> None:
    kinds = {"tags": ("multi_label_classification", ("x", "y", "z")), "stars": ("regression", ("value",))}
    store, bank = AdapterStore(tmp_path / "store"), load_bank(str(place / "model"), "cpu")
    for seed, (id, (kind, labels)) in enumerate(kinds.items()):
        folder = make_adapter(place / "model", tmp_path / id, labels, 90 + seed, kind)
        store.add(id, folder)
        bank.add(id, folder)
    texts, seconds, ids = ["w10 w50", "w20"], ["w41", "w42 w43"], list(kinds)
    with served(place / "model", tmp_path / "store", tmp_path / "log") as server:
        for pairs in (None, seconds):
            body = {"models": ids, "input": texts, "pairs": pairs}
            rows = server.client.post("/classify", json=body).json()["data"]
            expected = bank.predict(
                [text for text in texts for _ in ids],
                ids * 2,
                None if pairs is None else [pair for pair in pairs for _ in ids],
            )
            assert [(row["index"], row["model"]) for row in rows] == [(i, id) for i in range(2) for id in ids]
            for row, one in zip(rows, expected, strict=True):
                np.testing.assert_allclose(row["probs"], list(one.probabilities.values()), atol=1e-4)
                assert row["label"] is None and row["labels"] == (
                    list(one.label) if one.label is not None else None
                )
                assert row["value"] == pytest.approx(one.value, abs=1e-4)
        inputs = [list(pair) for pair in zip(texts, seconds, strict=True)]
        scores = server.client.post("/adapters/stars/predict", json={"inputs": inputs}).json()
        assert [row[0]["label"] for row in scores] == ["value"] * 2
        assert [row[0]["score"] for row in scores] == pytest.approx(
            [one.value for one in expected[1::2]], abs=1e-4
        )


def test_a_key_is_made_by_the_command(tmp_path: Path) -> None:
    made = hadamard("serve-key", "--keys", tmp_path / "keys", "--name", "shop", "--ids", "shop-*")
    assert made.code == 0 and len(made.out.strip()) == 43
    assert made.out.strip() not in (tmp_path / "keys").read_text()
    words = ("serve-key", "--keys", tmp_path / "keys", "--name", "root", "--may-administrate")
    secret = hadamard(*words).out.strip()
    shop, root = read_keys(str(tmp_path / "keys"))
    assert (shop.ids, shop.may_administrate) == (("shop-*",), False)
    assert root.may_administrate and find_key((shop, root), secret) == root


def test_no_request_that_the_description_allows_or_forbids_gets_a_5xx(server: Served, tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "schemathesis"
    words = ["--checks", "not_a_server_error", "--max-examples", "12", "--seed", "1"]
    run = subprocess.run(
        [program, "run", f"{server.url}/openapi.json", *words, "--phases", "examples,coverage,fuzzing"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
