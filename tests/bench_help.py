"""What the tests of the bench share: a tiny model, rows, specs as text, and records of runs."""

import contextlib
import errno
import json
from pathlib import Path
from typing import Any

from hadamard_adapter.bench.results import Results
from hadamard_adapter.bench.run import Run
from hadamard_adapter.bench.schedule import Board
from hadamard_adapter.bench.spec import Spec, read_spec
from hadamard_adapter.bench.speed import kind_of
from hadamard_adapter.errors import TrainingError

__all__ = [
    "DEBERTA_V3",
    "EXPERIMENTS",
    "GLUE_HEADERS",
    "MODELS",
    "Silent",
    "add",
    "committed",
    "no_checkpoint",
    "no_space",
    "processes_of",
    "spec_of",
    "spec_text",
    "write_tsv",
]

RESULTS = Path(__file__).parent.parent / "results"
EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.toml"))
EXPERIMENTS = [path for path in EXPERIMENTS if kind_of(path) == "methods"]
MODELS = {
    "all-MiniLM-L6-v2": "bert",
    "all-mpnet-base-v2": "mpnet",
    "bert-base-uncased": "bert",
    "bert-large-uncased": "bert",
    "roberta-base": "roberta",
    "roberta-large": "roberta",
    "electra-base-discriminator": "electra",
    "deberta-v3-base": "deberta-v2",
}
"""Of the committed specs: name to row of the tiny models."""
DEBERTA_V3: dict[str, Any] = {"share_att_key": True, "norm_rel_ebd": "layer_norm"}
"""What its config has beyond version 2's defaults, as far as parameters go."""
MNLI_HEADER = "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse"
GLUE_HEADERS = {
    "cola": "source label star sentence",
    "sst2": "sentence label",
    "mrpc": "Quality,#1 ID,#2 ID,#1 String,#2 String",
    "stsb": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
    "rte": "index sentence1 sentence2 label",
    "wnli": "index sentence1 sentence2 label",
    "qnli": "index question sentence label",
    "qqp": "id qid1 qid2 question1 question2 is_duplicate",
    "mnli": f"{MNLI_HEADER} sentence2_parse sentence1 sentence2 label1 gold_label",
}
"""Of the files in the official layout: GLUE task to column names."""


class Silent:
    """A board that shows nothing."""

    def show(self, running: list[Run], records: object) -> None:
        """Nothing to do."""


_: Board = Silent()


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
        **{"select": "held-out", "bf16": False, "dropout": False, "order": "groups"},
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


def committed(purpose: str) -> dict[str, Any]:
    """The first committed record of a kind, of an adapter where it can be one."""
    paths = [
        path for place in ("bench", "speed") for path in sorted((RESULTS / place / "runs").glob("*.json"))
    ]
    records = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    return next(
        record
        for record in records
        if record["run"]["purpose"] == purpose and record["run"].get("method") in (None, "hadamard")
    )


def write_tsv(path: Path, lines: list[list[str]], prefix: str = "") -> None:
    """Lines as a tab-separated file, in a folder that may be new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(prefix + "".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")


def no_space(*_: Any, **__: Any) -> Any:
    """What writes on a disk that is full."""
    raise OSError(errno.ENOSPC, "No space left on device")


def no_checkpoint(*_: Any, **__: Any) -> Any:
    """A run whose disk is full."""
    raise TrainingError("no checkpoint") from OSError(errno.ENOSPC, "No space left on device")


def processes_of(session: int) -> list[str]:
    """Command lines of the processes of a session that are not over."""
    found: list[str] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, of_session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(of_session) == session and state != "Z":
                found.append((stat.parent / "cmdline").read_text().replace("\0", " "))
    return found
