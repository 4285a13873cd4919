"""What an option brings to a training step of `tune`, and what it takes: steps with it and without, in turn.

Commands:  python benchmarks/steps_in_turn.py tune-compiled --model MODEL --output results/compiled.json
           python benchmarks/steps_in_turn.py tune-micro 64 128 256 --model MODEL --output FILE
Expected:  of torch.compile nothing on a processor, whose time goes into products that are the same either
           way, and half a minute to compile; of parts of 1,024 tokens hardly any time either way.
Time:      four minutes of one core; six.

`hadamard tune` and a variant of it (bench/speed/variants.py), step by step in turn in one process, 32 rows of
each number of tokens without padding, one thread, seconds on the wall; medians of ratios. A variant's first
steps, one of each length, are told apart: there it compiles, PyTorch's cache of earlier compilations being
empty.
"""

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from keep import keep
from profile_step import steps_of

from hadamard_adapter.allocator import keep_freed_memory
from hadamard_adapter.tuning.models import quiet_libraries
from hadamard_adapter.tuning.precision import pick_dtype
from hadamard_adapter.tuning.report import processor_name, versions

STEPS = ("tune-all-tokens", "tune-checkpointed", "tune-compiled", "tune-dropout", "tune-micro")
"""Variants whose step is another one; with others it is the rows that differ, the caches or the dtype."""
LENGTHS = (16, 32, 64, 128)
N_ROUNDS = 15


def seconds_of(step: Callable[[], None]) -> float:
    """How long a step takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def side_by_side(model: str, names: tuple[str, str], lengths: tuple[int, ...]) -> dict[str, Any]:
    """First steps, and by length milliseconds a step and the ratio of without over with."""
    dtype = pick_dtype("auto", torch.device("cpu"))
    with contextlib.ExitStack() as stack:
        steps = {name: stack.enter_context(steps_of(name, model, dtype, lengths)) for name in names}
        first = {name: sum(map(seconds_of, steps[name].values())) for name in names}
        for of_length in steps.values():
            for step in of_length.values():
                step()
        rows: dict[str, dict[str, Any]] = {}
        for length in lengths:
            pairs = [[seconds_of(steps[name][length]) for name in names] for _ in range(N_ROUNDS)]
            ratios = [without / own for without, own in pairs]
            rows[str(length)] = {
                "ms": {
                    name: round(1e3 * statistics.median(of), 2)
                    for name, of in zip(names, zip(*pairs, strict=True), strict=True)
                },
                "without / with": round(statistics.median(ratios), 3),
                "smallest, largest": [round(min(ratios), 3), round(max(ratios), 3)],
            }
            print(length, rows[str(length)], flush=True)
    return {
        "dtype": dtype,
        "first_steps_seconds": {name: round(seconds, 2) for name, seconds in first.items()},
        "by_tokens_a_row": rows,
    }


@click.command()
@click.argument("variant", type=click.Choice(STEPS))
@click.argument("lengths", nargs=-1, type=click.IntRange(4))
@click.option("--model", required=True)
@click.option("--output", required=True, type=Path)
def main(variant: str, lengths: tuple[int, ...], model: str, output: Path) -> None:
    """Time and write."""
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as cache, quiet_libraries():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        found = side_by_side(model, ("tune", variant), lengths or LENGTHS)
    about = {"model": Path(model).name, "rows": 32, "rounds": N_ROUNDS, "processor": processor_name()}
    keep(output, {**about, "versions": versions(), **found})


if __name__ == "__main__":
    main()
