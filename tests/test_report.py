"""The report says what the records say: every seed, every failure, and nothing where nothing was run."""

import csv
import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench_help import add
from command import hadamard
from hadamard_adapter.analysis.overview import OverviewRow, overviews
from hadamard_adapter.analysis.page import page
from hadamard_adapter.analysis.pictures import scores_picture, seeds_picture
from hadamard_adapter.analysis.report import write_report
from hadamard_adapter.analysis.table import read_groups
from hadamard_adapter.analysis.texts import markdown, processors
from hadamard_adapter.bench.results import Results
from hadamard_adapter.bench.run import RECIPE
from hadamard_adapter.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(3):
        add(tmp_path, "full", seed, n_wrong=4)
        add(tmp_path, "hadamard", seed, n_wrong=8 + seed)
        add(tmp_path, "hadamard", seed, n_wrong=2, task="other")
        add(tmp_path, "full", seed, n_wrong=1, task="other")
    add(tmp_path, "lora", 0, n_wrong=20, is_collapsed=True)
    add(tmp_path, "lora", 1, status="failed", error="TrainingError: loss is nan")
    add(tmp_path, "lora", 2, status="cancelled", error="interrupted")
    add(tmp_path, "bitfit", 0, run={"purpose": "search"})
    return tmp_path


def test_every_seed_counts_and_failures_are_told(folder: Path) -> None:
    mood, _ = read_groups(Results(folder))
    rows = {row.method: row for row in mood.rows}
    assert set(rows) == {"full", "hadamard", "lora"}  # a search is no score
    assert rows["hadamard"].scores == {0: 0.8, 1: 0.775, 2: 0.75}
    assert rows["hadamard"].summary is not None and rows["hadamard"].summary.mean == pytest.approx(0.775)
    assert (rows["lora"].failed, rows["lora"].collapsed, rows["lora"].scores) == ((1,), (0,), {0: 0.5})


def test_methods_whose_epochs_were_searched_stand_in_one_table(tmp_path: Path) -> None:
    for method, epochs in (("full", 4), ("hadamard", 8)):
        task = {"name": "mood", "rows": None, "epochs": epochs, "search_epochs": [4, 8]}
        add(tmp_path, method, 0, run={"task": task})
    add(tmp_path, "hadamard", 1, run={"task": {"name": "mood", "rows": None, "epochs": 8}})
    searched, fixed = read_groups(Results(tmp_path))
    assert searched.task == "mood, 4 or 8 epochs" and fixed.task == "mood, 8 epochs"
    assert {row.method: row.epochs for row in searched.rows} == {"full": (4,), "hadamard": (8,)}
    write_report(tmp_path)
    assert "| 0.001 | 8 |" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_method_is_compared_with_full_fine_tuning_by_seed_and_by_example(folder: Path) -> None:
    groups = read_groups(Results(folder))
    found = {group.task: {row.method: row for row in group.rows} for group in groups}
    mood = found["mood, 2 epochs"]["hadamard"].against.get("full")
    other = found["other, 2 epochs"]["hadamard"].against.get("full")
    assert mood is not None and other is not None and mood.interval is not None
    assert mood.by_seed == pytest.approx((-0.1, -0.125, -0.15))
    assert mood.interval.difference == pytest.approx(-0.125)
    assert mood.interval.low < -0.125 < mood.interval.high
    assert (mood.permutation_p, mood.corrected_p, other.corrected_p) == (0.25, 0.5, 0.5)
    assert found["mood, 2 epochs"]["full"].against == {}


def test_each_pair_with_a_reference_is_compared_once_and_told_in_a_column_of_its_own(tmp_path: Path) -> None:
    n_wrong = {"full": 2, "lora": 4, "hadamard-wide": 5, "bitfit": 8}
    for method, wrong in n_wrong.items():
        add(tmp_path, method, 0, n_wrong=wrong)
    (group,) = read_groups(Results(tmp_path))
    assert group.references == ("full", "lora", "hadamard-wide")
    references = {
        "full": "",
        "lora": "full",
        "hadamard-wide": "full lora",
        "bitfit": "full lora hadamard-wide",
    }
    for row in group.rows:
        assert list(row.against) == references[row.method].split()
        for name, comparison in row.against.items():
            difference = -(n_wrong[row.method] - n_wrong[name]) / 40
            assert comparison.by_seed == pytest.approx((difference,))
            assert comparison.interval is not None
            assert comparison.interval.difference == pytest.approx(difference)
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    (head,) = [line for line in text.splitlines() if line.startswith("| method | score |")]
    names = [word.strip() for word in head.split("|")]
    (bitfit,) = [line for line in text.splitlines() if line.startswith("| the bitfit | 0.8")]
    cells = dict(zip(names, (word.strip() for word in bitfit.split("|")), strict=True))
    for name, difference in (("full", "-0.150"), ("LoRA r 8 (q, v)", "-0.100"), ("Hadamard, wide", "-0.075")):
        assert cells[f"against {name}"].startswith(difference)


@pytest.mark.parametrize("change", [{"status": "failed", "error": "x"}, {"run": {"recipe": RECIPE - 1}}])
def test_a_baseline_that_did_not_run_gives_way_to_the_next(change: dict[str, Any], tmp_path: Path) -> None:
    add(tmp_path, "full", 0, **change)
    for method, n_wrong in (("hadamard-wide", 5), ("bitfit", 8)):
        add(tmp_path, method, 0, n_wrong=n_wrong)
    (group,) = read_groups(Results(tmp_path))
    assert group.references == ("hadamard-wide",)
    comparison = next(row for row in group.rows if row.method == "bitfit").against["hadamard-wide"]
    assert comparison.by_seed == pytest.approx((-3 / 40,))


def test_lines_of_rows_that_settings_alone_tell_apart_are_told_apart_in_the_csv(tmp_path: Path) -> None:
    for more, content in enumerate(("one", "another")):
        changes = {str(n): n for n in range(more)}  # a name of its own
        add(tmp_path, "bitfit", 0, n_wrong=more, settings={"model_content": content}, **changes)
    write_report(tmp_path)
    table = list(csv.DictReader((tmp_path / "report.csv").open(encoding="utf-8")))
    assert len({line["title"] for line in table}) == 2 and {line["recipe"] for line in table} == {str(RECIPE)}


def test_nothing_is_compared_with_other_rows_or_another_model_or_cell_by_cell(tmp_path: Path) -> None:
    def comparison_of_bitfit() -> Any:
        (group,) = read_groups(Results(tmp_path))
        return next(row for row in group.rows if row.method == "bitfit").against.get("full")

    add(tmp_path, "full", 0, settings={"model_content": "one"})
    add(tmp_path, "bitfit", 0, n_wrong=4, settings={"model_content": "one"})
    assert comparison_of_bitfit().interval is not None
    add(tmp_path, "bitfit", 0, n_wrong=4, settings={"model_content": "another"})
    assert comparison_of_bitfit() is None
    add(tmp_path, "bitfit", 0, n_wrong=4, settings={"model_content": "one"}, metric="macro-f1")
    assert comparison_of_bitfit() is None
    add(tmp_path, "bitfit", 0, n_wrong=4, settings={"model_content": "one"}, dev_fingerprint="g")
    assert all(not row.against for group in read_groups(Results(tmp_path)) for row in group.rows)


def test_the_baseline_is_that_of_the_same_model_though_another_has_more_seeds(tmp_path: Path) -> None:
    for seed in range(3):
        add(tmp_path, "full", seed, settings={"model_content": "another"})
    add(tmp_path, "full", 0, n_wrong=2, extra=1, settings={"model_content": "one"})
    add(tmp_path, "bitfit", 0, n_wrong=4, settings={"model_content": "one"})
    (group,) = read_groups(Results(tmp_path))
    comparison = next(row for row in group.rows if row.method == "bitfit").against.get("full")
    assert comparison is not None and comparison.by_seed == pytest.approx((-0.05,))


def test_of_two_baselines_alike_the_one_of_most_seeds_counts_and_else_none(tmp_path: Path) -> None:
    def average_and_comparison() -> Any:
        groups = read_groups(Results(tmp_path))
        (overview,) = overviews(groups)
        row = next(row for row in overview.rows if row.first.method == "bitfit")
        return row.ratio_percent, [one.against.get("full") for one in row.rows if one is not None]

    for task in ("mood", "other"):
        add(tmp_path, "bitfit", 0, n_wrong=4, task=task)
        add(tmp_path, "full", 0, n_wrong=2, task=task)
        add(tmp_path, "full", 0, n_wrong=20, task=task, run={"lr": 0.01}, more=1)
    assert average_and_comparison() == (None, [None, None])
    for task in ("mood", "other"):
        add(tmp_path, "full", 1, n_wrong=2, task=task)
    ratio, comparisons = average_and_comparison()
    assert ratio == pytest.approx(100 * 36 / 38)
    assert [one.by_seed for one in comparisons] == [pytest.approx((-0.05,))] * 2


@pytest.mark.parametrize(
    ("methods", "baseline", "head"),
    [
        ("full hadamard-wide hadamard bitfit", "full", "against full"),
        ("hadamard-wide hadamard bitfit", "hadamard-wide", "against Hadamard, wide"),
        ("hadamard bitfit", "hadamard", "against Hadamard"),
        ("bitfit lora", None, "against full"),
    ],
)
def test_without_full_fine_tuning_the_adapter_is_what_others_are_held_against(
    tmp_path: Path, methods: str, baseline: str | None, head: str
) -> None:
    for task in ("mood", "other"):
        for n_wrong, method in enumerate(methods.split()):
            add(tmp_path, method, 0, n_wrong=n_wrong, task=task)
    groups = read_groups(Results(tmp_path))
    (overview,) = overviews(groups)
    assert [group.baseline for group in groups] == [baseline, baseline] and overview.baseline == baseline
    for row in groups[0].rows:
        assert (not row.against) == (row.method == baseline or baseline is None)
    ratios = {row.first.method: row.ratio_percent for row in overview.rows}
    last = methods.split()[-1]
    wrong = len(methods.split()) - 1
    assert ratios[last] == (None if baseline is None else pytest.approx(100 * (40 - wrong) / 40))
    text = markdown(groups, [])
    assert f"| {head} |" in text and f"| % of {head.removeprefix('against ')} |" in text


@pytest.mark.parametrize(
    ("tried", "lr", "edge"),
    [
        ([1e-3, 3e-3], 3e-3, "highest tried"),
        ([1e-3, 3e-3], 1e-3, "lowest tried"),
        ([1e-3, 3e-3, 9e-3], 3e-3, ""),
        ([1e-3], 1e-3, ""),  # nothing was searched
        ([1e-3, 3e-3], 5e-3, ""),  # of no search here
    ],
)
def test_a_rate_at_the_edge_of_its_search_is_marked(
    tmp_path: Path, tried: list[float], lr: float, edge: str
) -> None:
    searches: list[dict[str, Any]] = [{"purpose": "search", "lr": rate} for rate in tried]
    another_tables = {"purpose": "search", "lr": 7.0, "bf16": True}
    for index, run in enumerate([{"lr": lr}, another_tables, *searches]):
        extra: dict[str, Any] = {f"more{at}": 0 for at in range(index)}
        add(tmp_path, "bitfit", 0, run=run, **extra)
    (group,) = [one for one in read_groups(Results(tmp_path)) if one.rows[0].scores]
    assert group.rows[0].edge == edge
    assert (f"{lr:g} ({edge})" if edge else f"| {lr:g} |") in markdown([group], [])


@pytest.mark.parametrize("select", ["held-out", "dev"])
def test_an_edge_is_marked_where_epochs_were_searched_or_dev_chooses_the_epoch(
    tmp_path: Path, select: str
) -> None:
    task = {"name": "mood", "rows": None, "epochs": 2}
    for index, rate in enumerate((1e-3, 3e-3)):
        extra: dict[str, Any] = {f"more{at}": 0 for at in range(index + 1)}
        add(tmp_path, "bitfit", 0, run={"purpose": "search", "lr": rate, "task": task}, **extra)
    found = {**task, "search_epochs": [2, 4]}
    add(tmp_path, "bitfit", 0, run={"lr": 3e-3, "select": select, "task": found})
    (group,) = read_groups(Results(tmp_path))
    assert group.rows[0].edge == "highest tried"


def test_errors_are_not_averaged_with_scores(folder: Path) -> None:
    for method in ("full", "hadamard"):
        add(folder, method, 0, run={"task": {"name": "third", "rows": None, "epochs": 2}}, metric="rmse")
    (overview,) = overviews(read_groups(Results(folder)))
    assert len(overview.tasks) == 3
    assert {(row.average, row.ratio_percent, row.p) for row in overview.rows} == {(None, None, None)}


@pytest.mark.parametrize("name", ["train_data", "dev_data", "batch_size", "max_length", "recipe"])
def test_runs_that_trained_otherwise_are_not_compared_and_say_what_differs(tmp_path: Path, name: str) -> None:
    add(tmp_path, "full", 0, n_wrong=1, settings={name: 1, "lr": 1})
    for seed in range(2):
        add(tmp_path, "full", seed, n_wrong=2, settings={name: 2, "lr": 2}, more=1)
    add(tmp_path, "bitfit", 0, n_wrong=4, settings={name: 1})
    (group,) = read_groups(Results(tmp_path))
    titles = {row.title: row.against.get("full") for row in group.rows}
    assert set(titles) == {f"the full ({name} 1)", f"the full ({name} 2)", "the bitfit"}
    comparison = titles["the bitfit"]
    assert comparison is not None and comparison.by_seed == pytest.approx((-0.075,))  # the smaller one


def test_a_fit_is_held_against_all_seeds_and_has_no_p(tmp_path: Path) -> None:
    add(tmp_path, "tfidf", 0, n_wrong=10)
    for seed in range(3):
        add(tmp_path, "full", seed, n_wrong=2 * seed)
    (group,) = read_groups(Results(tmp_path))
    comparison = next(row for row in group.rows if row.method == "tfidf").against.get("full")
    assert comparison is not None and comparison.interval is not None
    assert comparison.interval.difference == pytest.approx(-8 / 40)
    assert (comparison.by_seed, comparison.permutation_p, comparison.corrected_p) == ((), None, None)
    write_report(tmp_path)


def test_no_average_of_seeds_that_are_missing_and_no_task_beside_one_of_other_settings(folder: Path) -> None:
    assert len(overviews(read_groups(Results(folder)))) == 1
    add(folder, "full", 0, task="third", run={"task": {"name": "third", "rows": 100, "epochs": 2}})
    assert len(overviews(read_groups(Results(folder)))) == 1
    tasks = "".join(TASK.format(name=name) for name in ("mood", "other"))
    keep(folder, HEAD.format(title="main", method="hadamard").replace("seeds = 1", "seeds = 4") + tasks)
    (overview,) = [one for one in overviews(read_groups(Results(folder))) if one.title == "main"]
    assert {(row.average, row.ratio_percent, row.p) for row in overview.rows} == {(None, None, None)}
    assert "| 0.7750 (3 of 4) |" in markdown(read_groups(Results(folder)), [])


def test_of_several_labels_a_row_there_is_no_interval(tmp_path: Path) -> None:
    add(tmp_path, "full", 0, rows={"dev": 20})
    add(tmp_path, "bitfit", 0, n_wrong=4, rows={"dev": 20})
    (group,) = read_groups(Results(tmp_path))
    comparison = next(row for row in group.rows if row.method == "bitfit").against.get("full")
    assert comparison is not None and comparison.interval is None


def test_runs_of_other_settings_stand_in_a_table_of_their_own(folder: Path) -> None:
    add(folder, "hadamard", 0, run={"select": "dev"})
    add(folder, "hadamard", 1, run={"bf16": True}, extra=1)
    assert len(read_groups(Results(folder))) == 4


def test_orders_of_rows_are_told_apart_and_named_where_there_are_several(tmp_path: Path) -> None:
    add(tmp_path, "full", 0, run={"order": "random"})
    (group,) = read_groups(Results(tmp_path))
    assert group.task == "mood, 2 epochs"
    add(tmp_path, "full", 0, run={"order": None}, more=1)  # of before there was another
    tasks = {group.task for group in read_groups(Results(tmp_path))}
    assert tasks == {"mood, 2 epochs, rows at random", "mood, 2 epochs, groups from long to short"}


def test_processors_and_versions_of_a_table_are_named(tmp_path: Path) -> None:
    add(tmp_path, "full", 0, machine={"processor": "one"}, versions={"torch": "1.0.0"})
    add(tmp_path, "full", 1, versions={"torch": "1.1.0"}, more=1)
    (group,) = groups = read_groups(Results(tmp_path))
    assert processors(group) == "Processors: not recorded (1); one (1)."
    text = markdown(groups, [])
    assert processors(group) in text
    assert "several versions of a library: the full on mood, 2 epochs (torch 1.0; torch 1.1)." in text
    assert processors(group) in page(groups, [])


def means_of(row: OverviewRow) -> list[float | None]:
    """Over seeds, a task each."""
    return [None if one is None or one.summary is None else one.summary.mean for one in row.rows]


def test_the_overview_averages_only_what_ran_on_every_task(folder: Path) -> None:
    (overview,) = overviews(read_groups(Results(folder)))
    rows = {row.first.title: row for row in overview.rows}
    assert means_of(rows["the lora"]) == [0.5, None] and rows["the lora"].average is None
    hadamard, full = rows["the hadamard"], rows["the full"]
    assert hadamard.average == pytest.approx((0.775 + 0.95) / 2) and full.p is None
    assert hadamard.ratio_percent == pytest.approx(100 * (0.775 + 0.95) / (0.9 + 0.975))
    assert hadamard.p == 0.5  # two tasks cannot say more


@pytest.mark.parametrize(
    "change",
    [{"dev_fingerprint": "g"}, {"metric": "macro-f1"}, {"settings": {"model_content": "another"}}],
    ids=["other dev rows", "another metric", "another model of this name"],
)
def test_scores_of_other_rows_metrics_or_models_say_so_and_are_no_share(
    change: dict[str, Any], tmp_path: Path
) -> None:
    for task in ("mood", "other"):
        add(tmp_path, "full", 0, n_wrong=4, task=task, settings={"model_content": "one"})
        add(tmp_path, "bitfit", 0, n_wrong=8, task=task, **{"settings": {"model_content": "one"}, **change})
    groups = read_groups(Results(tmp_path))
    (overview,) = overviews(groups)
    bitfit = next(row for row in overview.rows if row.first.method == "bitfit")
    assert (bitfit.average, bitfit.ratio_percent, bitfit.p) == (pytest.approx(0.8), None, None)
    text = markdown(groups, [])
    assert text.count("the bitfit (other dev rows, metric or model)") == 3
    assert "the full (" not in text


def test_of_rows_with_all_seeds_the_last_one_counts(folder: Path) -> None:
    tasks = "".join(TASK.format(name=name) for name in ("mood", "other"))
    keep(folder, HEAD.format(title="main", method="bitfit").replace("seeds = 1", "seeds = 2") + tasks)
    before, now = ({"started_at": f"2026-11-{day}T10:00:00+00:00"} for day in (10, 20))
    for task in ("mood", "other"):
        for seed in range(3):
            add(folder, "bitfit", seed, n_wrong=30, task=task, run={"lr": 0.5}, **before)
        add(folder, "bitfit", 0, n_wrong=2, task=task, more=1, **now)
    assert shown_scores(folder, "bitfit")[0] == pytest.approx(0.25), "the last one lacks a seed"
    for task in ("mood", "other"):
        add(folder, "bitfit", 1, n_wrong=2, task=task, more=1, **now)
    assert shown_scores(folder, "bitfit") == {0: 0.95, 1: 0.95}


def test_a_search_that_failed_and_errors_are_told(folder: Path, tmp_path: Path) -> None:
    spec = HEAD.format(title="main", method="bitfit") + TASK.format(name="mood")
    keep(folder, "search = { rows = 100, extensions = 1 }\n" + spec)
    (folder / "runs" / "mood-bitfit-0-0.json").unlink()  # the search that is done
    for number, lr in enumerate((0.1, 0.2)):
        run, more = {"purpose": "search", "lr": lr}, {f"more{at}": 0 for at in range(number)}
        add(folder, "bitfit", 0, status="failed", error="X: why", run=run, **more)
    text = markdown(groups := read_groups(Results(folder)), [])
    assert "| BitFit | search failed |" in text and page(groups, [])
    write_report(folder)
    assert "search failed" in (folder / "report.csv").read_text(encoding="utf-8")
    for name in ("report.md", "report.html"):
        told = (folder / name).read_text(encoding="utf-8")
        assert "Runs that failed" in told and "mood-lora-1-2: TrainingError: loss is nan" in told
        assert told.count(": X: why") == 2


def test_a_failed_seed_leaves_no_average(folder: Path) -> None:
    add(folder, "hadamard", 3, status="failed", error="TrainingError: loss is nan")
    (overview,) = overviews(read_groups(Results(folder)))
    rows = {row.first.method: row for row in overview.rows}
    assert rows["full"].average is not None
    assert (rows["hadamard"].n_failed, rows["hadamard"].average, rows["hadamard"].ratio_percent) == (
        1,
        None,
        None,
    )


def test_runs_of_an_older_recipe_say_so(tmp_path: Path) -> None:
    add(tmp_path, "full", 0, settings={"recipe": RECIPE})
    add(tmp_path, "bitfit", 0, settings={"recipe": RECIPE - 1})
    groups = read_groups(Results(tmp_path))
    assert {row.method: row.older_recipe for row in groups[0].rows} == {"full": None, "bitfit": RECIPE - 1}
    remark = f"another version of the recipe: the bitfit on mood, 2 epochs (recipe {RECIPE - 1})."
    assert remark in markdown(groups, []) and "the full on" not in markdown(groups, [])


def test_runs_of_an_older_recipe_do_not_stand_in_for_those_of_now(folder: Path) -> None:
    tasks = "".join(TASK.format(name=name) for name in ("mood", "other"))
    keep(folder, HEAD.format(title="main", method="bitfit") + tasks)
    for task in ("mood", "other"):
        for seed in range(3):
            add(folder, "bitfit", seed, task=task, n_wrong=30, settings={"recipe": RECIPE - 1})
    groups = read_groups(Results(folder))
    (overview,) = overviews(groups)
    bitfit = next(row for row in overview.rows if row.first.method == "bitfit")
    assert (means_of(bitfit), bitfit.average, bitfit.ratio_percent) == ([None, None], None, None)
    assert "| BitFit | not run |" in markdown(groups, []) and "another version of the recipe" in markdown(
        groups, []
    )
    add(folder, "bitfit", 0, task="mood", n_wrong=2, settings={"recipe": RECIPE})
    assert shown_scores(folder, "bitfit") == {0: 0.95}


def shown_scores(folder: Path, method: str) -> dict[int, float]:
    """Scores of what the overview shows of a method on mood."""
    (overview,) = overviews(read_groups(Results(folder)))
    row = next(row for row in overview.rows if row.first.method == method).rows[0]
    return {} if row is None else row.scores


def test_a_leftover_run_of_another_rate_owes_no_seeds_and_is_drawn(folder: Path) -> None:
    keep(folder, HEAD.format(title="main", method="hadamard").replace("seeds = 1", "seeds = 3")
         + TASK.format(name="mood"))  # fmt: skip
    add(folder, "hadamard", 0, n_wrong=30, run={"lr": 0.5}, more=1)
    mood = read_groups(Results(folder))[0]
    owed = {row.lr: row.n_asked for row in mood.rows if row.method == "hadamard"}
    assert owed == {(0.001,): 3, (0.5,): 0}
    write_report(folder)
    table = list(csv.DictReader((folder / "report.csv").open(encoding="utf-8")))
    assert not [row for row in table if row["method"] == "hadamard" and row["status"] == "not run"]
    for picture in (scores_picture(mood), seeds_picture(mood)):
        assert "hadamard, lr 0.001" in picture and "hadamard, lr 0.5" in picture and "full, lr" not in picture


def test_specs_of_one_title_ask_for_the_methods_of_both(folder: Path) -> None:
    for method in ("hadamard", "bitfit"):
        keep(folder, HEAD.format(title="one", method=method) + TASK.format(name="mood"), f"{method}.toml")
    mood = read_groups(Results(folder))[0]
    assert set(mood.specs["one"]) >= {"hadamard", "bitfit"}
    assert "| BitFit | not run |" in markdown([mood], [])


def test_an_overview_holds_the_tasks_and_methods_of_an_experiment(folder: Path) -> None:
    add(folder, "hadamard", 0, task="mood", run={"task": {"name": "mood", "rows": 100, "epochs": 2}})
    for title, method in (("the main", "hadamard"), ("the others", "bitfit")):
        tasks = "".join(TASK.format(name=name) for name in ("mood", "other"))
        keep(folder, HEAD.format(title=title, method=method) + tasks, f"{method}.toml")
    groups = read_groups(Results(folder))
    both, *rest = overviews(groups)
    assert not rest  # the part of 100 rows is no task of these experiments
    assert both.title == "the others; the main" and both.tasks == tuple(
        f"{name}, 2 epochs: accuracy" for name in ("mood", "other")
    )
    assert {row.first.method for row in both.rows} == {"full", "hadamard", "bitfit"}  # LoRA is in no spec
    bitfit = next(row for row in both.rows if row.first.method == "bitfit")
    assert (bitfit.first.n_trained, bitfit.average) == (None, None)


def test_what_a_spec_asks_for_and_was_not_run_is_told(folder: Path) -> None:
    tasks = "".join(TASK.format(name=name) for name in ("mood", "other", "third"))
    keep(folder, HEAD.format(title="three tasks", method="bitfit").replace("seeds = 1", "seeds = 5") + tasks)
    keep(folder, HEAD.format(title="never", method="lora") + TASK.format(name="fourth"), "never.toml")
    groups = read_groups(Results(folder))
    assert [group.task.split(",")[0] for group in groups] == ["mood", "other", "third"]
    assert groups[2].metric == "not run" and {row.summary for row in groups[2].rows} == {None}
    (overview,) = overviews(groups)
    assert {row.average for row in overview.rows} == {None}  # the third task is missing
    text = markdown(groups, [])
    assert "0.9000 ± 0.0000 (3 of 5)" in text and "| BitFit | not run |" in text


def test_settings_that_differ_are_rows_of_their_own_and_one_seed_counts_once(folder: Path) -> None:
    add(folder, "full", 0, n_wrong=20, run={"lr": 0.01}, more=1)
    add(folder, "hadamard", 1, n_wrong=39, more=1)
    results = Results(folder)
    mood, _ = read_groups(results)
    assert [(row.lr, len(row.scores)) for row in mood.rows if row.method == "full"] == [
        ((0.001,), 3),
        ((0.01,), 1),
    ]
    (hadamard,) = [row for row in mood.rows if row.method == "hadamard"]
    assert hadamard.scores[1] == 0.775 and len(results.problems) == 1


def test_corrected_over_the_tasks_of_an_experiment_alone(folder: Path) -> None:
    for seed in range(3):
        for method, n_wrong in (("full", 4), ("hadamard", 8 + seed)):
            rows = {"name": "mood", "rows": 100, "epochs": 2}
            add(folder, method, seed, n_wrong, run={"task": rows}, part=100)
    keep(folder, SPEC)
    found = {group.task: {row.method: row for row in group.rows} for group in read_groups(Results(folder))}
    comparisons = [
        found[task]["hadamard"].against.get("full") for task in ("mood, 2 epochs", "other, 2 epochs")
    ]
    assert [one.corrected_p for one in comparisons if one is not None] == [0.25, 0.5]  # one task, two others


def test_a_task_that_is_not_run_yet_counts_in_the_correction(folder: Path) -> None:
    more = TASK.format(name="third") + TASK.format(name="other")
    keep(folder, HEAD.format(title="both", method="hadamard") + TASK.format(name="mood") + more)
    found = {group.task: {row.method: row for row in group.rows} for group in read_groups(Results(folder))}
    mood = found["mood, 2 epochs"]["hadamard"].against["full"]
    assert (mood.permutation_p, mood.corrected_p) == (0.25, 0.75)
    assert found["third, 2 epochs"]["hadamard"].summary is None
    for seed in range(3):  # a second row of the method in a table that is there: four tests
        add(folder, "hadamard", seed, 9, run={"lr": 0.1}, settings={"lr": 0.1}, part=2)
    groups = {group.task: group for group in read_groups(Results(folder))}
    both = [
        row.against["full"].corrected_p for row in groups["mood, 2 epochs"].rows if row.method == "hadamard"
    ]
    assert both == [1.0, 1.0]


@pytest.mark.parametrize("own", [{"batch_size": 8}, {"max_length": 64}, {"head_epochs": 1}])
def test_what_a_task_s_runs_share_is_a_table_of_its_own(own: dict[str, int], tmp_path: Path) -> None:
    add(tmp_path, "hadamard", 0)
    task: dict[str, Any] = {"name": "mood", "rows": None, "epochs": 2, **own}
    add(tmp_path, "full", 0, run={"task": task}, part=1)
    one, other = read_groups(Results(tmp_path))
    assert [[row.method for row in group.rows] for group in (one, other)] == [["hadamard"], ["full"]]
    assert one.task == "mood, 2 epochs" and other.task.startswith("mood, 2 epochs, ")


class Page(html.parser.HTMLParser):
    """The cells of a page, and every address that it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.loaded: list[str] = []
        self.is_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.is_cell = tag == "td"
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self.is_cell:
            self.cells.append(data)


HEAD = """
title = "{title}"
models = ["elsewhere/model"]
methods = ["full", "{method}"]
seeds = 1
"""
TASK = """
[[tasks]]
name = "{name}"
train = "t.csv"
dev = "d.csv"
epochs = 2
"""
SPEC = (
    HEAD.format(title="published", method="hadamard")
    + TASK.format(name="mood")
    + "expected = { hadamard = 55.5 }"
)


def keep(folder: Path, spec: str, name: str = "spec.toml") -> None:
    (folder / name).write_text(spec)
    Results(folder).keep_spec(folder / name)


def test_published_scores_stand_beside_ours_and_a_spec_that_cannot_be_read_is_told(folder: Path) -> None:
    keep(folder, SPEC)
    keep(folder, "no = 1", "other.toml")
    results = Results(folder)
    published = {
        (group.task, row.method): row.published for group in read_groups(results) for row in group.rows
    }
    assert published.pop(("mood, 2 epochs", "hadamard")) == 55.5
    assert set(published.values()) == {None}
    assert "other.toml" in results.problems and "spec.toml" not in results.problems


def test_the_files_say_the_same_and_the_page_loads_nothing(folder: Path, tmp_path: Path) -> None:
    keep(folder, SPEC)
    markdown, table, page = write_report(folder, tmp_path / "out")
    rows = list(csv.DictReader(table.open()))
    assert [row["seed"] for row in rows if row["status"] == "failed"] == ["1"]
    assert [row["seed"] for row in rows if row["status"] == "collapsed"] == ["0"]
    assert len(rows) == 14 and {row["score"] for row in rows if row["task"].startswith("other")} == {
        "0.950000",
        "0.975000",
    }
    text = markdown.read_text()
    assert (
        "| the hadamard | 0.7750 ± 0.0250 (3) | 55.5 | 80 | 0.5000 | 5 | 0.7750 | 0.800, 0.775, 0.750 |"
        in text
    )
    assert "| the lora [1 failed, 1 collapsed] |" in text
    parsed = Page()
    parsed.feed(page.read_text())
    assert "0.7750 ± 0.0250 (3)" in parsed.cells
    assert not [address for address in parsed.loaded if not address.startswith("#")]
    assert "https://" not in re.sub(r"<svg.*?</svg>", "", page.read_text(), flags=re.DOTALL)
    assert page.read_text().count("<svg") == 6


def test_the_same_results_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    one, other = (write_report(folder, tmp_path / name) for name in ("one", "other"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_a_file_that_does_not_count_is_told(folder: Path, tmp_path: Path) -> None:
    (folder / "runs" / "half.json").write_text('{"format": 1,')
    (folder / "runs" / "old.json").write_text(json.dumps({"format": 0}))
    text = write_report(folder, tmp_path / "out")[0].read_text()
    assert "- half.json: not a record" in text and "- old.json: of another version" in text


def test_the_command_writes_the_report_and_refuses_a_folder_without_results(
    folder: Path, tmp_path: Path
) -> None:
    found = hadamard("report", folder, "--output", tmp_path / "out")
    assert found.code == 0 and found.err.count("wrote ") == 3 and not found.out
    refused = hadamard("report", tmp_path / "none")
    assert refused.code == 2 and "expected a folder of `hadamard bench`" in refused.err
    with pytest.raises(DataError):
        write_report(tmp_path / "none")
