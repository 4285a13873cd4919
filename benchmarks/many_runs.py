"""What several learning rates in one process save: `hadamard tune --lr A,B,C` beside a command for each.

Command:   python benchmarks/many_runs.py --model MODEL --train FILE --dev FILE [--output FILE]
Expected:  the same scores, bit for bit. Saved: imports, loading and tokenising, stage 1 (no rate of stage 2
           changes it) and what the frozen layers put out; so more with `--layers`, where more is frozen.
Time:      twenty minutes of one core. Nothing else should run meanwhile.

The first 2,000 rows of each file, one thread. Each round does everything once, in a shuffled order, and ends
with the same adapters on disk; processor time of the processes from start to end, medians of the
rounds' ratios with their range.
"""

import csv
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from keep import keep

from hadamard_adapter.tuning.report import processor_name, versions

RATES, N_ROWS, ROUNDS = ("0.002", "0.005", "0.01"), 2000, 3
WAYS = {"all layers": (), "upper two thirds, --layers 2-5": ("--layers", "2-5")}


def timed(command: list[str]) -> tuple[float, float]:
    """Processor and wall seconds of a command."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return own, time.perf_counter() - started


def cut(file: str, place: Path, name: str) -> str:
    """A CSV file of the first rows of another, its header with them."""
    with (
        open(file, newline="", encoding="utf-8") as whole,
        (place / name).open("w", newline="", encoding="utf-8") as part,
    ):
        csv.writer(part).writerows(itertools.islice(csv.reader(whole), N_ROWS + 1))
    return str(place / name)


def scores_in(folder: Path) -> list[dict[str, float]]:
    """Dev scores of each run in a folder, in the order of the rates."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return [run["dev"] for run in metrics.get("runs", [metrics])]


def measured(tune: list[str], place: Path) -> dict[str, Any]:
    """Seconds of both ways in every round, and their scores."""
    seconds: dict[str, list[tuple[float, float]]] = {"one process": [], "a process each": []}
    scores: dict[str, list[dict[str, float]]] = {}
    for index in range(ROUNDS):
        for way in random.Random(index).sample(list(seconds), len(seconds)):
            parts = [",".join(RATES)] if way == "one process" else RATES
            folders = [place / f"{way}-{index}-{part}" for part in parts]
            both = zip(parts, folders, strict=True)
            each = [timed([*tune, "--lr", part, "--output", str(folder)]) for part, folder in both]
            seconds[way].append((sum(own for own, _ in each), sum(wall for _, wall in each)))
            scores[way] = [score for folder in folders for score in scores_in(folder)]
    ratios = [each[0] / one[0] for one, each in zip(*seconds.values(), strict=True)]
    return {
        "seconds": {
            way: [[round(value, 2) for value in pair] for pair in each] for way, each in seconds.items()
        },
        "times_faster": [round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))],
        "scores": scores,
        "scores_are_equal": scores["one process"] == scores["a process each"],
    }


@click.command()
@click.option("--model", required=True, help="Folder of the base model.")
@click.option("--train", required=True, help="File of training rows.")
@click.option("--dev", required=True, help="File of dev rows.")
@click.option("--output", default=Path("results/many_runs.json"), type=Path)
def main(model: str, train: str, dev: str, output: Path) -> None:
    """Measure and write."""
    found = dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tune = [sys.executable, "-m", "hadamard_adapter.cli", "tune", "--model", model, "--quiet"]
        tune += ["--train", cut(train, place, "train.csv"), "--dev", cut(dev, place, "dev.csv")]
        tune += ["--head-epochs", "1", "--epochs", "3", "--head-batch-size", "32"]
        for name, more in WAYS.items():
            found[name] = measured([*tune, *more], place / name)
            print(name, found[name], flush=True)
    about = {"rates": RATES, "seconds_are": ["processor", "wall"], "processor": processor_name()}
    keep(output, {**about, "ways": found, "versions": versions()})


if __name__ == "__main__":
    main()
