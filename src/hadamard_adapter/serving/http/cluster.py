"""The server as a Ray Serve deployment: replicas of the same app on one store, behind one address.

A replica is a process with a bank of its own, which follows the store by itself as the uvicorn process does.
Ray's proxy, one on each machine with replicas, hands a request to the one of two replicas that has less under
way; replicas that die are replaced. Keys, limits and replies are the app's; docs/serving.md says what else
there is.
"""

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ray  # pyright: ignore[reportMissingImports]  # an extra, which test.sh leaves out
from fastapi import FastAPI
from ray import serve  # pyright: ignore[reportMissingImports]

from hadamard_adapter.errors import SettingsError
from hadamard_adapter.serving.http.app import make_app
from hadamard_adapter.serving.http.metrics import merge_pages
from hadamard_adapter.serving.http.run import check_free, write_json_logs
from hadamard_adapter.serving.http.state import Serving, metrics_page
from hadamard_adapter.serving.limits import Limits

__all__ = ["Replicas", "run_cluster"]

_LOG = logging.getLogger(__name__)
_NAME = "hadamard"
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # 15 would starve servers beside whatever else runs
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # 5 s are too few on a busy machine
}
_LOGGING = {"enable_access_log": False, "log_level": "WARNING"}
_TELL_S = 5.0
"""Seconds that replicas get to answer one another."""


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """How many replicas there are, and what each takes."""

    least: int
    """At any time."""
    most: int
    """At any time; above `least`, Ray starts and ends replicas by the requests under way."""
    n_cpus: float
    """Processors that Ray reserves for each."""
    n_gpus: float
    """GPUs that Ray reserves for each."""
    n_requests: int
    """Requests under way in each that Ray aims at."""


class _Replica:
    """One server of the cluster, of which Ray asks the app by a method of its own name."""

    def __init__(self, make: Callable[[], Serving]) -> None:
        write_json_logs()
        self.serving = make()
        self.serving.gather = self._all_pages

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self.serving)

    def drain(self) -> None:
        """Turn /ready to 503 and refuse new texts."""
        self.serving.is_open = False

    def page(self) -> tuple[str, bytes]:
        """Name of this replica, and its metrics."""
        return serve.get_replica_context().replica_id.unique_id, metrics_page(self.serving)

    def _all_pages(self) -> bytes:
        return merge_pages(dict(_tell_all("page")))


def run_cluster(
    make: Callable[[], Serving],
    limits: Limits,
    replicas: Replicas,
    host: str,
    port: int,
    tls_cert: str | None,
    tls_key: str | None,
) -> None:
    """Serve from replicas until SIGTERM or Ctrl-C; a second one ends without waiting for what is in flight.

    The cluster is the one that RAY_ADDRESS names; without it one is made on this machine, and ended with the
    server.

    Args:
        make: makes a replica's server, in the process of the replica.
        limits: of each replica.
        replicas: how many.
        host: address that every proxy listens on.
        port: that every proxy listens on.
        tls_cert: file of a certificate, on every machine; None for plain HTTP.
        tls_key: file of its key.

    Raises:
        SettingsError: the port is taken, or no replica could be made.
    """
    check_free(host, port)  # Ray's proxy would share it with who has it
    is_ours = "RAY_ADDRESS" not in os.environ
    _connect(is_ours)
    is_up, asked = threading.Event(), threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        if asked.is_set() or not is_up.is_set():
            raise SystemExit(0)
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        serve.start(
            http_options={
                "host": host, "port": port, "keep_alive_timeout_s": 30,
                "ssl_certfile": tls_cert, "ssl_keyfile": tls_key,
            },
            logging_config=_LOGGING,
        )  # fmt: skip
        try:
            serve.run(_deployment(limits, replicas).bind(make), name=_NAME, route_prefix="/")
        except RuntimeError as error:
            raise SettingsError(_why()) from error
        is_up.set()
        _LOG.info("Ray Serve running on %s://%s:%d", "https" if tls_cert else "http", host, port)
        asked.wait()
        _tell_all("drain")
        time.sleep(limits.drain_s)
        serve.delete(_NAME)
    finally:
        if is_ours:
            ray.shutdown()


def _connect(is_ours: bool) -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ours: dict[str, Any] = {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": 80_000_000,  # nothing is kept in it; Ray takes no less
    }
    ray.init(**(ours if is_ours else {}), logging_level=logging.WARNING)


def _deployment(limits: Limits, replicas: Replicas) -> Any:
    is_fixed = replicas.least == replicas.most
    scale: dict[str, Any] = {
        "min_replicas": replicas.least,
        "max_replicas": replicas.most,
        "target_ongoing_requests": replicas.n_requests,
    }
    return serve.deployment(
        serve.ingress(None)(_Replica),
        name=_NAME,
        num_replicas=replicas.least if is_fixed else None,
        autoscaling_config=None if is_fixed else scale,
        ray_actor_options={"num_cpus": replicas.n_cpus, "num_gpus": replicas.n_gpus},
        # A replica refuses by itself, and says so better: Ray's own limits are the second line.
        max_ongoing_requests=2 * limits.queue_texts,
        max_queued_requests=limits.queue_texts,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        graceful_shutdown_timeout_s=limits.timeout_s + limits.drain_s,
        health_check_period_s=1,
        logging_config=_LOGGING,
        max_constructor_retry_count=3,
    )


def _tell_all(method: str) -> list[Any]:
    """What a method of every replica gives; replicas that die meanwhile are left out."""
    handle = serve.get_deployment_handle(_NAME, _NAME)
    answers = handle.broadcast(method).results(timeout_s=_TELL_S, return_exceptions=True)
    return [answer for answer in answers if not isinstance(answer, Exception)]


def _why() -> str:
    """The last line of the error that kept the replicas from starting, without its class."""
    deployments = serve.status().applications[_NAME].deployments.values()
    lines = [line.strip() for one in deployments for line in one.message.splitlines() if line.strip()]
    last = lines[-1] if lines else "no replica could be started; Ray's logs say why"
    return re.sub(r"^[\w.]+Error: ", "", last)
