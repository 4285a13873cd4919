"""The hub: asked once whether it answers, and done without where it does not."""

import http.server
import os
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from hadamard_adapter.cli.hub import stay_offline_without_hub


class _Nothing(http.server.BaseHTTPRequestHandler):
    """Answers every question with 404."""

    def do_HEAD(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    """Address of a hub that knows nothing."""
    with http.server.HTTPServer(("127.0.0.1", 0), _Nothing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def nobody() -> str:
    """Address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    return f"http://127.0.0.1:{port}"


def offline_after(monkeypatch: pytest.MonkeyPatch, endpoint: str, *names: str | None) -> str | None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # so that it is put back afterwards, whatever is done to it
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    stay_offline_without_hub(names)
    return os.environ.get("HF_HUB_OFFLINE")


def test_without_a_hub_the_libraries_use_their_cache_alone(
    monkeypatch: pytest.MonkeyPatch, nobody: str
) -> None:
    assert offline_after(monkeypatch, nobody, "some/model") == "1"
    assert offline_after(monkeypatch, "no address", "some/model") == "1"


def test_a_hub_that_answers_is_used_whatever_it_says(monkeypatch: pytest.MonkeyPatch, hub: str) -> None:
    assert offline_after(monkeypatch, hub, "some/model") is None


def test_for_folders_no_hub_is_asked_and_what_the_user_has_set_stays(
    monkeypatch: pytest.MonkeyPatch, nobody: str
) -> None:
    assert offline_after(monkeypatch, nobody, ".", None) is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    stay_offline_without_hub(["some/model"])
    assert os.environ["HF_HUB_OFFLINE"] == "0"


def test_what_speaks_no_http_is_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            connection.recv(1 << 16)
            connection.sendall(b"220 mail.example ESMTP\r\n")
            connection.close()

        threading.Thread(target=greet, daemon=True).start()
        port = server.getsockname()[1]
        assert offline_after(monkeypatch, f"http://127.0.0.1:{port}", "some/model") == "1"


def test_a_hub_whose_certificate_python_does_not_know_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise urllib.error.URLError(ssl.SSLCertVerificationError("unable to get local issuer certificate"))

    monkeypatch.setattr(urllib.request, "urlopen", refused)
    assert offline_after(monkeypatch, "https://hub.example", "some/model") is None
