"""The paper's analyses on adapters of five GLUE tasks: layers that can go, patterns, what attention does.

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
from hadamard_adapter.tasks import Examples
from hadamard_adapter.tuning import TuneSettings, tune
from hadamard_adapter.tuning.data import TuneData, read_data
from hadamard_adapter.tuning.report import versions
from hadamard_adapter.tuning.resume import read_json, remove, write_json

ROOT = Path(__file__).parent.parent
EPOCHS = {"sst2": 3, "stsb": 5, "mrpc": 5, "cola": 5, "rte": 5}
SEEDS, LR, FULL_LR = 3, 1e-2, 1e-4
FULLY_TUNED = ("sst2", "stsb", "cola")


def write_parts(data: str, parts: Path) -> None:
    """GLUE's folders as they are, but of SST-2 a fixed part of its training rows."""
    parts.mkdir(parents=True, exist_ok=True)
    for folder in ("CoLA", "MRPC", "STS-B", "RTE"):
        link = parts / folder
        if not link.exists():
            link.symlink_to((Path(data) / folder).absolute())
    (parts / "SST-2").mkdir(exist_ok=True)
    rows = read_rows(TaskSpec("sst2", rows=10_000), data).to_score("dev")
    for name, examples in (("train", rows.train), ("dev", rows.dev)):
        with (parts / "SST-2" / f"{name}.tsv").open("w", encoding="utf-8") as file:
            file.write("sentence\tlabel\n")
            for text, label in zip(examples.texts, examples.labels or [], strict=True):
                file.write(f"{text}\t{int(label)}\n")


def write_texts(path: Path, examples: Examples) -> None:
    """The texts of rows as CSV."""
    pairs = None if examples.pairs is None else zip(examples.texts, examples.pairs, strict=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text"] if pairs is None else ["text", "text_pair"])
        writer.writerows([[text] for text in examples.texts] if pairs is None else pairs)


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
    for folder in (work, results, pictures):
        folder.mkdir(parents=True, exist_ok=True)
    write_parts(data, work / "glue")

    def settings_for(name: str, seed: int, output: Path, **more: Any) -> TuneSettings:
        rows: dict[str, Any] = {"task": name, "data": str(work / "glue"), "epochs": EPOCHS[name]}
        return TuneSettings(model, str(output), **rows, seed=seed, quiet=True, **more)

    tuned: dict[str, Any] = {}
    for seed in range(SEEDS):
        for name in EPOCHS:
            settings = settings_for(name, seed, work / f"{name}-{seed}", preset="paper", lr=LR)
            metrics = tune(settings).metrics
            kept = ("metric", "dev", "stage1_dev", "best_epoch", "adapter_parameters", "share_percent")
            tuned[f"{name}-{seed}"] = {key: metrics[key] for key in kept}
            print(name, seed, metrics["dev"], "head alone", metrics["stage1_dev"], flush=True)
    full: dict[str, Any] = {}
    for name in FULLY_TUNED:
        settings = settings_for(name, 0, work / "none", stages=1, lr=FULL_LR, stage2_head_lr=FULL_LR)
        data_of_task = read_data(settings)
        write_texts(work / f"{name}-dev.csv", data_of_task.dev)
        full[name] = full_model(settings, data_of_task, work / f"full-{name}")
        print("full", name, full[name], flush=True)
    rates = {"lr": LR, "full_lr": FULL_LR, "epochs": EPOCHS}
    write_json(results / "adapters.json", {"adapters": tuned, "full": full, **rates, "versions": versions()})
    analyse(model, work, results, pictures)


def full_model(settings: TuneSettings, data: TuneData, folder: Path) -> dict[str, float]:
    """Fine-tune everything into a folder, once; its dev scores."""
    scores, on_the_way = folder / "scores.json", folder.with_suffix(".work")
    if not scores.exists():
        best = train("full", settings, data, on_the_way).best
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
    tuned = ",".join(str(work / f"full-{name}") for name in FULLY_TUNED)
    rows = ",".join(str(work / f"{name}-dev.csv") for name in FULLY_TUNED)
    for command, words in {
        "patterns": ("analyse", "patterns", "--adapters", every),
        "sharing": ("analyse", "sharing", "--adapters", every),
        "outputs": ("analyse", "outputs", "--model", model, "--tuned", tuned, "--data", rows),
        "prune": ("prune", "--adapters", every, "--curve"),
    }.items():
        files = ("--json", results / f"{command}.json", "--plot", pictures / f"{command}.svg")
        hadamard(*words, *files)
    again: dict[str, Any] = {}
    for adapter in every.split(","):
        found = work / "again.json"
        hadamard(
            "prune", "--adapters", adapter, "--tune-again", "--output", f"{adapter}-again", "--json", found
        )
        again |= read_json(found)["adapters"]
    write_json(results / "prune_again.json", {"adapters": again, "versions": versions()})


if __name__ == "__main__":
    main()
