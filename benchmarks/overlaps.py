"""Which rows of one task hold a text of another? Whole GLUE tasks in pairs, and the quickstart's reviews.

Command:

    python benchmarks/overlaps.py --data GLUE_FOLDER

Two texts are one if their letters and digits are, since corpora cut words differently. Counted are a task's
training rows, then its dev rows, that hold a text of the other's training or dev rows.
Expected: STS-B and MRPC share sentences, which STS-B took from MRPC's corpus; SST-2 and the movie reviews are
one corpus under two names. Time: seconds. Result: results/overlaps.json.
"""

import itertools
import runpy
from collections.abc import Iterable
from pathlib import Path

import click

from hadamard_adapter.bench.rows import read_rows
from hadamard_adapter.bench.spec import TaskSpec
from hadamard_adapter.files import write_json
from hadamard_adapter.tasks import Examples

__all__ = ["all_texts", "without"]

ROOT = Path(__file__).parent.parent
TASKS = ("cola", "sst2", "mrpc", "stsb", "rte")
REVIEWS = "movieReviewSnippets"


def texts_of(examples: Examples) -> list[set[str]]:
    """The texts of each row, first and second, as letters and digits alone: corpora cut words differently."""
    pairs = examples.pairs or [""] * len(examples)
    return [{_plain(text), _plain(pair)} - {""} for text, pair in zip(examples.texts, pairs, strict=True)]


def _plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def all_texts(parts: Iterable[Examples]) -> set[str]:
    """The texts of all rows of some parts, as `texts_of` gives them."""
    return {text for part in parts for texts in texts_of(part) for text in texts}


def without(examples: Examples, seen: set[str]) -> Examples:
    """The rows that hold none of these texts."""
    return examples.take([index for index, texts in enumerate(texts_of(examples)) if not texts & seen])


@click.command()
@click.option("--data", required=True)
@click.option("--downloads", default=ROOT / "downloads", type=Path)
@click.option("--output", default=ROOT / "results" / "overlaps.json", type=Path)
def main(data: str, downloads: Path, output: Path) -> None:
    """Count, print, write."""
    rows = {name: read_rows(TaskSpec(name), data).to_score("dev") for name in TASKS}
    texts = {name: all_texts([one.train, one.dev]) for name, one in rows.items()}
    source = runpy.run_path(str(ROOT / "examples" / "quickstart" / "data.py"))
    reviews = source["read_ratings"](source["find_download"](downloads, source["TEXT_SDIST"]), REVIEWS)
    texts[REVIEWS] = {_plain(text) for text, _ in reviews}
    found: dict[str, dict[str, dict[str, int]]] = {}
    for name, other in itertools.product(rows, texts):
        if name == other:
            continue
        parts = {"train": rows[name].train, "dev": rows[name].dev}
        counts = {part: len(own) - len(without(own, texts[other])) for part, own in parts.items()}
        if any(counts.values()):
            found.setdefault(name, {})[other] = counts
            print(f"{name}: {counts['train']} training and {counts['dev']} dev rows hold a text of {other}")
    sizes = {name: {"train": len(one.train), "dev": len(one.dev)} for name, one in rows.items()}
    write_json(output, {"rows": sizes | {REVIEWS: {"all": len(reviews)}}, "hold_a_text_of": found})


if __name__ == "__main__":
    main()
