"""Where a training step's time goes: operators of `tune`, of LoRA and of full fine-tuning, by kind.

Command:   python benchmarks/profile_step.py --model MODEL [--output results/profile.json]
Expected:  products of frozen weights are most of every variant's step; what an adapter saves on them is the
           backward pass to the weights, a third, so no method without a shorter backward gets below that.
Time:      two minutes of one core.

PyTorch's profiler over ten steps each, one thread, self time of the processor: what other programs take
does not count, though they make caches cold. 32 rows of 32 tokens without padding, so that padding is no
part of it. A variant's step is the one that `hadamard bench speed` times (bench/speed/variants.py).
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import click
import torch
from keep import keep
from torch.profiler import ProfilerActivity, profile

from hadamard_adapter.allocator import keep_freed_memory
from hadamard_adapter.bench.speed.memory import backward, random_batch
from hadamard_adapter.bench.speed.variants import VARIANTS
from hadamard_adapter.methods import METHODS, head_of
from hadamard_adapter.tasks import GLUE, glue_task
from hadamard_adapter.tuning import TuneSettings
from hadamard_adapter.tuning.averaging import adamw
from hadamard_adapter.tuning.models import load_base, quiet_libraries
from hadamard_adapter.tuning.precision import pick_dtype
from hadamard_adapter.tuning.report import versions

DTYPES = {"tune": "auto", "lora-ours": "auto", "lora-grouped": "bfloat16", "full-grouped": "bfloat16"}
KINDS = {
    "products of weights": ("mm", "addmm", "linear", "mkldnn"),
    "attention": ("attention", "bmm", "softmax"),
    "norms": ("layer_norm",),
    "GELU": ("gelu",),
    "dropout": ("dropout", "bernoulli"),
    "casts and copies": ("copy_", "to", "clone", "contiguous"),
    "optimizer": ("adam", "foreach", "lerp"),
    "sums and scales": ("add", "mul", "sum", "div"),
}
"""Kind -> parts of an operator's name; the first kind that has one counts."""
N_STEPS = 10


def kind_of(operator: str) -> str:
    """The kind of an operator.

    Example:
        >>> kind_of("aten::addmm"), kind_of("aten::native_layer_norm_backward"), kind_of("aten::tanh")
        ('products of weights', 'norms', 'other')
    """
    name = operator.rpartition("::")[2].lower()
    words = {*name.split("_"), name}
    for kind, parts in KINDS.items():
        if any(part in words or (len(part) > 3 and part in name) for part in parts):
            return kind
    return "other"


@contextlib.contextmanager
def steps_of(
    variant: str, model: str, dtype: Literal["float32", "bfloat16"], lengths: tuple[int, ...] = (32,)
) -> Iterator[dict[int, Callable[[], None]]]:
    """A variant's training step on 32 rows, for each number of tokens a row."""
    row = VARIANTS[variant]
    settings = TuneSettings(model, "out", train="rows", **(row.settings | {"dtype": dtype}))
    torch.manual_seed(0)
    task = glue_task(GLUE["sst2"])
    base = load_base(model, task, 0)
    tuned = METHODS[row.method].make(base, head_of(base))
    batches = {length: random_batch(tuned, task, 32, length) for length in lengths}
    small = {name: value[:2] for name, value in batches[lengths[0]].items()}
    with contextlib.ExitStack() as stack:
        stack.enter_context(row.path.ready(tuned, small, settings))
        optimizer = adamw([p for p in tuned.parameters() if p.requires_grad], 0.99, lr=1e-6, fused=True)

        def step(length: int) -> None:
            backward(tuned, batches[length], settings)
            optimizer.step()
            optimizer.zero_grad()

        yield {length: functools.partial(step, length) for length in lengths}


def of_variant(variant: str, model: str, dtype: Literal["float32", "bfloat16"]) -> dict[str, float]:
    """Milliseconds of processor time a step of 32 tokens a row, by kind of operator."""
    with steps_of(variant, model, dtype) as steps:
        step = steps[32]
        for _ in range(3):
            step()
        with profile(activities=[ProfilerActivity.CPU]) as found:
            for _ in range(N_STEPS):
                step()
    shares: dict[str, float] = {}
    for event in found.key_averages():
        kind = kind_of(event.key)
        shares[kind] = shares.get(kind, 0.0) + event.self_cpu_time_total / 1000 / N_STEPS
    return {kind: round(ms, 2) for kind, ms in sorted(shares.items(), key=lambda item: -item[1])}


@click.command()
@click.option("--model", required=True)
@click.option("--output", default=Path("results/profile.json"), type=Path)
def main(model: str, output: Path) -> None:
    """Profile and write."""
    torch.set_num_threads(1)
    keep_freed_memory()
    found: dict[str, object] = {}
    with quiet_libraries():
        for variant, wanted in DTYPES.items():
            dtype = pick_dtype(wanted, torch.device("cpu"))
            ms = of_variant(variant, model, dtype)
            found[f"{variant}, {dtype}"] = {"ms_a_step": round(sum(ms.values()), 1), "by_kind": ms}
            print(variant, dtype, round(sum(ms.values()), 1), ms, flush=True)
    about = {"model": Path(model).name, "batch": "32x32", "steps": N_STEPS, "versions": versions()}
    keep(output, {**about, "variants": found})


if __name__ == "__main__":
    main()
