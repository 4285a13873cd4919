"""What the adapter costs in time: ratios to the bare model, measured side by side in one run.

Command:   python benchmarks/overhead.py --model MODEL [--output results/overhead.json]
Expected:  merged 1.00, unmerged at most 1.02, training step at most 0.65 of full fine-tuning's (batches of
           32x32 and 16x128 tokens); 1x16 is reported, where the time is Python's more than the adapter's.
Time:      8 minutes on one core. Nothing else should run meanwhile.

One thread, and its processor time: what other programs on the machine take does not count. The variants
take turns within each round, in a shuffled order, since who ran before leaves its traces; the median of the
rounds' ratios is given with its 95 % bootstrap interval. All variants read the same weights in the same
memory: two copies of one model differ by up to 4 % for where their weights happen to lie. bare_again, a
second bare model, shows what noise is left.

The process keeps the memory that it frees, as the command line does (allocator.py): otherwise most of what
is measured is how the kernel hands out pages.

tune_paper and tune_wide are steps whose last layer computes one token, as in `hadamard tune`. All steps have
the model's dropout, which `tune` leaves out of the backbone: its own are faster.
"""

import copy
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from keep import keep
from peft import get_peft_model
from scipy.stats import bootstrap
from transformers import AutoModelForSequenceClassification

from hadamard_adapter import HadamardConfig
from hadamard_adapter.allocator import keep_freed_memory
from hadamard_adapter.tuning.first_token import cut_last_layer
from hadamard_adapter.tuning.models import quiet_libraries
from hadamard_adapter.tuning.report import versions

SHAPES = {"32x32": (32, 32), "16x128": (16, 128), "1x16": (1, 16)}
IMPORTS = "import torch, transformers, peft, peft.tuners.tuners_utils, peft.utils, transformers.pytorch_utils"


@click.command()
@click.option("--model", required=True, help="Folder of the base model.")
@click.option("--rounds", default=40, show_default=True, help="Rounds of each comparison.")
@click.option("--output", default="results/overhead.json", show_default=True, help="File of the result.")
def main(model: str, rounds: int, output: str) -> None:
    """Measure and write the ratios."""
    keep_freed_memory()
    torch.set_num_threads(1)
    found: dict[str, object] = {
        "model": Path(model).absolute().name,
        "rounds": rounds,
        "versions": versions(),
    }
    found |= {"threads": torch.get_num_threads(), "dtype": "float32"}
    for name, (n_rows, n_tokens) in SHAPES.items():
        inputs = {"input_ids": torch.randint(1000, 20_000, (n_rows, n_tokens))}
        found[name] = inference(model, inputs, rounds) | training(model, inputs, max(5, rounds // 4))
        click.echo(f"{name}: {json.dumps(found[name])}")
    found["import_ms"] = import_time()
    click.echo(f"import beyond torch, transformers and PEFT: {found['import_ms']:.0f} ms")
    keep(output, found)


def load(model: str) -> torch.nn.Module:
    """The bare model."""
    torch.manual_seed(0)
    with quiet_libraries():
        return AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)


def twin(model: torch.nn.Module) -> torch.nn.Module:
    """A second model with parameters of its own that read the same memory."""
    own = {id(p): torch.nn.Parameter(p.data) for p in model.parameters()}
    return copy.deepcopy(model, own)


def adapted(bare: torch.nn.Module, sites: list[str], freeze_head: bool = False) -> torch.nn.Module:
    """A twin with a random adapter (a zero one would do the same work)."""
    config = HadamardConfig(task_type="SEQ_CLS", sites=sites, init_weights=False, freeze_head=freeze_head)
    return get_peft_model(twin(bare), config)


def inference(model: str, inputs: dict[str, torch.Tensor], rounds: int) -> dict[str, object]:
    """Ratios of one forward pass to the bare model's."""
    bare = load(model)
    variants = {
        "bare": bare,
        "bare_again": twin(bare),
        "merged": adapted(bare, ["attention"]).merge_and_unload(),
        "unmerged_paper": adapted(bare, ["attention"]).base_model.model,
        "unmerged_wide": adapted(bare, ["attention", "ffn"]).base_model.model,
    }

    def step(variant: torch.nn.Module) -> Callable[[], object]:
        variant.eval()

        def call() -> object:
            with torch.inference_mode():
                return variant(**inputs)

        return call

    return ratios({name: step(variant) for name, variant in variants.items()}, "bare", rounds)


def training(model: str, inputs: dict[str, torch.Tensor], rounds: int) -> dict[str, object]:
    """Ratios of one training step (forward, backward, AdamW) to full fine-tuning's."""
    full = load(model)
    variants = {
        "full": full,
        "step_paper": adapted(full, ["attention"], freeze_head=True),
        "step_wide": adapted(full, ["attention", "ffn"]),
        "tune_paper": adapted(full, ["attention"], freeze_head=True),
        "tune_wide": adapted(full, ["attention", "ffn"]),
    }
    for name in ("tune_paper", "tune_wide"):
        assert cut_last_layer(variants[name].eval(), inputs), "the last layer can be cut for this family"
    labels = torch.zeros(inputs["input_ids"].shape[0], dtype=torch.long)

    def step(variant: torch.nn.Module) -> Callable[[], object]:
        variant.train()
        optimizer = torch.optim.AdamW([p for p in variant.parameters() if p.requires_grad], lr=1e-6)

        def call() -> None:
            variant(**inputs, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return call

    return ratios({name: step(variant) for name, variant in variants.items()}, "full", rounds)


def ratios(calls: dict[str, Callable[[], object]], reference: str, rounds: int) -> dict[str, object]:
    """Median over rounds of each call's time over the reference's in that round, and its interval."""
    return ratios_to(interleaved(calls, rounds), reference)


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each call by round; the calls take turns, in a shuffled order."""
    for call in calls.values():
        call()
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    names, shuffled = list(calls), random.Random(0)
    for _ in range(rounds):
        shuffled.shuffle(names)
        for name in names:
            start = time.process_time()
            calls[name]()
            times[name].append(time.process_time() - start)
    return times


def ratios_to(times: dict[str, list[float]], reference: str) -> dict[str, object]:
    """Median over rounds of each call's time over the reference's in that round, and its interval."""
    found: dict[str, object] = {f"{reference}_ms": round(1000 * statistics.median(times[reference]), 2)}
    for name in times.keys() - {reference}:
        per_round = np.array(times[name]) / np.array(times[reference])
        interval = bootstrap((per_round,), np.median, method="percentile", rng=0).confidence_interval
        found[f"{name}/{reference}"] = round(float(np.median(per_round)), 4)
        found[f"{name}/{reference} interval"] = [round(float(bound), 4) for bound in interval]
    return dict(sorted(found.items()))


def import_time(rounds: int = 5) -> float:
    """Milliseconds that the import takes after torch, transformers and PEFT; median of fresh processes."""
    code = f"{IMPORTS}; import time; s = time.perf_counter(); import hadamard_adapter"
    code += "; print(time.perf_counter() - s)"
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(rounds)
    ]
    return 1000 * statistics.median(float(run.stdout.split()[-1]) for run in runs)


if __name__ == "__main__":
    main()
