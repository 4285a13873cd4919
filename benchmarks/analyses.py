"""The paper's analyses on adapters of five GLUE tasks: which layers can go, what is shared, what attention does.

Command (what is finished is not done again, safe to kill and repeat):

    python benchmarks/analyses.py --model downloads/all-MiniLM-L6-v2 --data GLUE_FOLDER

It writes the rows as files (SST-2 a fixed part of 10,000), tunes an adapter a task and seed with the preset
paper, tunes SST-2, STS-B and CoLA fully once, and calls the commands `hadamard prune`, `hadamard analyse
patterns`, `sharing` and `outputs`, as anyone would. Results: results/analyses/*.json, pictures:
docs/experiments/*.svg.

Expected: two thirds of the layers lose at most two points; adapters of two seeds are alike, of two tasks
nearly orthogonal. Time: an hour of one core with bfloat16. The best epoch is chosen on dev, for all alike.
"""

import csv
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoModelForSequenceClassification

from hadamard_adapter.bench.rows import read_rows
from hadamard_adapter.bench.spec import TaskSpec
from hadamard_adapter.bench.train import train
from hadamard_adapter.tasks import Examples, Task
from hadamard_adapter.tuning import TuneSettings, tune
from hadamard_adapter.tuning.data import read_data
from hadamard_adapter.tuning.report import versions
from hadamard_adapter.tuning.resume import read_json, remove, write_json

ROOT = Path(__file__).parent.parent
EPOCHS = {"sst2": 3, "stsb": 5, "mrpc": 5, "cola": 5, "rte": 5}
SEEDS, LR, FULL_LR = 3, 1e-2, 1e-4
FULLY_TUNED = ("sst2", "stsb", "cola")


def write_rows(path: Path, task: Task, examples: Examples) -> None:
    """Rows as CSV: text, text_pair if there is one, label."""
    pairs = examples.pairs
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", *(["text_pair"] if pairs is not None else []), "label"])
        for index, label in enumerate(examples.labels or []):
            pair = [] if pairs is None else [pairs[index]]
            named = label if task.problem_type == "regression" else task.label_names[int(label)]
            writer.writerow([examples.texts[index], *pair, named])


def settings_for(model: str, parts: Path, name: str, seed: int, output: Path, **more: Any) -> TuneSettings:
    """What a run has in common: files of rows, the task's official metric, epochs."""
    task = read_data(TuneSettings(model, "none", train=str(parts / f"{name}-dev.csv"))).task
    kind = "regression" if name == "stsb" else task.problem_type
    return TuneSettings(
        model, str(output), train=str(parts / f"{name}-train.csv"), dev=str(parts / f"{name}-dev.csv"),
        problem_type=kind, metric={"cola": "mcc", "stsb": "pearson"}.get(name), epochs=EPOCHS[name],
        seed=seed, quiet=True, **more,
    )  # fmt: skip


def hadamard(*words: object) -> None:
    """The command, as anyone would call it."""
    print("hadamard", *words, flush=True)
    subprocess.run([sys.executable, "-m", "hadamard_adapter.cli", *map(str, words)], check=True)


@click.command()
@click.option("--model", required=True)
@click.option("--data", required=True)
@click.option("--work", default=Path("build/analyses"), type=Path)
@click.option("--results", default=ROOT / "results" / "analyses", type=Path)
@click.option("--pictures", default=ROOT / "docs" / "experiments", type=Path)
def main(model: str, data: str, work: Path, results: Path, pictures: Path) -> None:
    """Tune what is missing, then analyse."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    for name in EPOCHS:
        rows = read_rows(TaskSpec(name, rows=10_000 if name == "sst2" else None), data)
        found = rows.to_score("dev")
        write_rows(work / f"{name}-train.csv", rows.task, found.train)
        write_rows(work / f"{name}-dev.csv", rows.task, found.dev)
    tuned: dict[str, Any] = {}
    for seed in range(SEEDS):
        for name in EPOCHS:
            settings = settings_for(model, work, name, seed, work / f"{name}-{seed}", preset="paper", lr=LR)
            metrics = tune(settings).metrics
            kept = ("metric", "dev", "stage1_dev", "best_epoch", "adapter_parameters", "share_percent")
            tuned[f"{name}-{seed}"] = {key: metrics[key] for key in kept}
            print(name, seed, metrics["dev"], "head alone", metrics["stage1_dev"], flush=True)
    full: dict[str, Any] = {}
    for name in FULLY_TUNED:
        settings = settings_for(model, work, name, 0, work / "none", stages=1, lr=FULL_LR)
        settings = dataclasses.replace(settings, stage2_head_lr=FULL_LR)
        full[name] = full_model(settings, work / f"full-{name}")
        print("full", name, full[name], flush=True)
    write_json(
        results / "adapters.json",
        {
            "adapters": tuned,
            "full": full,
            "lr": LR,
            "full_lr": FULL_LR,
            "epochs": EPOCHS,
            "versions": versions(),
        },
    )
    analyse(model, work, results, pictures)


def full_model(settings: TuneSettings, folder: Path) -> dict[str, float]:
    """Fine-tune everything into a folder, once; its dev scores."""
    scores, on_the_way = folder / "scores.json", folder.with_suffix(".work")
    if not scores.exists():
        best = train("full", settings, read_data(settings), on_the_way).best
        tuned = AutoModelForSequenceClassification.from_pretrained(
            on_the_way / "both" / f"checkpoint-{best['step']}"
        )
        tuned.save_pretrained(folder)
        write_json(scores, best["scores"])
    remove(on_the_way)
    return read_json(scores)


def analyse(model: str, work: Path, results: Path, pictures: Path) -> None:
    """The commands, each with its result file and picture."""
    every = ",".join(str(work / f"{name}-{seed}") for name in EPOCHS for seed in range(SEEDS))
    first = ",".join(str(work / f"{name}-0") for name in EPOCHS)
    for command, words in {
        "patterns": ("analyse", "patterns", "--adapters", every),
        "sharing": ("analyse", "sharing", "--adapters", every),
        "outputs": (
            *("analyse", "outputs", "--model", model),
            *("--tuned", ",".join(str(work / f"full-{name}") for name in FULLY_TUNED)),
            *("--data", ",".join(str(work / f"{name}-dev.csv") for name in FULLY_TUNED)),
        ),
        "prune": ("prune", "--adapters", first, "--curve"),
    }.items():
        files = ("--json", results / f"{command}.json", "--plot", pictures / f"{command}.svg")
        hadamard(*words, *files)


if __name__ == "__main__":
    main()
