"""What clients of two replicas see while one is killed, and how soon both follow a store, under Ray Serve.

Command:   python benchmarks/ray_cluster.py --model MODEL [--output results/ray.json]
           (needs pip install '.[ray]' in a clone; Linux)
Expected:  both replicas serve what is published within 2 s; after a kill only requests that the dead replica
           had begun fail (500), the other one answers on, and a new one is there within a minute; SIGTERM
           leaves no process.
Time:      3 minutes on a core that is busy with other things.
"""

import concurrent.futures
import contextlib
import itertools
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import httpx
import psutil
from keep import keep

from hadamard_adapter.serving import AdapterStore
from hadamard_adapter.tuning.report import versions

N_CLIENTS = 4
REFUSED = (429, 503)
"""Statuses of a server that has too much to do, and says so."""
START_S, REPLACE_S = 300.0, 180.0


@dataclass(frozen=True)
class Reply:
    """One request of the load."""

    begun_s: float
    """On the clock of time.monotonic."""
    ended_s: float
    status: int
    """0: the connection broke."""
    body: str


@click.command()
@click.option("--model", required=True, help="Folder of the base model.")
@click.option("--seconds", default=20.0, show_default=True, help="Length of the load.")
@click.option("--output", default="results/ray.json", show_default=True, help="File of the result.")
def main(model: str, seconds: float, output: str) -> None:
    """Measure and write the counts."""
    from serving import publish

    with tempfile.TemporaryDirectory() as folder:
        publish(model, f"{folder}/store", folder)
        found = {"model": Path(model).absolute().name, "versions": versions() | {"ray": version("ray")}}
        found |= measure(model, f"{folder}/store", f"{folder}/adapter", Path(folder) / "log", seconds)
    click.echo(json.dumps(found, indent=2))
    keep(output, found)


def measure(model: str, store: str, adapter: str, log: Path, load_s: float) -> dict[str, Any]:
    """Counts of a cluster of two replicas, from its start to its end.

    Args:
        model: folder of the base model.
        store: with an adapter `a0`.
        adapter: folder of one to publish.
        log: file of the cluster's standard error.
        load_s: seconds of load while a replica is killed.
    """
    started = time.monotonic()
    with cluster(model, store, log) as (url, process):
        found: dict[str, Any] = {"start_s": round(time.monotonic() - started, 1)}
        found["publish_s"] = [round(publish_s(url, store, adapter, f"new{at}"), 2) for at in range(3)]
        found["kill"] = kill_one(url, process, load_s)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        found["exit_code"] = process.wait(60)
        found["processes_left"] = len([one for one in family if one.is_running()])
    return found


@contextlib.contextmanager
def cluster(model: str, store: str, log: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The address of two replicas that run, and the process that they belong to."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    words = [sys.executable, "-m", "hadamard_adapter.cli", "serve", "--model", model, "--store", store]
    words += ["--device", "cpu", "--engine", "ray", "--replicas", "2", "--replica-cpus", "0.2"]
    with log.open("wb") as errors:
        process = subprocess.Popen([*words, "--port", str(port)], stderr=errors)
    try:
        wait_for(lambda: b"Ray Serve running on" in log.read_bytes() or process.poll() is not None, START_S)
        assert process.poll() is None, log.read_text(encoding="utf-8")
        yield f"http://127.0.0.1:{port}", process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def publish_s(url: str, store: str, adapter: str, id: str) -> float:
    """Seconds from the publication of a new id to the moment when every replica holds it."""
    before = adapters(url)
    assert len(before) == 2, before
    AdapterStore(store).add(id, adapter)
    published = time.monotonic()
    wait_for(lambda: adapters(url) == {name: n + 1 for name, n in before.items()}, 10)
    took_s = time.monotonic() - published
    for _ in range(20):
        reply = httpx.post(f"{url}/classify", json={"model": id, "input": "fine"}, timeout=30)
        assert reply.status_code == 200, reply.text
    return took_s


def kill_one(url: str, process: "subprocess.Popen[bytes]", load_s: float) -> dict[str, Any]:
    """What clients saw while one of two replicas was killed, a fifth of the load's time after its start."""
    before, over = set(adapters(url)), threading.Event()
    with concurrent.futures.ThreadPoolExecutor(N_CLIENTS) as pool:
        tasks = [pool.submit(ask_until, over, url) for _ in range(N_CLIENTS)]
        time.sleep(load_s / 5)
        victim = replicas_of(process)[0]
        victim.kill()
        killed_s = time.monotonic()
        time.sleep(load_s * 4 / 5)
        over.set()
        replies = [reply for task in tasks for reply in task.result()]
    wait_for(lambda: len(adapters(url)) == 2 and set(adapters(url)) != before, REPLACE_S)
    answered = [one for one in replies if one.status == 200 and one.ended_s > killed_s]
    moments = sorted([killed_s, *(one.ended_s for one in answered)])
    failed = [one for one in replies if one.status not in (200, *REFUSED)]
    return {
        "clients": N_CLIENTS,
        "seconds": load_s,
        "requests": len(replies),
        "statuses": dict(Counter(str(one.status) for one in replies)),
        "failed_begun_before_kill": sum(one.begun_s < killed_s for one in failed),
        "failed_begun_after_kill": sum(one.begun_s >= killed_s for one in failed),
        "last_failure_after_kill_s": round(max((one.ended_s - killed_s for one in failed), default=0.0), 2),
        "failed_bodies": sorted({one.body for one in failed}),
        "answered_after_kill": len(answered),
        "longest_silence_after_kill_s": round(max(b - a for a, b in itertools.pairwise(moments)), 2),
        "replaced_within_s": round(time.monotonic() - killed_s, 1),
    }


def ask_until(over: threading.Event, url: str) -> list[Reply]:
    """One request after the other, none of them tried again."""
    replies: list[Reply] = []
    with httpx.Client(base_url=url, timeout=60) as client:
        while not over.is_set():
            begun_s = time.monotonic()
            try:
                reply = client.post("/classify", json={"model": "a0", "input": "a fine film " * 20})
                status, body = reply.status_code, "" if reply.status_code == 200 else reply.text
            except httpx.TransportError as error:
                status, body = 0, repr(error)
            replies.append(Reply(begun_s, time.monotonic(), status, body))
    return replies


def adapters(url: str) -> dict[str, float]:
    """Adapters that each replica holds, by name of the replica, as /metrics says."""
    lines = httpx.get(f"{url}/metrics", timeout=30).text.splitlines()
    found = [line.split('"') for line in lines if line.startswith("hadamard_adapters{")]
    return {parts[1]: float(parts[2].removeprefix("}")) for parts in found}


def replicas_of(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """The processes of the replicas."""
    family = psutil.Process(process.pid).children(recursive=True)
    return [one for one in family if one.cmdline()[:1] and one.cmdline()[0].startswith("ray::ServeReplica")]


def wait_for(holds: Callable[[], bool], within_s: float) -> None:
    """Return as soon as it holds.

    Raises:
        TimeoutError: it does not, for so long.
    """
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:g} s")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
