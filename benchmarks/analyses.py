"""The paper's analyses on adapters of four GLUE tasks: layers that can go, patterns, what attention does.

Command (what is finished is not done again, safe to kill and repeat):

    python benchmarks/analyses.py --model downloads/all-MiniLM-L6-v2 --data GLUE_FOLDER --workers 2

It writes the rows as files (SST-2 a fixed part of 10,000), tunes an adapter a task and seed with the preset
paper, tunes SST-2, STS-B and CoLA fully once, and calls the commands `hadamard prune`, `hadamard analyse
patterns`, `sharing` and `outputs`, as anyone would; of seed 0 the layers that stay are tuned again. RTE is
left out: no method learns it with this model (results/bench/report.md). STS-B has hundreds of MRPC's
sentences, so the two are compared a second time with adapters of STS-B that saw none of them
(`stsb-apart-0` and so on).
Results: results/analyses/*.json, pictures: docs/experiments/*.svg.

Expected: adapters of two seeds are alike, of two tasks nearly orthogonal; two thirds of the layers, tuned
again, lose about a point. Time: two hours of one core in float32. The best epoch is chosen on dev, for all.
"""

import csv
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import torch
from overlaps import all_texts, without
from transformers import AutoModelForSequenceClassification

from hadamard_adapter.bench.rows import read_rows
from hadamard_adapter.bench.spec import TaskSpec
from hadamard_adapter.bench.train import train
from hadamard_adapter.files import read_json, remove, write_json
from hadamard_adapter.tasks import Examples
from hadamard_adapter.tuning import TuneSettings, tune
from hadamard_adapter.tuning.data import read_data
from hadamard_adapter.tuning.report import versions

ROOT = Path(__file__).parent.parent
EPOCHS = {"sst2": 3, "stsb": 5, "mrpc": 5, "cola": 5}
SEEDS, LR, FULL_LR = 3, 1e-2, 1e-4
FULLY_TUNED = ("sst2", "stsb", "cola")
APART = "stsb-apart"


def write_parts(data: str, parts: Path) -> None:
    """GLUE's folders as they are, but of SST-2 a fixed part of its training rows."""
    parts.mkdir(parents=True, exist_ok=True)
    for folder in ("CoLA", "MRPC", "STS-B"):
        link = parts / folder
        if not link.exists():
            link.symlink_to((Path(data) / folder).absolute())
    (parts / "SST-2").mkdir(exist_ok=True)
    rows = read_rows(TaskSpec("sst2", rows=10_000), data).to_score("dev")
    for name, examples in (("train", rows.train), ("dev", rows.dev)):
        lines = zip(examples.texts, map(int, examples.labels or []), strict=True)
        write_tsv(parts / "SST-2" / f"{name}.tsv", [("sentence", "label"), *lines])


def write_tsv(path: Path, lines: Iterable[tuple[object, ...]]) -> None:
    """Cells as they are, tabs between them."""
    path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")


def write_apart(data: str, apart: Path) -> dict[str, int]:
    """STS-B without the training rows that hold a text of MRPC; how many there are."""
    rows, other = (read_rows(TaskSpec(name), data).to_score("dev") for name in ("stsb", "mrpc"))
    kept = without(rows.train, all_texts([other.train, other.dev]))
    (apart / "STS-B").mkdir(parents=True, exist_ok=True)
    for name, examples in (("train", kept), ("dev", rows.dev)):
        lines = zip(examples.texts, examples.pairs or [], examples.labels or [], strict=True)
        write_tsv(apart / "STS-B" / f"{name}.tsv", [("sentence1", "sentence2", "score"), *lines])
    return {"rows": len(rows.train), "with_a_text_of_mrpc": len(rows.train) - len(kept)}


def write_texts(path: Path, examples: Examples) -> None:
    """The texts of rows as CSV."""
    pairs = None if examples.pairs is None else zip(examples.texts, examples.pairs, strict=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text"] if pairs is None else ["text", "text_pair"])
        writer.writerows([[text] for text in examples.texts] if pairs is None else pairs)


def hadamard(*words: object) -> None:
    """The command, as anyone would call it, on one core."""
    print("hadamard", *words, flush=True)
    command = [sys.executable, "-m", "hadamard_adapter.cli", *map(str, words)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def adapter(settings: TuneSettings) -> dict[str, Any]:
    """Tune one adapter, unless it is there; what is kept of its metrics."""
    torch.set_num_threads(1)
    metrics = tune(settings).metrics
    kept = ("metric", "dev", "stage1_dev", "best_epoch", "adapter_parameters", "share_percent")
    print(Path(settings.output).name, metrics["dev"], "head alone", metrics["stage1_dev"], flush=True)
    return {key: metrics[key] for key in kept}


@click.command()
@click.option("--model", required=True)
@click.option("--data", required=True)
@click.option("--work", default=Path("build/analyses"), type=Path)
@click.option("--results", default=ROOT / "results" / "analyses", type=Path)
@click.option("--pictures", default=ROOT / "docs" / "experiments", type=Path)
@click.option("--workers", default=1, type=click.IntRange(1))
def main(model: str, data: str, work: Path, results: Path, pictures: Path, workers: int) -> None:
    """Tune what is missing, then analyse."""
    for folder in (work, results, pictures):
        folder.mkdir(parents=True, exist_ok=True)
    write_parts(data, work / "glue")
    overlap = write_apart(data, work / "glue-apart")

    def settings_for(name: str, output: Path, seed: int = 0, glue: str = "glue", **more: Any) -> TuneSettings:
        rows: dict[str, Any] = {"task": name, "data": str(work / glue), "epochs": EPOCHS[name]}
        return TuneSettings(model, str(output), **rows, seed=seed, quiet=True, **more)

    sources = {name: (name, "glue") for name in EPOCHS} | {APART: ("stsb", "glue-apart")}
    adapters = {
        f"{name}-{seed}": settings_for(task, work / f"{name}-{seed}", seed, glue, preset="paper", lr=LR)
        for seed in range(SEEDS)
        for name, (task, glue) in sources.items()
    }
    rates: dict[str, Any] = {"stages": 1, "lr": FULL_LR, "stage2_head_lr": FULL_LR}
    fully = {name: settings_for(name, work / f"full-{name}", **rates) for name in FULLY_TUNED}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        tuned = pool.map(adapter, adapters.values())
        full = pool.map(full_model, fully.values())
        found = {
            "adapters": dict(zip(adapters, tuned, strict=True)),
            "full": dict(zip(fully, full, strict=True)),
        }
    settings = {"lr": LR, "full_lr": FULL_LR, "epochs": EPOCHS, "stsb_and_mrpc": overlap}
    write_json(results / "adapters.json", {**found, **settings, "versions": versions()})
    analyse(model, work, results, pictures, workers)
    tune_again(work, results, workers)


def full_model(settings: TuneSettings) -> dict[str, float]:
    """Fine-tune everything into the folder of the settings, once; its dev scores."""
    torch.set_num_threads(1)
    folder = Path(settings.output)
    scores, on_the_way = folder / "scores.json", folder.with_suffix(".work")
    data = read_data(settings)
    write_texts(folder.with_name(f"{settings.task}-dev.csv"), data.dev)
    if not scores.exists():
        best = train("full", settings, data, on_the_way).best
        tuned = AutoModelForSequenceClassification.from_pretrained(
            on_the_way / "both" / f"checkpoint-{best['step']}"
        )
        tuned.save_pretrained(folder)
        write_json(scores, best["scores"])
    remove(on_the_way)
    print(folder.name, found := read_json(scores), flush=True)
    return found


def side_by_side(workers: int, do: Callable[[Any], None], these: Iterable[Any]) -> None:
    """Calls of one function, as many at the same time as there are workers."""
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(do, these))


def analyse(model: str, work: Path, results: Path, pictures: Path, workers: int) -> None:
    """The commands, each with its result file and picture."""
    names = [work / f"{name}-{seed}" for name in EPOCHS for seed in range(SEEDS)]
    every = ",".join(map(str, names))
    tuned = ",".join(str(work / f"full-{name}") for name in FULLY_TUNED)
    rows = ",".join(str(work / f"{name}-dev.csv") for name in FULLY_TUNED)

    def command(words: tuple[object, ...]) -> None:
        name = words[0] if words[0] == "prune" else words[1]
        hadamard(*words, "--json", results / f"{name}.json", "--plot", pictures / f"{name}.svg")

    side_by_side(
        workers,
        command,
        [
            ("prune", "--adapters", every, "--by", "offset", "--curve"),
            ("analyse", "patterns", "--adapters", every),
            ("analyse", "sharing", "--adapters", every),
            ("analyse", "outputs", "--model", model, "--tuned", tuned, "--data", rows),
        ],
    )
    apart = [work / f"{name}-{seed}" for name in ("mrpc", APART) for seed in range(SEEDS)]
    words = ("analyse", "patterns", "--adapters", ",".join(map(str, apart)))
    hadamard(*words, "--json", results / "patterns_apart.json")


def tune_again(work: Path, results: Path, workers: int) -> None:
    """Of seed 0: the layers that matter least go, those that stay are tuned from the start."""

    def prune(folder: Path) -> None:
        output, found = Path(f"{folder}-again"), Path(f"{folder}-again.json")
        if not found.exists():
            how = ("--by", "zero", "--tune-again", "--output", output)
            hadamard("prune", "--adapters", folder, *how, "--json", found)

    first = [work / f"{name}-0" for name in EPOCHS]
    side_by_side(workers, prune, first)
    found: dict[str, Any] = {}
    for name in first:
        found |= read_json(Path(f"{name}-again.json"))["adapters"]
    write_json(results / "prune_again.json", {"adapters": found, "versions": versions()})


if __name__ == "__main__":
    main()
