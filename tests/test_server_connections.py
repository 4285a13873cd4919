"""Laws of connections: TLS, slow and vanishing clients, foreign Host headers, and vLLM's own client."""

import json
import select
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests

from hadamard_adapter.serving import AdapterStore
from serve_help import LABELS, Served, make_place, served

TIMEOUT_S = 1.0
BODY = json.dumps({"model": "mood", "input": "w1"}).encode()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = make_place(tmp_path_factory.mktemp("connections"))
    AdapterStore(place / "store").add("mood", place / "mood-0")
    return place


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Served]:
    with served(place / "model", place / "store", place / "log", "--timeout-s", TIMEOUT_S) as running:
        yield running


def connect(server: Served, host: str = "localhost", size: int = len(BODY)) -> socket.socket:
    """A connection that has sent the head of POST /classify."""
    address, port = server.url.rpartition("://")[2].split(":")
    client = socket.create_connection((address, int(port)), timeout=10 * TIMEOUT_S)
    head = f"POST /classify HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode())
    return client


def answer(server: Served) -> None:
    """The server answers another client."""
    assert server.client.post("/classify", json={"model": "mood", "input": "w1"}).status_code == 200


def test_a_body_that_comes_a_byte_at_a_time_is_refused_in_time_and_holds_nobody_up(server: Served) -> None:
    with connect(server) as client:
        stopped, sent_all = threading.Event(), threading.Event()

        def trickle() -> None:
            for byte in BODY[:-1]:
                if stopped.wait(TIMEOUT_S / 5):
                    return
                try:
                    client.sendall(bytes([byte]))
                except OSError:  # closed by the server
                    return
            sent_all.set()

        sender, started = threading.Thread(target=trickle), time.monotonic()
        sender.start()
        answer(server)
        assert not select.select([client], [], [], 0)[0], "while the slow one is still waited for"
        reply = read_all(client)  # the connection is closed, as what else comes is no request
        took_s = time.monotonic() - started
        stopped.set()
        sender.join()
        assert reply.startswith(b"HTTP/1.1 408") and reply.count(b"HTTP/1.1") == 1 and b'"slow_body"' in reply
        assert took_s > 0.9 * TIMEOUT_S and not sent_all.is_set()


def read_all(client: socket.socket) -> bytes:
    """What comes until the server closes the connection, in however many pieces."""
    found = b""
    while True:
        try:
            more = client.recv(65536)
        except ConnectionResetError:
            return found
        if not more:
            return found
        found += more


def test_a_client_that_reads_nothing_does_not_keep_a_server_from_its_end(place: Path, tmp_path: Path) -> None:
    words = ("--timeout-s", TIMEOUT_S, "--drain-s", 0)
    with served(place / "model", place / "store", tmp_path / "log", *words) as running:
        address, port = running.url.rpartition("://")[2].split(":")
        with socket.create_connection((address, int(port)), timeout=10) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
            client.sendall(200 * request)
            answer(running)
            time.sleep(TIMEOUT_S)
            running.process.send_signal(signal.SIGTERM)
            running.process.wait(15 * TIMEOUT_S)


def test_clients_that_vanish_in_the_middle_of_a_body_leave_nothing_behind(server: Served) -> None:
    for n_sent in (0, 1, len(BODY) // 2, len(BODY)):
        for _ in range(5):
            with connect(server) as client:
                client.sendall(BODY[:n_sent])
    answer(server)
    deadline = time.monotonic() + 30
    while "hadamard_texts_under_way 0.0" not in server.client.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "traceback" not in server.log.read_text(encoding="utf-8").lower()


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("localhost:9", 200), ("127.0.0.1:9", 200), ("[::1]:9", 200), ("books.example", 421),
     ("localhost.books.example", 421), ("127.0.0.1.books.example:9", 421), ("", 421)],
)  # fmt: skip
def test_without_keys_only_names_of_this_machine_are_answered(server: Served, host: str, status: int) -> None:
    with connect(server, host) as client:
        client.sendall(BODY)
        assert client.recv(65536).split()[1] == str(status).encode()


def test_tls_is_spoken_where_a_certificate_is_given_and_plain_http_is_not(
    place: Path, tmp_path: Path
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*words, "-keyout", key, "-out", cert], check=True, capture_output=True)
    options = ("--tls-cert", cert, "--tls-key", key)
    with served(place / "model", place / "store", tmp_path / "log", *options) as server:
        assert server.url.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(cert))
        reply = httpx.post(f"{server.url}/classify", content=BODY, headers=_JSON, verify=trusting)
        assert reply.status_code == 200 and reply.json()["data"][0]["label"] in LABELS["mood"]
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{server.url}/health")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.url.replace('https', 'http')}/health")


_JSON = {"content-type": "application/json"}


def test_vllms_example_clients_get_what_they_read(server: Served) -> None:
    """Their requests and what they read of the replies; scripts/vllm_clients.py runs the clients themselves.

    Source: vllm-project/vllm@926c71f:examples/pooling/classify/openai_classification_client.py and
    vllm-project/vllm@3ff2de9:examples/pooling/classify/classification_online.py
    """
    accepting = {"accept": "application/json", "Content-Type": "application/json"}
    model = requests.get(server.url + "/v1/models", headers=accepting, timeout=10).json()["data"][0]["id"]
    prompts = [
        "Hello, my name is",
        "The president of the United States is",
        "The capital of France is",
        "The future of AI is",
    ]
    replies: list[Any] = [
        requests.post(
            server.url + "/classify",
            headers=headers,
            json={"model": model, "input": prompts},
            timeout=10,
        ).json()
        for headers in ({"User-Agent": "Test Client"}, accepting)
    ]
    ids = [
        requests.post(server.url + "/tokenize", json={"model": model, "prompt": prompt}, timeout=10).json()
        for prompt in prompts
    ]
    assert all(one["count"] == len(one["tokens"]) <= one["max_model_len"] for one in ids)
    by_ids = {"model": model, "input": [one["tokens"] for one in ids]}
    replies.append(requests.post(server.url + "/classify", json=by_ids, timeout=10).json())
    one = requests.post(server.url + "/classify", json={**by_ids, "input": ids[1]["tokens"]}, timeout=10)
    assert one.json()["data"][0]["probs"] == pytest.approx(replies[0]["data"][1]["probs"], abs=1e-6)
    assert replies[0]["data"] == replies[1]["data"] == replies[2]["data"]
    for reply in replies:
        assert reply["object"] == "list" and reply["model"] == model and len(reply["data"]) == 4
        assert {"index", "label", "probs", "num_classes"} <= reply["data"][0].keys()
        assert {"prompt_tokens", "total_tokens", "completion_tokens"} <= reply["usage"].keys()


@pytest.mark.parametrize("ids", [[-1], [10**9], [2**70], [], [5] * 10_000, [[5], "w1"]])
def test_token_ids_that_are_none_are_refused(server: Served, ids: Any) -> None:
    model = server.client.get("/v1/models").json()["data"][0]["id"]
    reply = server.client.post("/classify", json={"model": model, "input": ids})
    assert reply.status_code == 422, reply.text
    asked = server.client.post("/tokenize", json={"model": "nobody", "prompt": "w1"})
    assert asked.status_code == 404
