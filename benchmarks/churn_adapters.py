"""The adapters of churn.py: twenty that `hadamard tune` made, others made from them, and their distances.

What an adapter says of the probes is a matrix (t, l): a row a probe, a column a label (its value, where it is
a regression). Two adapters are apart by the largest difference between their matrices, and infinitely so
where they have different numbers of columns.
"""

import random
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file

from hadamard_adapter.serving import AdapterBank, AdapterStore
from hadamard_adapter.serving.load import load_bank
from hadamard_adapter.tasks import GLUE, load_glue_split, write_rows

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "quickstart"))

from data import TEXT_SDIST, find_download, read_ratings
from hadamard_adapter.serving.store import FILES
from hadamard_adapter.tuning.weights import WEIGHTS

N_ROWS, N_DEV = 240, 60
"""Rows that an adapter is tuned on, and that choose its epoch."""
COMMON = ("--head-epochs", "2", "--epochs", "2", "--max-length", "64", "--device", "cpu", "--quiet")
N_PROBES = 8
N_ATTEMPTS = 20
"""Times that an adapter is made anew where it is near another one."""
STRENGTH = 1.0
"""Size of the random changes over the root mean square of what is changed; half as much more each attempt."""

APART = 0.01
"""Least distance of any two versions."""
OWNERS = ("red", "blue", "green", "gold", "grey")
"""Owners of adapters: those of red are named red-NUMBER."""
CHURNED_EVERY, N_VERSIONS = 10, 3
"""Every tenth adapter changes, between so many versions."""

Answers = Float[np.ndarray, "t l"]


@dataclass(frozen=True)
class World:
    """All that is known of the adapters before anything is asked; each dict is by id."""

    texts: list[str]
    """The probes."""
    seconds: list[str]
    """The second text of each, for adapters of pairs."""
    folders: dict[str, list[Path]]
    """Of all versions, the one that is served first in front."""
    versions: dict[str, list[str]]
    """Their names."""
    answers: dict[tuple[str, str], Answers]
    """(id, version) -> what it says of the probes offline."""
    labels: dict[str, tuple[str, ...]]
    """In the adapter's order; of a regression, what TEI's shape calls its value."""
    has_pair: dict[str, bool]
    """Whether its rows are pairs."""


@dataclass(frozen=True)
class Tuned:
    """One tuned adapter."""

    name: str
    """Of its folder."""
    source: str
    """A domain of the quickstart's ratings, or a task of GLUE."""
    kind: str
    """Of the labels: sign, three or rating (what people felt); own: those of GLUE."""
    words: tuple[str, ...] = ()
    """Options of `hadamard tune` besides."""


_MOVIES, _SHOP, _NEWS, _TWEETS = (
    "movieReviewSnippets",
    "amazonReviewSnippets",
    "nytEditorialSnippets",
    "tweets",
)
_LINEAR, _UPPER, _LAST = ("--head", "linear"), ("--layers", "2-5"), ("--layers", "4,5")

TUNED = (
    Tuned("movies-sign", _MOVIES, "sign"),
    Tuned("movies-three", _MOVIES, "three", (*_LINEAR, *_UPPER)),
    Tuned("movies-rating", _MOVIES, "rating", (*_LINEAR, *_LAST)),
    Tuned("shop-sign", _SHOP, "sign", _LINEAR),
    Tuned("shop-three", _SHOP, "three", _LINEAR),
    Tuned("news-sign", _NEWS, "sign", (*_LINEAR, *_UPPER)),
    Tuned("news-rating", _NEWS, "rating", _LINEAR),
    Tuned("tweets-sign", _TWEETS, "sign", _LINEAR),
    Tuned("tweets-three", _TWEETS, "three"),
    Tuned("cola", "cola", "own", _LINEAR),
    Tuned("cola-again", "cola", "own", (*_LINEAR, *_UPPER, "--seed", "1")),
    Tuned("sst2", "sst2", "own", _LINEAR),
    Tuned("sst2-paper", "sst2", "own", (*_LINEAR, "--preset", "paper", "--seed", "1")),
    Tuned("mrpc", "mrpc", "own"),
    Tuned("mrpc-again", "mrpc", "own", (*_LINEAR, "--seed", "1")),
    Tuned("rte", "rte", "own", _LINEAR),
    Tuned("rte-upper", "rte", "own", (*_LINEAR, *_UPPER, "--seed", "1")),
    Tuned("stsb", "stsb", "own", _LINEAR),
    Tuned("qnli", "qnli", "own", (*_LINEAR, *_LAST)),
    Tuned("wnli", "wnli", "own", _LINEAR),
)


def tune_missing(model: str, downloads: Path, glue: str, work: Path) -> list[Path]:
    """The folders of all tuned adapters; those that are not in the work folder are tuned first."""
    folders: list[Path] = []
    for number, tuned in enumerate(TUNED):
        folder = work / "tuned" / tuned.name
        folders.append(folder)
        if (folder / WEIGHTS).is_file():
            continue
        rows = rows_of(tuned, downloads, glue)
        random.Random(number).shuffle(rows)
        folder.parent.mkdir(parents=True, exist_ok=True)
        for split, part in (("dev", rows[:N_DEV]), ("train", rows[N_DEV : N_DEV + N_ROWS])):
            write_rows(f"{folder}-{split}.csv", [part])
        command = [sys.executable, "-m", "hadamard_adapter.cli", "tune", "--model", model]
        files = ["--train", f"{folder}-train.csv", "--dev", f"{folder}-dev.csv", "--output", str(folder)]
        print(f"tune {tuned.name}", flush=True)
        subprocess.run([*command, *files, *COMMON, *tuned.words], check=True)
    return folders


def rows_of(tuned: Tuned, downloads: Path, glue: str) -> list[dict[str, str]]:
    """All rows of an adapter's source, as text, maybe pair, and label."""
    if tuned.kind == "own":
        return _glue_rows(tuned.source, glue)
    rated = read_ratings(find_download(downloads, TEXT_SDIST), tuned.source)
    if tuned.kind == "rating":
        return [{"text": text, "label": f"{rating:.2f}"} for text, rating in rated]
    names = {"sign": ("negative", "positive"), "three": ("negative", "positive", "undecided")}[tuned.kind]
    decided = [(text, (rating > 0) if abs(rating) >= 0.5 else 2) for text, rating in rated]
    return [{"text": text, "label": names[label]} for text, label in decided if label < len(names)]


def _glue_rows(task: str, glue: str) -> list[dict[str, str]]:
    row = GLUE[task]
    rows = load_glue_split(row, glue, "dev" if task == "qnli" else "train")
    assert rows.labels is not None, "GLUE's own splits have labels"
    columns = {"text": rows.texts} if rows.pairs is None else {"text": rows.texts, "pair": rows.pairs}
    columns["label"] = [
        f"is {row.label_names[label]}" if row.label_names else f"{label}" for label in rows.labels
    ]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def probes(downloads: Path) -> tuple[list[str], list[str]]:
    """Short texts that every request asks about, and the second text of each."""
    rated = read_ratings(find_download(downloads, TEXT_SDIST), _TWEETS)
    short = [text for text, _ in rated if 3 <= len(text.split()) <= 8 and text.isascii()]
    texts = random.Random(0).sample(sorted(set(short)), N_PROBES)
    return texts, [texts[(5 * number + 3) % N_PROBES] for number in range(N_PROBES)]


def lay_out(
    model: str, downloads: Path, sources: Sequence[Path], place: Path, n_adapters: int
) -> tuple[World, float]:
    """All versions, made so that any two are apart, and the distance of the nearest two."""
    world, smallest = World(*probes(downloads), {}, {}, {}, {}, {}), float("inf")
    bank, scratch = load_bank(model, "cpu"), AdapterStore("memory://churn")
    for number in range(n_adapters):
        id = f"{OWNERS[(number + number // CHURNED_EVERY) % len(OWNERS)]}-{number:04d}"
        source = sources[(number + number // len(sources)) % len(sources)]
        world.folders[id], world.versions[id] = [], []
        for version in range(N_VERSIONS if number % CHURNED_EVERY == 0 else 1):
            is_tuned = number < len(sources) and version == 0
            folder = source if is_tuned else place / "made" / f"{id}-{version}"
            for attempt in range(1 if is_tuned else N_ATTEMPTS):
                if not is_tuned:
                    seed = N_ATTEMPTS * (N_VERSIONS * number + version) + attempt
                    make_from(source, folder, seed, STRENGTH * (1 + attempt / 2))
                found = answers_of(bank, folder, world.texts, world.seconds)
                apart = nearest(found, world.answers.values())
                if apart > APART:
                    break
            else:
                raise RuntimeError(f"{folder}: {apart:.4f} from another one; expected more than {APART}")
            smallest = min(smallest, apart)
            world.folders[id].append(folder)
            world.versions[id].append(scratch.add("probed", folder).version)
            world.answers[id, world.versions[id][-1]] = found
        scratch.remove("probed")
        adapter = bank.entry("probed").adapter
        world.labels[id] = adapter.task.label_names or ("value",)
        world.has_pair[id] = bool(adapter.has_pair)
    return world, smallest


def make_from(source: Path, folder: Path, seed: int, strength: float) -> None:
    """A folder like another one, every tensor of it changed at random: t + strength rms(t) n, n normal."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    changed: dict[str, torch.Tensor] = {}
    for name, tensor in sorted(load_file(source / WEIGHTS).items()):
        size = strength * tensor.square().mean().sqrt()
        changed[name] = tensor + size * torch.randn(tensor.shape, generator=generator)
    save_file(changed, folder / WEIGHTS, {"format": "pt"})
    for name in {*FILES} - {WEIGHTS}:
        shutil.copyfile(source / name, folder / name)


def answers_of(bank: AdapterBank, folder: Path, texts: Sequence[str], seconds: Sequence[str]) -> Answers:
    """What the adapter in a folder says of the probes, by a bank."""
    bank.add("probed", folder)
    pairs = seconds if bank.entry("probed").adapter.has_pair else None
    found = bank.predict(texts, ["probed"] * len(texts), pairs)
    return np.array([list(one.probabilities.values()) or [one.value] for one in found])


def distance(one: Answers, other: Answers) -> float:
    """How far two adapters are apart on the probes.

    Example:
        >>> round(distance(np.array([[0.1, 0.9]]), np.array([[0.3, 0.7]])), 6)
        0.2
    """
    return float(np.abs(one - other).max()) if one.shape == other.shape else float("inf")


def nearest(one: Answers, others: Iterable[Answers]) -> float:
    """Distance to the nearest of others, infinite where there is none."""
    same = [other for other in others if other.shape == one.shape]
    return float(np.abs(np.stack(same) - one).max((1, 2)).min()) if same else float("inf")


def caught_share(all_answers: Sequence[Answers], tolerance: float) -> float:
    """Share of the cases (two adapters of as many labels, a probe) in which one's answer is not the other's.

    It is the share of crossed rows that a comparison with this tolerance finds.
    """
    by_shape: dict[tuple[int, ...], list[Answers]] = {}
    for one in all_answers:
        by_shape.setdefault(one.shape, []).append(one)
    n_cases = n_caught = 0
    for same in by_shape.values():
        for one, other in combinations(same, 2):
            apart = np.abs(one - other).max(1) > tolerance
            n_cases, n_caught = n_cases + len(apart), n_caught + int(apart.sum())
    return n_caught / n_cases if n_cases else 1.0
