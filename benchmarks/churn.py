"""Right under churn: clients ask a server of 1,000 adapters that come, change and go meanwhile.

Command:   python benchmarks/churn.py --model MODEL --data GLUE_FOLDER [--requests 100000]
           (after bash scripts/fetch.sh; needs httpx)
Expected:  every request is answered or rightly refused; every row equals, to 1e-4, what the version that it
           names says offline, and that version was served at the time; no key gets another's adapter. Exit 1
           otherwise.
Time:      on one core 10 minutes of tuning, once (kept in --work), 3 of preparation, and 40 of requests.

Twenty adapters are tuned, the others made from them (churn_adapters.py); no two of them say the same of the
probes, so that a crossed row is seen. What is right is in churn_check.py. Adapters change by both doors, HTTP
and the store, the latter from another process.
"""

import dataclasses
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import click
import httpx
import torch
from churn_adapters import OWNERS, TUNED, World, caught_share, lay_out, tune_missing
from churn_check import TOLERANCE, Change, rows_of_classify, wrong_rows
from churn_traffic import TIMEOUT_S, Seen, Server, request_of, work_through
from keep import keep
from serving import server

from hadamard_adapter.serving import AdapterStore
from hadamard_adapter.serving.keys import make_key
from hadamard_adapter.tuning.report import versions


@click.command()
@click.option("--model", required=True, help="Folder of the base model.")
@click.option("--data", required=True, help="Folder of GLUE.")
@click.option("--downloads", default="downloads", show_default=True, help="Folder of scripts/fetch.sh.")
@click.option("--work", default="runs/churn", show_default=True, help="Folder of adapters, store and logs.")
@click.option("--requests", "n_requests", default=100_000, show_default=True, help="Requests.")
@click.option("--adapters", "n_adapters", default=1000, show_default=True, help="Adapters.")
@click.option(
    "--clients", "n_clients", default=8, show_default=True, help="Clients, one request at a time each."
)
@click.option("--seed", default=0, show_default=True, help="Of requests and changes.")
@click.option("--output", default="results/churn.json", show_default=True, help="File of the result.")
def main(
    model: str, data: str, downloads: str, work: str, n_requests: int, n_adapters: int, n_clients: int,
    seed: int, output: str,
) -> None:  # fmt: skip
    """Ask, change, compare, and write what was counted."""
    torch.set_num_threads(1)
    place = Path(work)
    sources = tune_missing(model, Path(downloads), data, place)
    world, smallest = lay_out(model, Path(downloads), sources, place, n_adapters)
    share = caught_share(list(world.answers.values()), TOLERANCE)
    click.echo(f"{len(world.answers)} versions, {smallest:.5f} apart; {share:.5f} of crossed rows would show")
    store = fill_store(world, place)
    keys = {name: make_key(place / "keys.json", name, [f"{name}-*"]) for name in OWNERS}
    root = make_key(place / "keys.json", "root", ["*"], may_administrate=True)
    seen = Seen({id: [Change(names[0], ended=float("-inf"))] for id, names in world.versions.items()})
    words = ("--keys", str(place / "keys.json"), "--timeout-s", f"{TIMEOUT_S / 2:g}")
    with server(model, store, *words, log=str(place / "server.log")) as url:
        click.echo(f"asking {url}")
        at, started = Server(url, store, keys, root), time.monotonic()
        work_through(world, seen, at, n_requests, n_clients, seed)
        seconds = time.monotonic() - started
        crossed = show_crossed(world, at)
    n_whole, damaged = AdapterStore(store).verify()
    found = {
        "model": Path(model).absolute().name,
        "versions": versions(),
        "clients": n_clients,
        "seed": seed,
        "adapters": n_adapters,
        "adapter_versions": len(world.answers),
        "tuned": {tuned.name: dev_of(source) for tuned, source in zip(TUNED, sources, strict=True)},
        "smallest_distance": smallest,
        "caught_share": share,
        "crossed_row": crossed,
        "counts": dict(sorted(seen.counts.items())),
        "versions_seen": len(seen.versions),
        "largest_difference": seen.largest,
        "tolerance": TOLERANCE,
        "followed_s": median_and_largest(seen.delays),
        "store_after": {"adapters": n_whole, "damaged": damaged},
        "problems": seen.problems,
        "seconds": round(seconds, 1),
    }
    keep(output, found)
    click.echo(json.dumps(found, indent=2))
    if seen.counts["wrong"] or damaged or not crossed["is_caught"]:
        sys.exit(1)


def median_and_largest(values: list[float]) -> dict[str, float]:
    """Median and largest of some values."""
    return {"median": statistics.median(values), "largest": max(values)} if values else {}


def dev_of(folder: Path) -> dict[str, float]:
    """Scores of a tuned adapter on its dev rows."""
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["dev"]


def fill_store(world: World, place: Path) -> str:
    """A new store that serves the first version of each adapter, and no keys."""
    shutil.rmtree(place / "store", ignore_errors=True)
    (place / "keys.json").unlink(missing_ok=True)
    store = AdapterStore(place / "store")
    for id, folders in world.folders.items():
        store.add(id, folders[0])
    return str(place / "store")


def show_crossed(world: World, at: Server) -> dict[str, Any]:
    """What the check says of a right answer, and of the same one with two adapters' rows exchanged."""
    owner = OWNERS[0]
    still = [id for id, names in world.versions.items() if id.startswith(f"{owner}-") and len(names) == 1]
    kind_of = lambda id: (world.labels[id], world.has_pair[id])  # noqa: E731
    pairs = ([one, other] for one in still for other in still if one < other)
    ids = next(pair for pair in pairs if kind_of(pair[0]) == kind_of(pair[1]))
    headers = {"Authorization": f"Bearer {at.keys[owner]}"}
    request = request_of(world, ids, [0], as_predict=False)
    reply = httpx.post(at.url + request["url"], json=request["json"], headers=headers, timeout=TIMEOUT_S)
    rows = rows_of_classify(reply.json(), [0])
    crossed = [dataclasses.replace(row, values=rows[1 - at].values) for at, row in enumerate(rows)]
    wanted = [(id, 0) for id in ids]
    served = lambda id: world.versions[id][:1]  # noqa: E731
    before, after = (wrong_rows(given, wanted, world.answers, served)[0] for given in (rows, crossed))
    return {"as_answered": before, "crossed": after, "is_caught": not before and len(after) == 2}


if __name__ == "__main__":
    main()
