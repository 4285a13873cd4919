"""What each part of `hadamard predict` brings: rows a second, on and off, side by side in one run.

Command:   python benchmarks/predict_speed.py --adapters DIR,DIR --data FILE,FILE [--output FILE]
Expected:  sorting by length most, where lengths differ; merging and the short last layer a tenth or two; half
           precision as the processor has it. All labels as without them, probabilities within about 0.01.
Time:      five minutes of one core. Nothing else should run meanwhile.

One thread, its processor time. Each round times every step once, in a shuffled order; medians of the rounds'
ratios to the step before, with their range. The first 1,000 rows of each file, batches of 32.
"""

import itertools
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from keep import keep

from hadamard_adapter import load
from hadamard_adapter.allocator import keep_freed_memory
from hadamard_adapter.tasks import encode_texts, predictions, read_table
from hadamard_adapter.tuning.classifier import Classifier
from hadamard_adapter.tuning.models import collator, quiet_libraries, tokenize
from hadamard_adapter.tuning.report import versions

N_ROWS, BATCH, ROUNDS = 1000, 32, 7
STEPS = ("in the file's order", "sorted by length", "merged, last layer short", "bfloat16")


@torch.inference_mode()
def in_order(classifier: Classifier, texts: list[str], pairs: list[str] | None) -> Any:
    """Logits as a loop over the file gives them: batches of neighbours, padded to the longest."""
    rows = tokenize(classifier.tokenizer, texts, pairs, classifier.max_length).rows
    collate = collator(classifier.tokenizer, classifier.task.problem_type)
    batches = (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
    return np.concatenate([classifier.model(**collate(batch)).logits.numpy() for batch in batches])


def of_adapter(folder: str, data: str) -> dict[str, Any]:
    """Rows a second and ratios of an adapter on the rows of a file."""
    whole, merged = load(folder, device="cpu"), load(folder, device="cpu").merged()
    table = read_table(data)
    rows = encode_texts(table, whole.columns_in(table))
    texts, pairs = rows.texts[:N_ROWS], None if rows.pairs is None else rows.pairs[:N_ROWS]
    half, _ = merged.halved(texts[:BATCH], None if pairs is None else pairs[:BATCH], BATCH)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: in_order(whole, texts, pairs),
        *((lambda one=one: one.logits(texts, pairs, BATCH)) for one in (whole, merged, half)),
    )
    steps = dict(zip(STEPS, calls, strict=True))
    scores = {name: predictions(whole.task, call()) for name, call in steps.items()}  # warms up, too
    is_value = whole.task.problem_type == "regression"
    found = {name: np.asarray(labels if is_value else shares) for name, (labels, shares) in scores.items()}
    seconds: dict[str, list[float]] = {name: [] for name in STEPS}
    for index in range(ROUNDS):
        for name in random.Random(index).sample(STEPS, len(STEPS)):
            started = time.process_time()
            steps[name]()
            seconds[name].append(time.process_time() - started)
    ratios = {
        name: [a / b for a, b in zip(seconds[before], seconds[name], strict=True)]
        for before, name in itertools.pairwise(STEPS)
    }
    return {
        "data": Path(data).stem,
        "task": whole.task.name,
        "rows": len(texts),
        "rows_a_second": {
            name: round(len(texts) / statistics.median(each)) for name, each in seconds.items()
        },
        "times_faster_than_the_step_before": {
            name: [round(value, 3) for value in (statistics.median(each), min(each), max(each))]
            for name, each in ratios.items()
        },
        "largest_difference": {
            name: float(np.abs(found[name] - found[STEPS[0]]).max()) for name in STEPS[1:]
        },
    }


@click.command()
@click.option("--adapters", required=True, help="Folders of `hadamard tune`, commas between them.")
@click.option("--data", required=True, help="A file of rows for each, commas between them.")
@click.option("--output", default=Path("results/predict.json"), type=Path)
def main(adapters: str, data: str, output: Path) -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    keep_freed_memory()
    about = {"batch": BATCH, "rounds": ROUNDS, "capability": torch.backends.cpu.get_cpu_capability()}
    with quiet_libraries():
        pairs = zip(adapters.split(","), data.split(","), strict=True)
        found = [of_adapter(folder, file) for folder, file in pairs]
    for one in found:
        print(one, flush=True)
    keep(output, {**about, "adapters": found, "versions": versions()})


if __name__ == "__main__":
    main()
