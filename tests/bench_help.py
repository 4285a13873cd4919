"""What the tests of the bench share: a tiny model, rows, specs as text, and records of runs."""

import contextlib
from pathlib import Path
from typing import Any

from hadamard_adapter.bench import Spec, read_spec
from hadamard_adapter.bench.results import Results
from hadamard_adapter.bench.run import Run
from hadamard_adapter.bench.schedule import Board
from tuning_help import silent, tiny_folder, write_rows

__all__ = ["Silent", "add", "lay_out", "processes_of", "silent", "spec_of", "spec_text"]


class Silent:
    """A board that shows nothing."""

    def show(self, running: list[Run], records: object) -> None:
        """Nothing to do."""


_: Board = Silent()


def lay_out(place: Path, n_rows: int = 96) -> Path:
    """A folder with model/, train.csv and dev.csv."""
    tiny_folder(place / "model")
    write_rows(place / "train.csv", n_rows)
    write_rows(place / "dev.csv", 24, seed=1)
    return place


def spec_text(place: Path, methods: str, more: str = "", epochs: int = 2, seeds: int = 2) -> str:
    """A spec on the files of `lay_out`."""
    return f"""
title = "tiny"
models = ["{place / "model"}"]
methods = [{", ".join(f'"{method}"' for method in methods.split())}]
seeds = {seeds}
{more}
[[tasks]]
name = "mood"
train = "{place / "train.csv"}"
dev = "{place / "dev.csv"}"
epochs = {epochs}
head_epochs = 1
batch_size = 16
"""


def spec_of(place: Path, methods: str, more: str = "", **sizes: int) -> Spec:
    """The same, read."""
    path = place / "spec.toml"
    path.write_text(spec_text(place, methods, more, **sizes), encoding="utf-8")
    return read_spec(path)


LABELS = [0, 1] * 20


def predicted(n_wrong: int) -> list[int]:
    return [1 - label if index < n_wrong else label for index, label in enumerate(LABELS)]


def add(folder: Path, method: str, seed: int, n_wrong: int = 0, task: str = "mood", **changes: Any) -> None:
    """A record as the runner writes it; its score follows from its predictions."""
    run = {
        **{"purpose": "score", "model": "some/model", "method": method, "lr": 0.001, "seed": seed},
        **{"select": "held-out", "bf16": False, "dropout": False},
        "task": {"name": task, "rows": None, "epochs": 2},
    }
    run |= changes.pop("run", {})
    record = {
        **{"status": "done", "run": run, "identity": "x", "title": f"the {method}", "metric": "accuracy"},
        **{"score": 1 - n_wrong / 40, "trained_parameters": 10 * len(method), "head_parameters": 5},
        **{"share_percent": 0.5, "seconds": 2.0, "peak_memory_mb": 100, "is_collapsed": False},
        **{"predictions": " ".join(map(str, predicted(n_wrong))), "dev_fingerprint": "f"},
        "layers": {"scale dense": [0.1, 0.2]} if method == "hadamard" else {},
        **{"best": {"dev_loss": 0.1}, "rows": {"dev": 40}},
    }
    results = Results(folder)
    results.write_labels("f", " ".join(map(str, LABELS)))
    results.write(f"{task}-{method}-{seed}-{len(changes)}", {**record, **changes})


def processes_of(session: int) -> list[str]:
    """Command lines of the processes of a session that are not over."""
    found: list[str] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, of_session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(of_session) == session and state != "Z":
                found.append((stat.parent / "cmdline").read_text().replace("\0", " "))
    return found
