"""What a publication costs the publisher, and what it costs a server that follows a store of many adapters.

Command:   python benchmarks/follow.py --model MODEL [--output results/follow.json]
Expected:  publishing costs the same in a store of any size; a look grows with the number of adapters in it.
Time:      2 minutes.

A local folder; processor time of one thread, medians. `start_ms` is what a server spends on each adapter of
the store when it starts, `look_us` what it spends on each whenever anything was published.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from keep import keep
from serving import make_adapter

from hadamard_adapter.serving import AdapterStore
from hadamard_adapter.serving.follow import Follower
from hadamard_adapter.serving.load import load_bank
from hadamard_adapter.tuning.report import versions

SIZES = (100, 1000, 3000)
N_LOOKS = 5


@click.command()
@click.option("--model", required=True, help="Folder of the base model.")
@click.option("--output", default="results/follow.json", show_default=True, help="File of the result.")
def main(model: str, output: str) -> None:
    """Measure and write the costs."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "model": Path(model).absolute().name,
        "threads": 1,
        "versions": versions(),
        "sizes": SIZES,
    }
    with tempfile.TemporaryDirectory() as folder:
        make_adapter(model, f"{folder}/adapter")
        for size in SIZES:
            store, bank = AdapterStore(f"{folder}/{size}"), load_bank(model, "cpu")
            follower = Follower(bank, store)
            adds = [seconds(lambda n=n: store.add(f"a{n}", f"{folder}/adapter")) for n in range(size)]  # noqa: B023
            start = seconds(follower.look)
            looks = [look(follower, store, f"{folder}/adapter") for _ in range(N_LOOKS)]
            assert len(bank) == size and not follower.problems
            found[f"{size} adapters"] = {
                "publish_ms": round(1e3 * statistics.median(adds), 3),
                "start_ms": round(1e3 * start / size, 3),
                "look_us": round(1e6 * statistics.median(looks) / size, 1),
            }
    click.echo(json.dumps(found, indent=2))
    keep(output, found)


def look(follower: Follower, store: AdapterStore, adapter: str) -> float:
    """Seconds of a look after one publication."""
    store.remove("a0")
    store.add("a0", adapter)
    return seconds(follower.look)


def seconds(act: Callable[[], object]) -> float:
    """Processor time of a call."""
    started = time.process_time()
    act()
    return time.process_time() - started


if __name__ == "__main__":
    main()
