"""A server from a model and a store, run until SIGTERM: not ready at once, then drained, then ended."""

import json
import logging
import math
import signal
import socket
import ssl
import threading
import time
from types import FrameType
from typing import Any

import uvicorn

from hadamard_adapter.errors import SettingsError
from hadamard_adapter.serving.bank import AdapterBank
from hadamard_adapter.serving.batcher import Batcher
from hadamard_adapter.serving.follow import Follower
from hadamard_adapter.serving.http.app import make_app
from hadamard_adapter.serving.http.metrics import Metrics
from hadamard_adapter.serving.http.state import Serving
from hadamard_adapter.serving.keys import Key
from hadamard_adapter.serving.limits import Limits
from hadamard_adapter.serving.store import AdapterStore

__all__ = ["check_certificate", "check_free", "make_serving", "run_server", "write_json_logs"]

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def check_free(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on; port 0, which picks a free one, is not looked at.

    Raises:
        SettingsError: another process has the port, or this machine has no such address.
    """
    if port == 0:
        return
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise SettingsError(
            f"--host {host} --port {port}: cannot listen there: {error}; pass another one"
        ) from error


def check_certificate(cert: str, key: str) -> None:
    """Refuse files that are no certificate and its key in PEM.

    Raises:
        SettingsError: one is not there, is no PEM, or they do not belong together.
    """
    for option, path in (("--tls-cert", cert), ("--tls-key", key)):
        try:
            open(path, "rb").close()
        except OSError as error:
            raise SettingsError(f"{option} {path!r}: {error.strerror}") from error
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key)
    except OSError as error:  # ssl.SSLError is one
        raise SettingsError(
            f"--tls-cert {cert!r}, --tls-key {key!r}: expected a certificate and its own key as PEM: {error}"
        ) from error


def make_serving(
    model: str, bank: AdapterBank, store: AdapterStore, limits: Limits, keys: tuple[Key, ...] = ()
) -> Serving:
    """A server over a bank, filled from a store as it is now.

    Args:
        model: name of the base model, for /info.
        bank: with a tokenizer.
        store: that adapters come from.
        limits: what is refused.
        keys: who may ask; none: everybody who reaches it.
    """
    metrics = Metrics(limits.metric_adapters)
    follower = Follower(bank, store)
    follower.look()
    batcher = Batcher(bank, limits.queue_texts, limits.batch_tokens, told=metrics.passed)
    return Serving(model, bank, store, follower, batcher, metrics, limits, keys)


def run_server(serving: Serving, host: str, port: int, tls_cert: str | None, tls_key: str | None) -> None:
    """Serve until SIGTERM or Ctrl-C; a second one ends without waiting for what is in flight.

    Args:
        serving: from `make_serving`.
        host: address to listen on.
        port: 0 picks a free one, which the log names.
        tls_cert: file of a certificate, None for plain HTTP.
        tls_key: file of its key.
    """
    config = uvicorn.Config(
        make_app(serving), host=host, port=port, log_config=None, access_log=False, server_header=False,
        ssl_certfile=tls_cert, ssl_keyfile=tls_key, timeout_keep_alive=30,
        timeout_graceful_shutdown=math.ceil(serving.limits.timeout_s) + 1,  # of clients that do not read, too
    )  # fmt: skip
    server = uvicorn.Server(config)

    def end(number: int, frame: FrameType | None) -> None:
        if not serving.is_open:
            server.force_exit = server.should_exit = True
            return
        serving.is_open = False
        timer = threading.Timer(serving.limits.drain_s, setattr, (server, "should_exit", True))
        timer.daemon = True
        timer.start()

    server.handle_exit = end  # pyright: ignore[reportAttributeAccessIssue]
    # uvicorn raises the signal again once it has ended; SIGTERM was what ended it, so that is no failure.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    server.run()


def write_json_logs() -> None:
    """Write what the server logs to standard error, one JSON object a line."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    for name in ("hadamard_adapter", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line: dict[str, Any] = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
