"""The traffic of churn.py: clients that judge what they get, and two who publish by both doors meanwhile."""

import contextlib
import json
import random
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from churn_adapters import CHURNED_EVERY, World
from churn_check import Change, may_be_served, right_statuses, rows_of_classify, rows_of_predict, wrong_rows

from hadamard_adapter.serving import AdapterStore
from hadamard_adapter.serving.store import FILES

FOREIGN_SHARE, CHURNED_SHARE, PREDICT_SHARE = 0.05, 0.5, 0.2
"""Of the requests: those for another owner's adapter, for adapters that change, in TEI's shape."""
PUBLISH_EVERY_S = 3.0
"""Rest of one who publishes between two changes."""
FOLLOWED_S = 120.0
"""After which a change in the store that is not served counts as lost."""
TIMEOUT_S = 900.0
"""After which a request counts as lost."""
N_TOLD = 20
"""Problems that are kept; all are counted."""


@dataclass(frozen=True)
class Server:
    """Where it is, and who may ask it."""

    url: str
    store: str
    """Folder that it follows."""
    keys: dict[str, str]
    """Owner -> secret."""
    root: str
    """Secret of the one who may change adapters."""


@dataclass
class Seen:
    """What was seen of the server."""

    journal: dict[str, list[Change]]
    """Id -> changes of what is served."""
    counts: Counter[str] = field(default_factory=Counter[str])
    versions: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """(id, version) that answered."""
    largest: float = 0.0
    """Largest difference between an answer and the offline one."""
    delays: list[float] = field(default_factory=list[float])
    """Seconds from a change in the store to its being served."""
    problems: list[str] = field(default_factory=list[str])
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set when every request has its reply."""

    def count(self, *problems: str, **more: int) -> None:
        """Add to the counts, and note problems."""
        with self.lock:
            self.counts.update(more)
            self.counts["wrong"] += len(problems)
            self.problems += problems[: max(0, N_TOLD - len(self.problems))]


def work_through(world: World, seen: Seen, at: Server, n_requests: int, n_clients: int, seed: int) -> None:
    """Let clients ask while two publish, each adapters of its own, until every request has its reply."""
    churned = [id for number, id in enumerate(world.folders) if number % CHURNED_EVERY == 0]
    with ThreadPoolExecutor(n_clients + 3) as pool:
        others = [pool.submit(tell_progress, seen)]
        for half in (0, 1):
            others.append(pool.submit(churn, world, seen, at, churned[half::2], half == 0, seed + half))
        parts = [len(range(client, n_requests, n_clients)) for client in range(n_clients)]
        clients = [
            pool.submit(ask_on, world, seen, at, part, 1000 * seed + client)
            for client, part in enumerate(parts)
        ]
        try:
            for client in clients:
                client.result()
        finally:
            seen.stopped.set()
        for other in others:
            other.result()


def tell_progress(seen: Seen) -> None:
    """Print the counts every half minute."""
    while not seen.stopped.wait(30):
        print(time.strftime("%H:%M:%S"), dict(sorted(seen.counts.items())), seen.problems[-1:], flush=True)


def ask_on(world: World, seen: Seen, at: Server, n_requests: int, seed: int) -> None:
    """One client: so many requests, one after the other, each judged by what it got."""
    chance, pools = random.Random(seed), pools_of(world)
    with httpx.Client(base_url=at.url, timeout=TIMEOUT_S) as client:
        for _ in range(n_requests):
            ids, owner = draw_ids(pools, chance)
            numbers = chance.sample(range(len(world.texts)), chance.choice((1, 1, 2)))
            as_predict = len(ids) == 1 and chance.random() < PREDICT_SHARE
            request = request_of(world, ids, numbers, as_predict)
            headers = {"Authorization": f"Bearer {at.keys[owner]}"}
            try:
                while True:
                    asked = time.monotonic()
                    reply = client.post(**request, headers=headers)
                    if reply.status_code != 429:
                        break
                    seen.count(asked_again=1)
                    time.sleep(int(reply.headers["Retry-After"]))
            except httpx.HTTPError as error:
                seen.count(f"{ids}: no reply, {error!r}", requests=1, lost=1)
                continue
            judge(world, seen, owner, ids, numbers, as_predict, reply, asked)


def pools_of(world: World) -> dict[tuple[str, bool, bool], list[str]]:
    """(owner, whether rows are pairs, whether only those that change) -> ids to draw from."""
    pools: dict[tuple[str, bool, bool], list[str]] = {}
    for id, versions in world.versions.items():
        for only_churned in {False, len(versions) > 1}:
            pools.setdefault((id.partition("-")[0], world.has_pair[id], only_churned), []).append(id)
    return pools


def draw_ids(pools: dict[tuple[str, bool, bool], list[str]], chance: random.Random) -> tuple[list[str], str]:
    """One or two ids of one owner and kind, now and then one of another owner's among them; and the owner."""
    only_churned = chance.random() < CHURNED_SHARE
    owner, has_pair, _ = chance.choice(sorted(key for key in pools if key[2] == only_churned))
    pool = pools[owner, has_pair, only_churned]
    ids = [chance.choice(pool) for _ in range(chance.choice((1, 2)))]
    if chance.random() < FOREIGN_SHARE:
        other = chance.choice([key for key in sorted(pools) if key[0] != owner and key[1] == has_pair])
        ids[chance.randrange(len(ids))] = chance.choice(pools[other])
    return list(dict.fromkeys(ids)), owner


def request_of(world: World, ids: list[str], numbers: list[int], as_predict: bool) -> dict[str, Any]:
    """Path and body of a request for the probes of these numbers."""
    texts, seconds = ([column[number] for number in numbers] for column in (world.texts, world.seconds))
    has_pair = world.has_pair[ids[0]]
    if as_predict:
        inputs = [[one, second] if has_pair else [one] for one, second in zip(texts, seconds, strict=True)]
        return {"url": f"/adapters/{ids[0]}/predict", "json": {"inputs": inputs}}
    pairs = seconds if has_pair else None
    return {"url": "/classify", "json": {"models": ids, "input": texts, "pairs": pairs}}


def judge(
    world: World,
    seen: Seen,
    owner: str,
    ids: list[str],
    numbers: list[int],
    as_predict: bool,
    reply: httpx.Response,
    asked: float,
) -> None:
    """Count a reply, and what is wrong with it."""
    answered = time.monotonic()
    allowed = {id: may_be_served(seen.journal[id], asked, answered) for id in ids}
    right = right_statuses(ids, lambda id: id.startswith(f"{owner}-"), allowed.__getitem__)
    status = reply.status_code
    kind = {200: "answered", 403: "refused", 404: "away"}.get(status, "failed")
    if status not in right:
        told = f"{owner} asks {ids}: expected {sorted(right)}, received {status} {reply.text[:200]}"
        seen.count(told, requests=1, **{kind: 1})
        return
    if status != 200:
        seen.count(requests=1, **{kind: 1})
        return
    if as_predict:
        version = reply.headers["X-Adapter-Version"]
        rows = rows_of_predict(reply.json(), ids[0], version, numbers, world.labels[ids[0]])
    else:
        rows = rows_of_classify(reply.json(), numbers)
    wanted = [(id, number) for id in ids for number in numbers]
    problems, largest = wrong_rows(rows, wanted, world.answers, allowed.__getitem__)
    seen.count(*problems, requests=1, answered=1, rows=len(rows))
    with seen.lock:
        seen.largest = max(seen.largest, largest)
        seen.versions.update((row.id, row.version) for row in rows)


def churn(world: World, seen: Seen, at: Server, ids: list[str], may_be_away: bool, seed: int) -> None:
    """One who publishes: change these adapters, one at a time, by either door, until all is answered."""
    chance = random.Random(seed)
    headers = {"Authorization": f"Bearer {at.root}"}
    with (
        other_process(at.store) as tell,
        httpx.Client(base_url=at.url, timeout=TIMEOUT_S, headers=headers) as client,
    ):
        while not seen.stopped.wait(PUBLISH_EVERY_S):
            id = chance.choice(ids)
            now = seen.journal[id][-1].version
            is_removal = now is not None and may_be_away and chance.random() < 0.4
            version = None if is_removal else chance.choice([one for one in world.versions[id] if one != now])
            seen.journal[id].append(change := Change(version, began=time.monotonic()))
            act = by_http if chance.random() < 0.5 else partial(by_store, tell)
            kind, problem = act(world, seen, client, id, version)
            change.ended = time.monotonic()
            seen.count(*([f"{kind} {id}: {problem}"] if problem else []), **{kind: 1})


def by_store(
    tell: Callable[[str, Path | None], str],
    world: World,
    seen: Seen,
    client: httpx.Client,
    id: str,
    version: str | None,
) -> tuple[str, str]:
    """Change an adapter in the store, from another process; the kind of change, and what went wrong."""
    folder = None if version is None else world.folders[id][world.versions[id].index(version)]
    said = tell(id, folder)
    problem = wait_followed(seen, client, id, version) if said == "done" else f"the publisher says {said!r}"
    return "store_remove" if version is None else "store_add", problem


def by_http(world: World, seen: Seen, client: httpx.Client, id: str, version: str | None) -> tuple[str, str]:
    """Change an adapter by HTTP, back to the version if it was served before; likewise."""
    if version is None:
        reply = client.delete(f"/v1/adapters/{id}")
        return "http_delete", "" if reply.status_code == 200 else reply.text
    history: list[str] = []
    if seen.journal[id][-2].version is not None:
        history = client.get(f"/v1/adapters/{id}").json()["history"]
    if version in history:
        kind, reply = "http_roll_back", client.put(f"/v1/adapters/{id}", json={"version": version})
    else:
        content = zipped(world.folders[id][world.versions[id].index(version)])
        kind = "http_put"
        reply = client.put(f"/v1/adapters/{id}", content=content, headers={"content-type": "application/zip"})
    if reply.status_code == 200 and reply.json()["version"] == version:
        return kind, ""
    return kind, f"expected 200 and version {version}, received {reply.status_code} {reply.text}"


def zipped(folder: Path) -> bytes:
    """A zip of the files of an adapter's folder that a store keeps."""
    content = BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in FILES:
            archive.write(folder / name, name)
    return content.getvalue()


def wait_followed(seen: Seen, client: httpx.Client, id: str, version: str | None) -> str:
    """Wait until the server serves what the store does; a problem where it does not."""
    began = time.monotonic()
    while time.monotonic() - began < FOLLOWED_S:
        reply = client.get(f"/v1/adapters/{id}")
        if reply.status_code == 404 if version is None else reply.json().get("version") == version:
            seen.delays.append(time.monotonic() - began)
            return ""
        time.sleep(0.05)
    return f"not followed within {FOLLOWED_S:g} s"


@contextlib.contextmanager
def other_process(store: str) -> Iterator[Callable[[str, Path | None], str]]:
    """A process of its own that adds a folder to a store, or removes an id where there is none."""
    command = [sys.executable, __file__, store]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        given, said = process.stdin, process.stdout

        def tell(id: str, folder: Path | None) -> str:
            given.write(json.dumps([id, None if folder is None else str(folder.absolute())]) + "\n")
            given.flush()
            return said.readline().strip()

        yield tell
        given.close()


def publish(store: str) -> None:
    """Do what `other_process` is told, a line each."""
    published = AdapterStore(store)
    for line in sys.stdin:
        id, folder = json.loads(line)
        if folder is None:
            published.remove(id)
        else:
            published.add(id, folder)
        print("done", flush=True)


if __name__ == "__main__":
    publish(sys.argv[1])
