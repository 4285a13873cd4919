"""What the server adds to the bank, and what it does with twice the load that it can carry.

Command:   python benchmarks/serving.py --model MODEL [--output results/serving.json]
           (needs pip install locust; Linux, two cores)
Expected:  at 8 texts a request at least 0.9 of the bank's own pace; at twice saturation at least 0.9 of
           saturation's, the rest refused within 50 ms, the accepted answered within their deadline.
Time:      5 minutes. Nothing else should run meanwhile.
           results/serving.json is older: its bank predicted 8 texts at a time and freed its memory, and its
           clients asked less often while they waited (1.7 times saturation); serving_avx2.json is as now.

Server and bank run on one core with one thread, Locust (load.py) on another. Texts have 128 tokens, and
tokenising counts on both sides. Paces are texts a second.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx
from keep import keep
from peft import get_peft_model

from hadamard_adapter import HadamardConfig
from hadamard_adapter.serving import AdapterStore
from hadamard_adapter.tuning.models import load_base, load_tokenizer
from hadamard_adapter.tuning.report import versions

CORE, LOAD_CORE = 0, 1
N_ADAPTERS = 20
SATURATING = {8: 8, 1: 32}
"""Texts a request -> clients that keep the server busy."""
N_OVERLOADING = 200
"""Clients that ask at random times, together twice as much as it can answer."""
N_TOGETHER = 32
"""Texts that the bank predicts at a time, as many as a pass of the busy server holds."""


@click.command()
@click.option("--model", required=True, help="Folder of the base model.")
@click.option("--seconds", default=60, show_default=True, help="Length of each measurement.")
@click.option("--output", default="results/serving.json", show_default=True, help="File of the result.")
@click.option("--bank-store", hidden=True, help="Measure the bank alone with this store, and print its pace.")
def main(model: str, seconds: int, output: str, bank_store: str | None) -> None:
    """Measure and write the paces."""
    if bank_store is not None:
        click.echo(bank_pace(model, bank_store, seconds))
        return
    found: dict[str, Any] = {"model": Path(model).absolute().name, "seconds": seconds, "versions": versions()}
    with tempfile.TemporaryDirectory() as folder:
        publish(model, f"{folder}/store", folder)
        words = [sys.executable, __file__, "--model", model, "--seconds", str(seconds)]
        alone = pinned(CORE, [*words, "--bank-store", f"{folder}/store"], capture_output=True)
        found["bank"] = float(alone.stdout)
        with server(model, f"{folder}/store") as url:
            for n_texts, n_clients in SATURATING.items():
                found[f"{n_texts} texts a request"] = load(url, n_clients, n_texts, 0, seconds)
            pace = found["8 texts a request"]["texts_per_s"]
            rate = 2 * pace / 8 / N_OVERLOADING
            found["twice saturation"] = load(url, N_OVERLOADING, 8, rate, seconds)
    found["server/bank"] = pace / found["bank"]
    found["overload/saturation"] = found["twice saturation"]["texts_per_s"] / pace
    click.echo(json.dumps(found, indent=2))
    keep(output, found)


def publish(model: str, store: str, folder: str) -> None:
    """Random adapters with heads of their own."""
    make_adapter(model, f"{folder}/adapter")
    for number in range(N_ADAPTERS):
        AdapterStore(store).add(f"a{number}", f"{folder}/adapter")


def make_adapter(model: str, folder: str) -> None:
    """A random adapter with an output layer of its own, as a folder."""
    from hadamard_adapter.serving.load import BASE_TASK

    base = load_base(model, BASE_TASK, load_tokenizer(model).pad_token_id)
    config = HadamardConfig(task_type="SEQ_CLS", sites=["attention", "ffn"], init_weights=False)
    config.id2label = {0: "negative", 1: "positive"}
    get_peft_model(base, config).save_pretrained(folder)


def bank_pace(model: str, store: str, seconds: int) -> float:
    """Texts a second that the bank predicts by itself, with memory kept as the server keeps it."""
    import torch
    from load import N_WORDS, WORDS

    from hadamard_adapter.allocator import keep_freed_memory
    from hadamard_adapter.serving.load import load_bank

    keep_freed_memory()
    torch.set_num_threads(1)
    bank, published = load_bank(model, "cpu"), AdapterStore(store)
    for found in published.served():
        bank.add(found.id, published.read(found.id)[1])
    n_texts, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        texts = [" ".join(random.choices(WORDS, k=N_WORDS)) for _ in range(N_TOGETHER)]
        ids = [random.choice(bank.ids) for _ in range(N_TOGETHER // 8)]  # of requests of 8 texts
        bank.predict(texts, [id for id in ids for _ in range(8)])
        n_texts += N_TOGETHER
    return n_texts / (time.perf_counter() - started)


def pinned(core: int, words: list[str], **more: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command on one core, with one thread."""
    return subprocess.run(
        ["taskset", "-c", str(core), *words], env=one_thread(), check=True, text=True, **more
    )


def one_thread() -> dict[str, str]:
    """The environment, with one thread and no hub."""
    return {
        **os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
        **dict.fromkeys(("LOAD_TEXTS", "LOAD_RATE"), "1"), "LOAD_ADAPTERS": str(N_ADAPTERS),
    }  # fmt: skip


@contextlib.contextmanager
def server(model: str, store: str, *words: str, port: int = 8753, log: str = os.devnull) -> Iterator[str]:
    """A server on its core, ready, until the block is left."""
    command = ["taskset", "-c", str(CORE), sys.executable, "-m", "hadamard_adapter.cli", "serve"]
    command += ["--model", model, "--store", store, "--port", str(port), "--device", "cpu", *words]
    with open(log, "w") as errors:
        process = subprocess.Popen(command, env=one_thread(), stderr=errors)
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            time.sleep(0.1)
        else:
            raise RuntimeError(f"the server ended with {process.returncode}; see {log}")
        yield url
    finally:
        process.terminate()
        process.wait()


def load(url: str, n_clients: int, n_texts: int, rate: float, seconds: int) -> dict[str, Any]:
    """What Locust saw: texts answered a second, and per kind of reply its number and milliseconds."""
    words = ["taskset", "-c", str(LOAD_CORE), sys.executable, "-m", "locust", "-f"]
    words += [
        str(Path(__file__).with_name("load.py")),
        "--headless",
        "--only-summary",
        "--json",
        "--host",
        url,
    ]
    words += ["-u", str(n_clients), "-r", str(n_clients), "-t", f"{seconds}s", "--loglevel", "ERROR"]
    env = one_thread() | {"LOAD_TEXTS": str(n_texts), "LOAD_RATE": str(rate)}
    done = subprocess.run(words, env=env, check=False, text=True, capture_output=True)
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert "failed" not in rows, rows["failed"]
    found: dict[str, Any] = {"clients": n_clients, "requests_per_s_and_client": rate}
    for name, row in rows.items():
        found[name] = {"requests": row["num_requests"], **percentiles(row["response_times"])}
    spent = max(row["last_request_timestamp"] for row in rows.values()) - min(
        row["start_time"] for row in rows.values()
    )
    return {**found, "texts_per_s": rows["answered"]["num_requests"] * n_texts / spent}


def percentiles(times: dict[str, int]) -> dict[str, float]:
    """Median and 99th percentile of milliseconds, from Locust's counts."""
    ordered = sorted((float(time), count) for time, count in times.items())
    total = sum(count for _, count in ordered)
    found: dict[str, float] = {}
    for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
        seen = 0
        for value, count in ordered:
            seen += count
            if seen >= share * total:
                found[name] = value
                break
    return found


if __name__ == "__main__":
    main()
