"""Can tasks share an adapter? Score against the numbers that a task stores, on parts of four GLUE tasks.

Command (what is finished is not done again, safe to kill and repeat):

    python benchmarks/shared_adapters.py --model MODEL --data GLUE_FOLDER

For each task and seed, with the preset wide (18,432 offsets for MiniLM):

    head      no adapter: stage 1
    own       an adapter of its own
    mean      the same, started from the mean of the other tasks' adapters
    basis k   k coefficients of the k directions that hold most of the other tasks' adapters, all seeds
    basis with it k   the same, but its own adapters are among those that the directions are made of
    together  one adapter for all four tasks: a task stores its head alone

Means, and directions but for "with it", never come from the task itself. Training rows whose text is in any
task's dev part are left out (STS-B took pairs from MRPC's corpus); the counts are in the result, and how many
training rows of a task hold a text that another one trains on.
RTE is left out: no method learns it here from 2,490 rows (docs/log.md, "The grid of methods, whole").
Expected: own and mean alike; basis between head and own. The best epoch is chosen on dev, for all alike.
Time: two and a half hours of one core in float32 for three seeds (--seeds); the result is written after each.
Result: results/shared.json, docs/experiments/shared.svg.
"""

import dataclasses
import itertools
import statistics
from pathlib import Path
from typing import Any

import click
import torch
from keep import keep
from overlaps import all_texts, without

from hadamard_adapter.analysis.pictures import save_figure
from hadamard_adapter.analysis.sharing import save_basis, save_mean
from hadamard_adapter.bench.rows import cut, read_rows
from hadamard_adapter.bench.spec import TaskSpec
from hadamard_adapter.files import read_json, write_json
from hadamard_adapter.tuning import TuneSettings, tune
from hadamard_adapter.tuning.data import TuneData
from hadamard_adapter.tuning.report import versions
from hadamard_adapter.tuning.together import tune_together

ROOT = Path(__file__).parent.parent
TASKS = ("cola", "sst2", "mrpc", "stsb")
SEEDS_IN_BASIS = 6  # 3 other tasks x 6 seeds: 18 adapters hold 16 directions
N_ROWS, N_DEV, EPOCHS = 1000, 500, 8
DIRECTIONS = (1, 4, 16)
BASIS_LR = 5e-2


def rows_without_overlap(data: str) -> tuple[dict[str, TuneData], dict[str, int]]:
    """Each task's rows, and how many training rows were left out for a text that a dev part holds."""
    found = {name: read_rows(TaskSpec(name, rows=N_ROWS), data).to_score("dev") for name in TASKS}
    found = {name: dataclasses.replace(one, dev=cut(one.dev, N_DEV)) for name, one in found.items()}
    seen = all_texts(one.dev for one in found.values())
    dropped: dict[str, int] = {}
    for name, one in found.items():
        found[name] = dataclasses.replace(one, train=without(one.train, seen))
        dropped[name] = len(one.train) - len(found[name].train)
    return found, dropped


def trained_on_by_both(rows: dict[str, TuneData]) -> dict[str, dict[str, int]]:
    """Task -> other task -> its training rows that hold a text of the other's; none is left out."""
    found: dict[str, dict[str, int]] = {}
    for name, other in itertools.permutations(rows, 2):
        own = rows[name].train
        if n_rows := len(own) - len(without(own, all_texts([rows[other].train]))):
            found.setdefault(name, {})[other] = n_rows
    return found


@click.command()
@click.option("--model", required=True)
@click.option("--data", required=True)
@click.option("--work", default="build/shared", type=Path)
@click.option("--output", default=ROOT / "results" / "shared.json", type=Path)
@click.option("--seeds", default=3, help="Of all but the adapters of their own, which have six.")
def main(model: str, data: str, work: Path, output: Path, seeds: int) -> None:
    """Tune what is missing, then write result and picture."""
    torch.set_num_threads(1)
    rows, dropped = rows_without_overlap(data)
    scores: dict[str, dict[str, dict[str, float]]] = {name: {} for name in TASKS}
    numbers: dict[str, int] = {"head": 0, "together": 0}
    shares: dict[str, dict[str, list[float]]] = {}

    def settings_for(name: str, kind: str, seed: int, **more: Any) -> TuneSettings:
        place = work / f"{kind}-{seed}" / name
        common: dict[str, Any] = {"epochs": EPOCHS, "dtype": "auto", "quiet": True, "seed": seed}
        return TuneSettings(model, str(place), task=name, data=data, **common, **more)

    def note(name: str, kind: str, seed: int, metrics: dict[str, Any]) -> None:
        metric = metrics["metric"]
        scores[name].setdefault(kind, {})[str(seed)] = metrics["dev"][metric]
        if kind == "own":
            scores[name].setdefault("head", {})[str(seed)] = metrics["stage1_dev"][metric]
        if kind != "together":
            numbers[kind] = metrics["adapter_parameters"]
        print(f"{name} {kind} {seed}: {metric} {metrics['dev'][metric]:.4f}", flush=True)

    def run(name: str, kind: str, seed: int, **more: Any) -> None:
        note(name, kind, seed, tune(settings_for(name, kind, seed, **more), data=rows[name]).metrics)

    def write() -> None:
        found = {
            "tasks": {
                name: {"metric": rows[name].task.metrics[0], "scores": scores[name], "dropped": dropped[name]}
                for name in TASKS
            },
            "numbers_a_task": numbers,
            "share_of_the_others_held": shares,
            "trained_on_by_both": trained_on_by_both(rows),
            "settings": {
                "model": Path(model).name, "rows": N_ROWS, "dev_rows": N_DEV, "epochs": EPOCHS,
                "basis_lr": BASIS_LR, "selected_on": "dev",
            },
            "versions": versions(),
        }  # fmt: skip
        keep(output, found)
        save_figure(picture(found), str(ROOT / "docs" / "experiments" / "shared.svg"))

    for seed in range(SEEDS_IN_BASIS):
        for name in TASKS:
            run(name, "own", seed)
    every = [str(work / f"own-{seed}" / name) for seed in range(SEEDS_IN_BASIS) for name in TASKS]
    for seed in range(seeds):  # a killed run has as many seeds of each task and way, or one less
        for name in TASKS:
            others = [folder for folder in every if Path(folder).name != name]
            mean = work / f"mean-of-others-{name}"
            if not mean.exists():
                save_mean(others, mean)
            run(name, "mean", seed, start=str(mean))
            for k in DIRECTIONS:
                for kind, part, folders in (("basis", name, others), ("basis with it", "all", every)):
                    file = work / f"basis-{part}-{k}.safetensors"
                    held = file.with_suffix(".json")
                    if not (file.exists() and held.exists()):
                        write_json(held, [round(float(share), 4) for share in save_basis(folders, k, file)])
                    shares.setdefault(part, {})[str(k)] = read_json(held)
                    run(name, f"{kind} {k}", seed, basis=str(file), lr=BASIS_LR)
        one = [settings_for(name, "together", seed) for name in TASKS]
        results = tune_together(one, work / f"together-{seed}", data=[rows[name] for name in TASKS])
        for name, result in results.items():
            note(name, "together", seed, result.metrics)
        write()


def picture(found: dict[str, Any]) -> Any:
    """Score of each way against the numbers that a task stores beside its head, a panel a task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(TASKS) + 1.2, 3.2), layout="constrained")
    for axes, (name, task) in zip(figure.subplots(1, len(TASKS)), found["tasks"].items(), strict=True):
        for index, (kind, scores) in enumerate(task["scores"].items()):
            x, values = found["numbers_a_task"][kind], list(scores.values())
            axes.plot([x] * len(values), values, ".", color=f"C{index}", alpha=0.4)
            axes.plot([x], [statistics.mean(values)], "o", color=f"C{index}", label=kind)
        axes.set_xscale("symlog", linthresh=1)
        axes.set(title=name, xlabel="numbers a task", ylabel=task["metric"])
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return figure


if __name__ == "__main__":
    main()
