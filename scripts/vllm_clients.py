"""Run vLLM's own example clients for classification, unchanged, against `hadamard serve`.

    python scripts/vllm_clients.py

Their files are taken from vLLM's source distributions on PyPI (fetched once into the downloads folder, hashes
checked, nothing of them installed); they need `requests`. Each must end without an error and print, for every
text it sent, probabilities that the bank computes offline.

    0.9.2    examples/online_serving/openai_classification_client.py      texts
    0.33.0   examples/pooling/classify/classification_online.py           texts, then their token ids
"""

import argparse
import ast
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

PROMPTS = [
    "Hello, my name is",
    "The president of the United States is",
    "The capital of France is",
    "The future of AI is",
]
"""What both clients send."""


@dataclass(frozen=True)
class Client:
    """A client in a source distribution."""

    version: str
    """Of vLLM."""
    url: str
    """Of the source distribution, without https://files.pythonhosted.org/packages/."""
    sha256: str
    """Of the source distribution."""
    megabytes: int
    """Its size."""
    path: str
    """Of the client in it."""
    n_replies: int
    """Replies that it prints."""
    names_model: bool
    """Whether it takes the adapter as --model; else it asks for the first one."""


CLIENTS = (
    Client(
        "0.9.2", "35/89/2fbf95d398b5751b44c7256bd80e57c589142f1bfcc15f5dc76438b8853a/vllm-0.9.2.tar.gz",
        "6b0d855ea8ba18d76364c9b82ea94bfcaa9c9e724055438b5733e4716ed104e1", 9,
        "examples/online_serving/openai_classification_client.py", 1, True,
    ),
    Client(
        "0.33.0", "f7/25/aa5684e9c59d6fc75f78926b7f15e8d9adc7de2d9e6e7575b80776ad8169/vllm-0.33.0.tar.gz",
        "f4c33c2503d52bb411146afa9618a4f48bed68912f617e6803ac8d76e4c74112", 47,
        "examples/pooling/classify/classification_online.py", 2, False,
    ),
)  # fmt: skip


def main() -> int:
    """Fetches, serves, runs and compares; returns the exit code."""
    from hadamard_adapter.serving import AdapterStore
    from hadamard_adapter.serving.load import load_bank
    from serve_help import LABELS, make_place, served

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    downloads = os.environ.get("HADAMARD_DOWNLOADS", str(ROOT / "downloads"))
    parser.add_argument("--downloads", default=downloads, help="folder of the source distributions")
    folder = Path(parser.parse_args().downloads)
    sources = [source_of(client, folder) for client in CLIENTS]
    with tempfile.TemporaryDirectory(prefix="vllm-clients-") as temporary:
        place = make_place(Path(temporary))
        store = AdapterStore(place / "store")
        bank = load_bank(str(place / "model"), "cpu")
        for id in LABELS:
            store.add(id, place / f"{id}-0")
            bank.add(id, place / f"{id}-0")
        with served(place / "model", place / "store", place / "log") as running:
            for client, source in zip(CLIENTS, sources, strict=True):
                file = place / Path(client.path).name
                file.write_bytes(source)
                for id, answers in replies_of(client, file, running.url):
                    expected = [list(p.probabilities.values()) for p in bank.predict(PROMPTS, [id] * 4)]
                    for found, wanted in zip(answers, expected, strict=True):
                        assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) < 1e-4
                print(f"vLLM {client.version}, {file.name}: {client.n_replies} replies as offline")
    return 0


def source_of(client: Client, downloads: Path) -> bytes:
    """Returns the client's file, from a source distribution that is fetched if it is not there yet."""
    path = downloads / f"vllm-{client.version}.tar.gz"
    if not path.exists():
        url = f"https://files.pythonhosted.org/packages/{client.url}"
        print(f"Fetching {path.name} ({client.megabytes} MB, with vLLM's examples) from {url}", flush=True)
        downloads.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        urllib.request.urlretrieve(url, part)
        part.replace(path)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != client.sha256:
        raise SystemExit(f"{path} is not the file that was expected (sha256 {client.sha256}); remove it")
    with tarfile.open(path) as archive:
        member = archive.extractfile(f"vllm-{client.version}/{client.path}")
        assert member is not None, f"{path} lacks {client.path}"
        return member.read()


def replies_of(client: Client, file: Path, url: str) -> list[tuple[str, list[list[float]]]]:
    """Returns adapter and probabilities of each reply that a client prints."""
    place = urlsplit(url)
    words = ["--host", str(place.hostname), "--port", str(place.port)]
    words += ["--model", "mood"] if client.names_model else []
    run = subprocess.run([sys.executable, str(file), *words], capture_output=True, text=True, timeout=120)
    if run.returncode:
        raise SystemExit(f"{file.name} failed:\n{run.stderr}")
    printed = run.stdout.replace("}\n{", "}\0{").split("\0")
    replies = [ast.literal_eval(text) for text in printed]
    assert len(replies) == client.n_replies, run.stdout
    return [(reply["model"], [row["probs"] for row in reply["data"]]) for reply in replies]


if __name__ == "__main__":
    sys.exit(main())
