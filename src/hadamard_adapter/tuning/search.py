"""Several runs of one task, learning rates times seeds: which there are, which one dev chooses, what is kept.

The runs stand one after the other in one process. They share the rows, what the frozen layers put
out, and, for each seed, the head of stage 1, which does not depend on the adapter's learning rate.
"""

import dataclasses
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hadamard_adapter.files import filled, read_json, write_json
from hadamard_adapter.tasks import METRICS
from hadamard_adapter.tuning.report import write_report
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


def choose(metrics: Sequence[dict[str, Any] | None], rates: list[float]) -> int:
    """Index of the run to keep: of the rate with the best mean dev score over seeds, the best run.

    Among equals it is the lowest dev loss that counts, then the first. A rate that diverged with a seed
    stands behind all that did with none.

    Args:
        metrics: content of metrics.json of every run; None: it diverged. One is there.
        rates: learning rate of every run.

    Example:
        >>> def run(score):
        ...     entry = {"stage": "adapter", "epoch": 1, "dev_loss": 1.0, "scores": {"accuracy": score}}
        ...     return {"metric": "accuracy", "dev": {"accuracy": score}, "curve": [entry]}
        >>> choose([run(0.5), run(0.7), run(0.9), run(0.8)], [0.1, 0.2, 0.1, 0.2])
        3
    """
    finished = [
        (index, rate, entry)
        for index, (entry, rate) in enumerate(zip(metrics, rates, strict=True))
        if entry is not None
    ]
    name = finished[0][2]["metric"]
    sign = METRICS[name].sign

    def rank(lr: float) -> tuple[bool, float, float]:
        own = [entry for _, rate, entry in finished if rate == lr]
        score = statistics.fmean(sign * entry["dev"][name] for entry in own)
        loss = statistics.fmean(_best_of(entry)["dev_loss"] for entry in own)
        return len(own) == rates.count(lr), score, -loss

    best_lr = max(dict.fromkeys(rate for _, rate, _ in finished), key=rank)
    ranked = [{**_best_of(entry), "epoch": index} for index, rate, entry in finished if rate == best_lr]
    return best_epoch(ranked, name)["epoch"]


def _best_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """The entry of the curve that the run's last stage ended at."""
    last = [entry for entry in metrics["curve"] if entry["stage"] == metrics["curve"][-1]["stage"]]
    return best_epoch(last, metrics["metric"])


def write_chosen(chosen: Path, runs: list[dict[str, Any]], key: dict[str, Any], final: Path) -> None:
    """The chosen run's folder as the result, with the figures of all; it appears by a rename.

    Args:
        chosen: result of the chosen run.
        runs: one entry a run, as `describe` gives them.
        key: of the whole search.
        final: folder to make.
    """
    metrics, run = (read_json(chosen / f"{name}.json") for name in ("metrics", "run"))
    metrics["selected_on"] = f"{metrics['selected_on']}, best of {len(runs)} runs"
    metrics["runs"] = runs
    with filled(final) as folder:
        shutil.copytree(chosen, folder, dirs_exist_ok=True)
        write_report(folder, metrics, {**run, "key": key})
        if (folder / "head").is_dir():
            write_json(folder / "head" / "run.json", {**run, "key": key})


def describe(trials: list[Trial], outcomes: Sequence[Path | str]) -> list[dict[str, Any]]:
    """One entry a run: learning rate, seed, dev scores, best epochs, seconds, and whether it is chosen.

    Of a run that diverged there is its error instead of scores, epochs and seconds. Seconds are by stage; of
    a head that runs share it is the same time.

    Args:
        trials: their settings resolved.
        outcomes: of every run the folder of its result, or in words how it diverged.
    """
    rates: list[Any] = [trial.settings.lr for trial in trials]
    metrics = [None if isinstance(end, str) else read_json(end / "metrics.json") for end in outcomes]
    chosen = choose(metrics, rates)
    runs: list[dict[str, Any]] = []
    for index, (trial, entry, end) in enumerate(zip(trials, metrics, outcomes, strict=True)):
        shown: dict[str, Any] = {"error": end}
        if entry is not None and isinstance(end, Path):
            shown = {name: entry[name] for name in ("dev", "stage1_dev", "best_epoch")}
            shown["seconds"] = read_json(end / "run.json")["seconds"]
        which = {"lr": trial.settings.lr, "seed": trial.settings.seed}
        runs.append({**which, **shown, "is_chosen": index == chosen})
    return runs


def as_lines(runs: list[dict[str, Any]], dev_name: str) -> list[str]:
    """The runs as a small table for the user, a row a learning rate.

    Args:
        runs: as `describe` gives them.
        dev_name: what the dev rows are.

    Example:
        >>> runs = [{"lr": 0.1, "seed": s, "dev": {"f1": 0.5 + s / 10}, "is_chosen": s == 1} for s in (0, 1)]
        >>> runs.append({"lr": 9.0, "seed": 0, "error": "loss is nan at step 3", "is_chosen": False})
        >>> for line in as_lines(runs, "dev"):
        ...     print(line)
        dev f1 by learning rate: mean ± sd (n) of the seeds' values
          lr 0.1: 0.5500 ± 0.0707 (2) of 0.5000, 0.6000
          lr 9: 1 diverged
        chosen on dev: lr 0.1, seed 1
    """
    chosen = next(run for run in runs if run["is_chosen"])
    name = next(iter(chosen["dev"]))
    lines = [f"{dev_name} {name} by learning rate: mean ± sd (n) of the seeds' values"]
    for lr in dict.fromkeys(run["lr"] for run in runs):
        own = [run for run in runs if run["lr"] == lr]
        values = [run["dev"][name] for run in own if "dev" in run]
        shown: list[str] = []
        if values:
            sd = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            each = ", ".join(f"{value:.4f}" for value in values)
            shown.append(f"{statistics.fmean(values):.4f}{sd} ({len(values)}) of {each}")
        if len(values) < len(own):
            shown.append(f"{len(own) - len(values)} diverged")
        lines.append(f"  lr {lr:g}: {'; '.join(shown)}")
    return [*lines, f"chosen on {dev_name}: lr {chosen['lr']:g}, seed {chosen['seed']}"]
