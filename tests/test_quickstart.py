"""The quickstart's own code: what it makes of the ratings, and the interval under its table."""

import csv
import io
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "quickstart"))

import baselines
import data
import table


def _sdist(folder: Path, lines: list[str]) -> Path:
    member = data.TEXT_MEMBER.format(domain="movieReviewSnippets")
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        content = "\r\n".join(lines).encode()
        info = tarfile.TarInfo(member)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    path = folder / "vaderSentiment-0.5.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(data.TEXT_ARCHIVE, inner.getvalue())
    return path


def test_ratings_are_read_from_the_archive_inside_the_archive(tmp_path: Path) -> None:
    sdist = _sdist(tmp_path, ["1\t2.5\tA joy, from start to end.", "2\t-0.6\tTepid\twith a tab"])
    assert data.read_ratings(sdist, "movieReviewSnippets") == [
        ("A joy, from start to end.", 2.5),
        ("Tepid\twith a tab", -0.6),
    ]


def test_a_missing_domain_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tweets_GroundTruth"):
        data.read_ratings(_sdist(tmp_path, ["1\t2.5\tx"]), "tweets")


@pytest.mark.parametrize(
    ("rating", "label"),
    [(0.5, "positive"), (-0.5, "negative"), (0.49, None), (-0.49, None), (0.0, None), (4.0, "positive")],
)
def test_only_decided_sentences_get_a_label(rating: float, label: str | None) -> None:
    assert [example.label for example in data.label_decided([("x", rating)])] == ([label] if label else [])


def test_duplicates_go_and_contradictions_go_whole() -> None:
    examples = [
        data.Example("A joy!", "positive"),
        data.Example("a  JOY", "positive"),
        data.Example("Odd.", "positive"),
        data.Example("odd", "negative"),
        data.Example("Dull.", "negative"),
    ]
    assert data.drop_duplicates(examples) == [examples[0], examples[4]]


def test_the_split_is_seeded_disjoint_and_complete() -> None:
    examples = [data.Example(f"sentence {index}", "positive") for index in range(3000)]
    first, again, other = data.split(examples, 0), data.split(examples, 0), data.split(examples, 1)
    assert first == again != other
    assert {name: len(rows) for name, rows in first.items()} == {"test": 2000, "dev": 800, "train": 200}
    assert sorted(row.text for rows in first.values() for row in rows) == sorted(row.text for row in examples)


def test_a_csv_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    examples = [data.Example('He said "no", twice.', "negative"), data.Example("é", "positive")]
    data.write_csv(tmp_path / "dev.csv", examples)
    with (tmp_path / "dev.csv").open(newline="", encoding="utf-8") as stream:
        assert list(csv.DictReader(stream)) == [{"text": row.text, "label": row.label} for row in examples]
    assert [path.name for path in tmp_path.iterdir()] == ["dev.csv"]


def test_the_majority_baseline_knows_the_commonest_label_of_train() -> None:
    train, test = baselines.Split(["a", "b", "c"], ["x", "y", "y"]), baselines.Split(["d", "e"], ["x", "y"])
    assert baselines.majority(train, test).predictions == ["y", "y"]


def test_the_tfidf_baseline_learns_a_word() -> None:
    texts = ["a good film", "a bad film", "good and warm", "bad and cold"] * 5
    labels = ["positive", "negative"] * 10
    fitted = baselines.tfidf(
        *[baselines.Split(texts, labels)] * 2, baselines.Split(["good", "bad"], ["", ""])
    )
    assert fitted.predictions == ["positive", "negative"]
    assert fitted.n_parameters == 6 + 6 + 1


def test_the_interval_pairs_the_examples() -> None:
    """Two classifiers right on the same half differ by nothing; unpaired, the interval would be wide."""
    right = [True, False] * 500
    assert table.paired_interval(right, right) == (0.0, 0.0, 0.0)


def test_the_interval_holds_the_difference_and_repeats_with_its_seed() -> None:
    ours, theirs = [True] * 900 + [False] * 100, [True] * 850 + [False] * 150
    difference, low, high = table.paired_interval(ours, theirs)
    assert difference == pytest.approx(0.05)
    assert 0.03 < low < difference < high < 0.07
    assert table.paired_interval(ours, theirs) == (difference, low, high)
