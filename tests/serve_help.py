"""A real server for tests: uvicorn in a process of its own, and adapters of distinct heads."""

import contextlib
import dataclasses
import io
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from peft import PeftModel, get_peft_model
from starlette.testclient import TestClient
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from adapter_help import BOTH, STD, randomize
from hadamard_adapter import HadamardConfig
from hadamard_adapter.serving import AdapterStore, BankAdapter
from hadamard_adapter.serving.http.app import make_app
from hadamard_adapter.serving.http.run import make_serving
from hadamard_adapter.serving.http.state import Serving
from hadamard_adapter.serving.limits import Limits
from hadamard_adapter.serving.load import load_bank
from models import tiny_model
from tuning_help import tiny_folder

LIMITS = Limits()
LABELS = {"mood": ("bad", "good"), "topic": ("art", "sport", "trade"), "shop-size": ("s", "m", "l", "xl")}


def make_adapter(
    model: Path, folder: Path, labels: tuple[str, ...], seed: int, problem_type: str | None = None
) -> Path:
    """A random adapter of a tiny model, as `tune` would leave it."""
    names = dict(enumerate(labels))
    base = AutoModelForSequenceClassification.from_pretrained(model, id2label=names)
    tuned = get_peft_model(
        base, HadamardConfig(task_type="SEQ_CLS", sites=BOTH, id2label=names, problem_type=problem_type)
    )
    randomize(tuned, "default", seed)
    tuned.save_pretrained(folder)
    return folder


def make_place(place: Path) -> Path:
    """A folder with model/ and two versions of each adapter, ID-0/ and ID-1/."""
    tiny_folder(place / "model")
    for index, (id, labels) in enumerate(LABELS.items()):
        for version in range(2):
            make_adapter(place / "model", place / f"{id}-{version}", labels, 10 * index + version)
    return place


def tuned(name: str, seed: int, folder: Path, **settings: Any) -> PeftModel:
    """A model with one random adapter and head, and its files in a folder."""
    model = get_peft_model(tiny_model(name), HadamardConfig(task_type="SEQ_CLS", **settings)).eval()
    randomize(model, "default", seed)
    model.save_pretrained(folder)
    return model


def random_adapter(like: BankAdapter, seed: int) -> BankAdapter:
    generator = torch.Generator().manual_seed(seed)

    def draw(tensors: dict[Any, Tensor]) -> dict[Any, Tensor]:
        return {key: torch.randn(t.shape, generator=generator) * STD for key, t in tensors.items()}

    return dataclasses.replace(like, offsets=draw(like.offsets), head=draw(like.head))


def zipped(folder: Path, prefix: str = "") -> bytes:
    """A zip of the files of a folder."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.glob("adapter*")):
            archive.write(path, prefix + path.name)
    return content.getvalue()


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path
    client: httpx.Client


@contextlib.contextmanager
def served(model: Path, store: Path, log: Path, *words: object) -> Iterator[Served]:
    """`hadamard serve` on a free port, ended by SIGTERM."""
    command = [sys.executable, "-m", "hadamard_adapter.cli", "serve", "--model", model, "--store", store]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [str(word) for word in (*command, "--port", 0, "--device", "cpu", *words)],
            stderr=errors, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        url = _url_in(log, process)
        with httpx.Client(base_url=url, timeout=30) as client:
            yield Served(url, process, log, client)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        finally:
            process.kill()


@contextlib.contextmanager
def in_process(
    place: Path, store: Path, pack: Path | None = None, limits: Limits = LIMITS
) -> Iterator[tuple[Serving, TestClient]]:
    """The app in this process, and a client of it."""
    bank = load_bank(str(place / "model"), "cpu", None if pack is None else str(pack))
    serving = make_serving("tiny", bank, AdapterStore(store), limits)
    with TestClient(make_app(serving), headers={"host": "localhost"}) as client:
        yield serving, client


def _url_in(log: Path, process: "subprocess.Popen[bytes]") -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"running on (https?://[\d.]+:\d+)", log.read_text(encoding="utf-8"))
        if found:
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"the server did not start: {log.read_text(encoding='utf-8')}")
