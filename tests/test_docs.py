"""The documentation is true: its code runs, its generated page is up to date, its links lead somewhere."""

import csv
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hadamard_adapter.analysis.speed_texts import speed_files
from hadamard_adapter.analysis.unmeasured import asked_of
from hadamard_adapter.bench.results import Results
from hadamard_adapter.tuning import TuneSettings, merge, tune
from tuning_help import silent

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = ("a fine film", "a dull film", "a warm story", "a cold story")


def python_blocks(page: Path) -> list[str]:
    """The blocks of code marked python that are meant to run."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [block for block in blocks if not block.startswith("# not run")]


BLOCKS = [
    pytest.param(block, id=f"{page.name}-{index}")
    for page in PAGES
    for index, block in enumerate(python_blocks(page))
]


@pytest.fixture(scope="module")
def folder(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with quickstart/model and quickstart/adapter, as the quickstart leaves them, and others."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("docs")
    (place / "quickstart").mkdir()
    (place / "quickstart" / "model").symlink_to(minilm, target_is_directory=True)
    (place / "sentence-transformers").mkdir()
    (place / "sentence-transformers" / "all-MiniLM-L6-v2").symlink_to(minilm, target_is_directory=True)
    (place / "my-adapter").symlink_to("quickstart/adapter", target_is_directory=True)
    rows = [
        f"{text} {index},{('good', 'bad')[at % 2]}" for index in range(4) for at, text in enumerate(TEXTS)
    ]
    (place / "train.csv").write_text("\n".join(["text,label", *rows, ""]), encoding="utf-8")
    settings = TuneSettings(
        str(place / "quickstart/model"), str(place / "quickstart/adapter"),
        train=str(place / "train.csv"), dev=str(place / "train.csv"),
        head_epochs=1, epochs=1, batch_size=8, device="cpu",
    )  # fmt: skip
    tune(settings, say=silent)
    return place


def run_block(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(block, "block", "exec"), names)
    return names


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_of_code_runs(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_block(block, folder, monkeypatch)


def test_the_counts_of_the_paper_are_those_that_the_page_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = python_blocks(ROOT / "docs" / "paper_to_code.md")
    run_block(block, folder, monkeypatch)
    assert capsys.readouterr().out.split() == ["18432", "36864", "24576"]


def test_the_reader_in_the_format_page_equals_our_merge(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = python_blocks(ROOT / "docs" / "format.md")
    read = run_block(block, folder, monkeypatch)["model"]
    merge(folder / "quickstart" / "adapter", folder / "merged")
    merged = load_file(folder / "merged" / "model.safetensors")
    merged = {name.removeprefix("bert."): tensor for name, tensor in merged.items()}
    base = load_file(folder / "quickstart" / "model" / "model.safetensors")
    changed = [
        name for name, tensor in merged.items() if name in base and not torch.equal(tensor, base[name])
    ]
    assert len(changed) > 6 * 4
    for name, tensor in merged.items():
        torch.testing.assert_close(torch.from_numpy(read[name]).float(), tensor, msg=name)


@pytest.mark.parametrize("name", ["capacity", "families"])
def test_a_page_that_is_made_is_up_to_date(name: str) -> None:
    page = runpy.run_path(str(ROOT / "scripts" / f"{name}_page.py"))["page"]
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert text == page(), f"run: python scripts/{name}_page.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and "://" not in target]
    missing = [target for target in local if not (page.parent / target).exists()]
    assert not missing, missing


@pytest.mark.parametrize("name", ["design.md", "paper_to_code.md"])
def test_every_file_of_the_code_that_a_page_names_exists(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    rooms = "adapter|analysis|bench|cli|methods|serving|tasks|tuning"
    paths = re.findall(rf"`((?:{rooms})/[\w/]+\.py|functional\.py)`(?: `(\w+)`)?", text)
    for path, symbol in paths:
        file = ROOT / "src" / "hadamard_adapter" / path
        assert file.is_file(), path
        assert not symbol or re.search(rf"\b{symbol}\b", file.read_text(encoding="utf-8")), (path, symbol)


def test_the_readme_says_what_the_result_files_say() -> None:
    filled = runpy.run_path(str(ROOT / "scripts" / "readme.py"))["filled"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == filled(text), "run: python scripts/readme.py"


@pytest.mark.parametrize(
    "folder", sorted(path.parent.name for path in (ROOT / "results").glob("*/report.csv"))
)
def test_a_committed_report_has_every_committed_run(folder: str) -> None:
    """`hadamard report` made it after the last run that is there."""
    place = ROOT / "results" / folder
    records = Results(place).records().values()
    runs = [(record["run"], record) for record in records if record["run"]["purpose"] == "score"]
    expected = sorted((run["method"], str(run["seed"]), f"{record['score']:.6f}") for run, record in runs)
    with (place / "report.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] != "not run"]
    found = sorted((row["method"], row["seed"], row["score"]) for row in rows)
    assert found == expected and expected


@pytest.mark.parametrize(("folder", "least"), [("speed", 3), ("speed-float32", 2)])
def test_the_committed_report_of_speed_is_that_of_its_runs(folder: str, least: int) -> None:
    """Text and figures, not the pictures, whose bytes are matplotlib's of one version."""
    place = ROOT / "results" / folder
    found = Results(place)
    texts = speed_files(list(found.records().values()), asked_of(found))
    assert not found.problems and len(texts) >= least
    for name in ("speed.md", "speed.json"):
        assert (place / name).read_text(encoding="utf-8") == texts[name], f"run: hadamard report {place}"
    assert texts.keys() <= {path.name for path in place.iterdir()}
