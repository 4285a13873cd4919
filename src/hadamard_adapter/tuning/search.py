"""Several runs of one task, learning rates times seeds: which there are, which one dev chooses, what is kept.

The runs stand one after the other in one process. They share the rows, what the frozen layers put
out, and, for each seed, the head of stage 1, which does not depend on the adapter's learning rate.
"""

import dataclasses
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hadamard_adapter.tasks import METRICS
from hadamard_adapter.tuning.report import write_report
from hadamard_adapter.tuning.resume import filled, read_json, write_json
from hadamard_adapter.tuning.settings import TuneSettings
from hadamard_adapter.tuning.stage import best_epoch

__all__ = ["Trial", "as_lines", "choose", "describe", "trials_of", "write_chosen"]


@dataclass(frozen=True)
class Trial:
    """One run of a search."""

    name: str
    """Of its folder."""
    settings: TuneSettings
    """Its own: one learning rate, one seed."""


def trials_of(settings: TuneSettings) -> list[Trial]:
    """The runs that the settings ask for; the runs of one seed stand side by side.

    Args:
        settings: as the user gave them.

    Example:
        >>> several = TuneSettings("m", "o", train="t.csv", lr=(1e-3, 3e-3), seeds=2)
        >>> [trial.name for trial in trials_of(several)]
        ['lr-0.001-seed-0', 'lr-0.003-seed-0', 'lr-0.001-seed-1', 'lr-0.003-seed-1']
    """
    rates = settings.lr if isinstance(settings.lr, tuple) else (settings.lr,)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    return [
        Trial(
            f"lr-{'preset' if lr is None else repr(lr)}-seed-{seed}",
            dataclasses.replace(settings, lr=lr, seed=seed, seeds=1),
        )
        for seed in seeds
        for lr in rates
    ]


def choose(metrics: list[dict[str, Any]], rates: list[float]) -> int:
    """Index of the run to keep: of the rate with the best mean dev score over seeds, the best run.

    Among equals it is the lowest dev loss that counts, then the first.

    Args:
        metrics: content of metrics.json of every run.
        rates: learning rate of every run.

    Example:
        >>> def run(score):
        ...     entry = {"stage": "adapter", "epoch": 1, "dev_loss": 1.0, "scores": {"accuracy": score}}
        ...     return {"metric": "accuracy", "dev": {"accuracy": score}, "curve": [entry]}
        >>> choose([run(0.5), run(0.7), run(0.9), run(0.8)], [0.1, 0.2, 0.1, 0.2])
        3
    """
    name = metrics[0]["metric"]
    sign = METRICS[name].sign

    def mean_of(lr: float) -> float:
        return statistics.fmean(
            sign * entry["dev"][name] for entry, rate in zip(metrics, rates, strict=True) if rate == lr
        )

    best_lr = max(dict.fromkeys(rates), key=mean_of)
    ranked = [
        {**_best_of(entry), "epoch": index}
        for index, (entry, rate) in enumerate(zip(metrics, rates, strict=True))
        if rate == best_lr
    ]
    return best_epoch(ranked, name)["epoch"]


def _best_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """The entry of the curve that the run's last stage ended at."""
    last = [entry for entry in metrics["curve"] if entry["stage"] == metrics["curve"][-1]["stage"]]
    return best_epoch(last, metrics["metric"])


def write_chosen(folders: list[Path], runs: list[dict[str, Any]], key: dict[str, Any], final: Path) -> None:
    """The chosen run's folder as the result, with the figures of all; it appears by a rename.

    Args:
        folders: results of the runs.
        runs: one entry a run, as `describe` gives them.
        key: of the whole search.
        final: folder to make.
    """
    chosen = next(folder for folder, entry in zip(folders, runs, strict=True) if entry["is_chosen"])
    metrics, run = (read_json(chosen / f"{name}.json") for name in ("metrics", "run"))
    metrics["selected_on"] = f"{metrics['selected_on']}, best of {len(runs)} runs"
    metrics["runs"] = runs
    with filled(final) as folder:
        shutil.copytree(chosen, folder, dirs_exist_ok=True)
        write_report(folder, metrics, {**run, "key": key})
        if (folder / "head").is_dir():
            write_json(folder / "head" / "run.json", {**run, "key": key})


def describe(
    trials: list[Trial], metrics: list[dict[str, Any]], seconds: list[dict[str, float]]
) -> list[dict[str, Any]]:
    """One entry a run: learning rate, seed, dev scores, best epochs, seconds, and whether it is chosen.

    Args:
        trials: their settings resolved.
        metrics: content of metrics.json of every run.
        seconds: by stage; of a head that runs share it is the same time.
    """
    rates: list[Any] = [trial.settings.lr for trial in trials]
    chosen = choose(metrics, rates)
    return [
        {
            "lr": trial.settings.lr,
            "seed": trial.settings.seed,
            "dev": entry["dev"],
            "stage1_dev": entry["stage1_dev"],
            "best_epoch": entry["best_epoch"],
            "seconds": spent,
            "is_chosen": index == chosen,
        }
        for index, (trial, entry, spent) in enumerate(zip(trials, metrics, seconds, strict=True))
    ]


def as_lines(runs: list[dict[str, Any]], dev_name: str) -> list[str]:
    """The runs as a small table for the user, a row a learning rate.

    Args:
        runs: as `describe` gives them.
        dev_name: what the dev rows are.

    Example:
        >>> runs = [{"lr": 0.1, "seed": s, "dev": {"f1": 0.5 + s / 10}, "is_chosen": s == 1} for s in (0, 1)]
        >>> for line in as_lines(runs, "dev"):
        ...     print(line)
        dev f1 by learning rate: mean ± sd (n) of the seeds' values
          lr 0.1: 0.5500 ± 0.0707 (2) of 0.5000, 0.6000
        chosen on dev: lr 0.1, seed 1
    """
    name = next(iter(runs[0]["dev"]))
    lines = [f"{dev_name} {name} by learning rate: mean ± sd (n) of the seeds' values"]
    for lr in dict.fromkeys(run["lr"] for run in runs):
        values = [run["dev"][name] for run in runs if run["lr"] == lr]
        sd = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        shown = ", ".join(f"{value:.4f}" for value in values)
        lines.append(f"  lr {lr:g}: {statistics.fmean(values):.4f}{sd} ({len(values)}) of {shown}")
    chosen = next(run for run in runs if run["is_chosen"])
    return [*lines, f"chosen on {dev_name}: lr {chosen['lr']:g}, seed {chosen['seed']}"]
