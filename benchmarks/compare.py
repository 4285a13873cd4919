"""Hadamard, LoRA and full fine-tuning side by side on GLUE tasks, through one data path and one Trainer.

Command (one JSON a run under results/compare, runs that exist are not run again, safe to kill and repeat):

    python benchmarks/compare.py --model MODEL --data GLUE_FOLDER --methods wide,paper,lora,full

Then `python benchmarks/compare.py --table` prints the table of mean ± sd over seeds with the values.
Expected (MiniLM-L6, dev): CoLA 0.2 to 0.35 MCC, STS-B 0.83 to 0.86 Pearson, MRPC 0.75 to 0.87 accuracy.
Time: 3 to 10 minutes a run on one core with bfloat16 (--bf16), twice that without.

The best epoch of every method is chosen on dev, so dev scores are somewhat high, for all alike.
"""

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from transformers import set_seed

from hadamard_adapter.tasks import GLUE, load_glue
from hadamard_adapter.tuning import TuneSettings, tune
from hadamard_adapter.tuning.data import read_data
from hadamard_adapter.tuning.models import collator, load_base, load_tokenizer, quiet_libraries, tokenize
from hadamard_adapter.tuning.report import versions
from hadamard_adapter.tuning.resume import write_json
from hadamard_adapter.tuning.settings import resolve
from hadamard_adapter.tuning.stage import Stage
from hadamard_adapter.tuning.training import run_stage

RESULTS = Path(__file__).parent.parent / "results" / "compare"
PATHS = ("model", "output", "data", "train", "dev")
EPOCHS = {"cola": 5, "stsb": 3, "mrpc": 3, "rte": 5, "sst2": 3}
N_HELD_OUT = 1000


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the comparison."""

    settings: dict[str, Any]
    """What differs from the defaults of TuneSettings."""
    wrap: Callable[[torch.nn.Module], torch.nn.Module] | None = None
    """Makes the trained model of the base model; None: the recipe of `tune`."""


def _lora(model: torch.nn.Module) -> torch.nn.Module:
    """Rank 8 on query and value, with the same head as the adapter's (a pooler belongs to it)."""
    ends, head = {
        "bert": (["query", "value"], ["pooler", "classifier"]),
        "mpnet": (["attn.q", "attn.v"], ["classifier"]),
    }[model.config.model_type]
    config = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=ends, modules_to_save=head)
    return get_peft_model(model, config)


def _full(model: torch.nn.Module) -> torch.nn.Module:
    return model


METHODS: dict[str, Method] = {
    "wide": Method({"preset": "wide"}),
    "paper": Method({"preset": "paper"}),
    "lora": Method({"lr": 1e-3}, _lora),
    "full": Method({"lr": 1e-4}, _full),
}


@click.command()
@click.option("--model", help="Folder of the base model.")
@click.option("--data", help="Folder of GLUE.")
@click.option(
    "--tasks",
    default="cola,stsb,mrpc",
    show_default=True,
    help="GLUE tasks, or folders with train.csv and dev.csv.",
)
@click.option("--methods", default=",".join(METHODS), show_default=True, help="Rows of METHODS.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Seeds.")
@click.option(
    "--part", type=int, help="Search: this many training rows, scored on 1,000 others of train, not on dev."
)
@click.option("--bf16", is_flag=True, help="Compute in bfloat16 (autocast), all methods alike.")
@click.option("--table", is_flag=True, help="Print the table of the results that exist.")
@click.option("--tag", default="", help="Part of the result's name, for variants.")
@click.option("--set", "changes", multiple=True, help="field=value of TuneSettings, for variants.")
def main(
    model: str,
    data: str,
    tasks: str,
    methods: str,
    seeds: str,
    part: int | None,
    bf16: bool,
    table: bool,
    tag: str,
    changes: tuple[str, ...],
) -> None:
    """Run what is missing, or print the table."""
    if table:
        click.echo(make_table(RESULTS))
        return
    changed = {key: json.loads(value) for key, value in (change.split("=", 1) for change in changes)}
    for seed in map(int, seeds.split(",")):
        for task in tasks.split(","):
            for name in methods.split(","):
                rows = Path(task).name + (f"_{part}" if part else "")
                parts = [Path(model).absolute().name, rows, name, *([tag] if tag else []), f"s{seed}"]
                path = RESULTS / ("-".join(parts) + ".json")
                if path.exists():
                    continue
                given = {"epochs": EPOCHS.get(task, 5)} | METHODS[name].settings
                dtype = "bfloat16" if bf16 else "float32"
                settings = TuneSettings(
                    **{"model": model, "output": "unused", "seed": seed, "dtype": dtype, "device": "cpu"}
                    | (part_of(task, data, part) if part else rows_of(task, data))
                    | given
                    | changed
                )
                result = run(name, settings)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, {"method": name, "task": rows, "tag": tag, **result})
                click.echo(f"{path.name}: {result['score']:.4f} in {result['seconds']:.0f} s")


def rows_of(task: str, data: str | None) -> dict[str, str | None]:
    """Settings that name the rows: a GLUE task, or a folder with train.csv and dev.csv."""
    if Path(task).is_dir():
        return {"train": f"{task}/train.csv", "dev": f"{task}/dev.csv"}
    return {"task": task, "data": data}


def part_of(task: str, data: str, n_rows: int) -> dict[str, str | None]:
    """Settings for a search: `n_rows` rows of train (drawn with seed 0), scored on 1,000 others of train."""
    described, train, _ = load_glue(task, f"{data}/{GLUE[task].folder}")
    order = np.random.default_rng(0).permutation(len(train.texts))[: n_rows + N_HELD_OUT]
    folder = Path("build") / "parts" / f"{task}-{n_rows}"
    folder.mkdir(parents=True, exist_ok=True)
    names = described.label_names
    for file, indices in {"train": order[:n_rows], "dev": order[n_rows:]}.items():
        rows = pd.DataFrame({"text": [train.texts[i] for i in indices]})
        if train.pairs is not None:
            rows["pair"] = [train.pairs[i] for i in indices]
        rows["label"] = [f"label {names[y]}" if names else y for y in (train.labels[i] for i in indices)]
        rows.to_csv(folder / f"{file}.csv", index=False)
    pair = "pair" if train.pairs is not None else None
    files = {"train": f"{folder}/train.csv", "dev": f"{folder}/dev.csv"}
    kind = {"problem_type": described.problem_type, "metric": described.metrics[0]}
    return {**files, **kind, "text": "text", "pair": pair, "label": "label"}


def run(name: str, settings: TuneSettings) -> dict[str, Any]:
    """One run: its score on dev, its curve, its parameters, its settings."""
    with tempfile.TemporaryDirectory() as folder:
        settings = dataclasses.replace(settings, output=f"{folder}/out", quiet=True)
        start = time.perf_counter()
        found = (
            _tuned(settings) if METHODS[name].wrap is None else _wrapped(settings, METHODS[name].wrap, folder)
        )
    return {
        "score": found["dev"][found["metric"]],
        "seed": settings.seed,
        **found,
        "selected_on": "dev (best epoch)",
        "seconds": time.perf_counter() - start,
        "settings": {
            k: v for k, v in found["settings"].items() if k not in ("model", "output", "data", "train", "dev")
        },
        "versions": versions(),
    }


def _tuned(settings: TuneSettings) -> dict[str, Any]:
    result = tune(settings)
    kept = ("dev", "metric", "best_epoch", "stage1_dev", "adapter_parameters", "head_parameters", "curve")
    return {**{key: result.metrics[key] for key in kept}, "settings": result.run["settings"]}


def _wrapped(settings: TuneSettings, wrap: Callable[[Any], Any], folder: str) -> dict[str, Any]:
    with quiet_libraries():
        data = read_data(settings)
        settings = resolve(settings, len(data.train.texts))
        tokenizer = load_tokenizer(settings.model)
        set_seed(settings.seed)
        model = wrap(load_base(settings.model, data.task, tokenizer.pad_token_id))
        sizes = {key: p.numel() for key, p in model.named_parameters() if p.requires_grad}
        n_head = sum(size for key, size in sizes.items() if "classifier" in key or "pooler" in key)
        rows = [
            [
                {**row, "labels": y}
                for row, y in zip(tokenize(tokenizer, e.texts, e.pairs, 256).rows, e.labels, strict=True)
            ]
            for e in (data.train, data.dev)
        ]
        rates = dict.fromkeys(("scale", "shift", "norm", "head"), settings.lr)
        stage = Stage(
            "both",
            settings.epochs,
            settings.batch_size,
            rates,
            *rows,
            collator(tokenizer, data.task.problem_type),
        )
        outcome = run_stage(model, stage, data.task, settings, Path(folder) / "stage", None)
    return {
        "dev": outcome.best["scores"],
        "metric": data.task.metrics[0],
        "best_epoch": outcome.best["epoch"],
        "adapter_parameters": sum(sizes.values()) - n_head,
        "head_parameters": n_head,
        "curve": outcome.curve,
        "settings": dataclasses.asdict(settings),
    }


def make_table(folder: Path) -> str:
    """Markdown: a row a model, task, method and tag; mean ± sd over seeds with n and the values."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        groups.setdefault(tuple(path.stem.split("-")[:-1]), []).append(json.loads(path.read_text()))
    lines = [
        "| run | metric | dev score, mean ± sd | n | values | adapter | head | seconds |",
        "|" + "---|" * 8,
    ]
    for key, runs in groups.items():
        scores = [entry["score"] for entry in runs]
        sd = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
        first = runs[0]
        lines.append(
            f"| {' '.join(key)} | {first['metric']} | {statistics.mean(scores):.3f}{sd} | {len(scores)} | "
            f"{', '.join(f'{score:.3f}' for score in scores)} | {first['adapter_parameters']:,} | "
            f"{first['head_parameters']:,} | {statistics.median(r['seconds'] for r in runs):.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
