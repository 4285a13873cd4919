"""The tables of docs/results.md and docs/experiments/ say what the committed result files hold."""

import csv
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from hadamard_adapter.analysis.prune import CRITERIA, rank_agreement

ROOT = Path(__file__).resolve().parent.parent
ANALYSES = ROOT / "results" / "analyses"
SEEDS = range(3)
TASKS = ("sst2", "stsb", "mrpc", "cola")


def numbers(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def says(page: str, *expected: str) -> None:
    """Fails with the first line that a page lacks; lines of the page may break anywhere."""
    text = " ".join((ROOT / "docs" / page).read_text(encoding="utf-8").split())
    for line in expected:
        assert line in text, f"docs/{page} does not say: {line}"


def row(title: str, *cells: str) -> str:
    return f"| {' | '.join((title, *cells))} |"


def spread(scores: Mapping[Any, float], count: bool = False) -> str:
    values = list(scores.values())
    return f"{mean(values):.3f} ± {stdev(values):.3f}" + (f" ({len(values)})" if count else "")


def bench_scores(model: str, results: str = "bench") -> dict[tuple[str, str], dict[str, float]]:
    """(task with its protocol, method) -> seed -> score, of runs whose epoch was chosen on rows held out."""
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    with (ROOT / "results" / results / "report.csv").open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if (line["model"], line["select"]) == (model, "held-out") and line["score"]:
                found[line["task"], line["method"]][line["seed"]] = float(line["score"])
    return found


# A title of the page's table -> the method
OTHERS = {
    "attention norm only": "attention-norm",
    "RED": "red",
    "**Hadamard**": "hadamard",
    "LN-tuning": "ln-tuning",
    "IA3": "ia3",
    "**Hadamard, wide**": "hadamard-wide",
    "BitFit": "bitfit",
    "LoRA": "lora",
    "full fine-tuning": "full",
}


@pytest.mark.parametrize("title", OTHERS)
def test_the_other_methods_are_those_of_the_report(title: str) -> None:
    scores = bench_scores("all-MiniLM-L6-v2")
    tasks = ("cola, 8 epochs", "mrpc, 5 epochs", "sst2 (10,000 rows), 3 epochs", "stsb, 5 epochs")
    own, full = ([scores[f"{task}, bf16", method] for task in tasks] for method in (OTHERS[title], "full"))
    average, of_full = (mean(mean(seeds.values()) for seeds in each) for each in (own, full))
    cells = [*map(spread, own), f"{average:.3f}", f"{100 * average / of_full:.1f}"]
    says("results.md", " | ".join(cells))


@pytest.mark.parametrize(
    "method",
    [
        *(
            "full",
            "attention-norm",
            "hadamard",
            "hadamard-output-norm",
            "hadamard-both-norms",
            "hadamard-wide",
        ),
        *("hadamard-input", "hadamard-one-stage", "hadamard-free-head", "hadamard-two-thirds"),
        *("hadamard-wide-frozen-head", "vera", "houlsby"),
    ],
)
def test_the_ablations_are_those_of_the_report(method: str) -> None:
    scores = bench_scores("all-MiniLM-L6-v2")
    of_sst2, of_stsb = (scores[f"{task} (2,000 rows), 5 epochs", method] for task in ("sst2", "stsb"))
    says("results.md", f"| {spread(of_sst2)} | {spread(of_stsb)} |")


@pytest.mark.parametrize("order", ["groups from long to short", "groups at random", "rows at random"])
def test_orders_of_rows_are_those_of_the_report(order: str) -> None:
    scores = bench_scores("all-MiniLM-L6-v2", "precision")
    tasks = [f"{task} (2,000 rows), 5 epochs, {order}" for task in ("cola", "sst2", "stsb")]
    cells = " | ".join(spread(scores[task, "hadamard-wide"]) for task in tasks)
    says("results.md", f"| {cells} |")


@pytest.mark.parametrize("method", ["hadamard-wide", "lora", "full", "hadamard"])
def test_mpnet_is_that_of_the_report(method: str) -> None:
    scores = bench_scores("all-mpnet-base-v2")
    (task,) = {task for task, _ in scores if task.startswith("cola (2,000 rows)")}
    says("results.md", spread(scores[task, method]))


def test_pruned_scores_are_those_of_the_curves() -> None:
    adapters = numbers(ANALYSES / "prune.json")["adapters"]

    def means(criterion: str, n_layers: int) -> list[str]:
        entries = {
            task: [
                next(e["score"] for e in adapters[f"{task}-{seed}"]["curve"][criterion] if e["n"] == n_layers)
                for seed in SEEDS
            ]
            for task in TASKS
        }
        return [f"{mean(entries[task]):.3f}" for task in TASKS]

    says(
        "experiments/prune.md",
        row("all six layers", *means("zero", 6)),
        row("loss without the layer (`--by zero`, the default)", *means("zero", 4)),
        row("size of the offsets (`--by offset`)", *means("offset", 4)),
        row("Fisher information (`--by fisher`)", *means("fisher", 4)),
    )


def test_adapters_tuned_again_are_those_of_the_file() -> None:
    found = numbers(ANALYSES / "prune_again.json")["adapters"]
    before = numbers(ANALYSES / "prune.json")["adapters"]
    ones = [found[f"{task}-0"] for task in TASKS]
    says(
        "experiments/prune.md",
        row("layers that stay", *(", ".join(map(str, one["kept"])) for one in ones)),
        row("all six layers", *(f"{before[f'{task}-0']['curve']['zero'][0]['score']:.3f}" for task in TASKS)),
        row("without the others", *(f"{one['kept_score']:.3f}" for one in ones)),
        row("tuned again", *(f"{one['again']['score']:.3f}" for one in ones)),
    )


def test_rankings_agree_as_much_as_the_file_says() -> None:
    found = numbers(ANALYSES / "prune.json")
    ones = found["adapters"].values()
    tasks = [one["made_with"]["task"] for one in ones]
    shown = {name: rank_agreement([one["scores"][name] for one in ones], tasks) for name in CRITERIA}
    assert shown == found["agreement"]
    seeds, others = (
        {name: f"{means[pairs]:.2f}" for name, means in shown.items()}
        for pairs in ("within_task", "between_tasks")
    )
    says(
        "experiments/prune.md",
        f"correlate by {seeds['zero']} (loss; size {seeds['offset']}, Fisher {seeds['fisher']})",
        f"of two tasks by {others['zero']} ({others['offset']}, {others['fisher']})",
    )


def test_adapters_of_the_analyses_are_those_of_the_file() -> None:
    found = numbers(ANALYSES / "adapters.json")["adapters"]
    titles = {
        "sst2": "SST-2, accuracy",
        "stsb": "STS-B, Pearson",
        "mrpc": "MRPC, accuracy",
        "cola": "CoLA, MCC",
    }
    for task, title in titles.items():
        ones = [found[f"{task}-{seed}"] for seed in SEEDS]
        cells = [
            ", ".join(f"{one[part][one['metric']]:.3f}" for one in ones) for part in ("dev", "stage1_dev")
        ]
        says("experiments/README.md", row(title, *cells))


def test_knobs_are_those_of_the_file() -> None:
    sst2, stsb = (
        next(one for name, one in numbers(ANALYSES / "knobs.json")["tasks"].items() if f", {task} (" in name)
        for task in ("sst2", "stsb")
    )
    sizes = {"none": "0", "scale": "d", "shift": "d", "norm": "2d", "scale + shift": "2d"}
    sizes |= {"scale + norm": "3d", "shift + norm": "3d", "scale + shift + norm": "4d"}
    titles = {"none": "nothing", "scale + shift + norm": "scale + shift + norm, the paper's form"}
    for part, size in sizes.items():
        cells = (spread(sst2["scores"][part]), spread(stsb["scores"][part]))
        says("experiments/knobs.md", row(titles.get(part, part), size, *cells))
    shares = [
        ", ".join(f"{one['shares'][knob]['mean']:.3f}" for knob in ("scale", "shift", "norm"))
        for one in (sst2, stsb)
    ]
    says("experiments/knobs.md", row("share of the gain: scale, shift, norm |", *shares))


def test_shared_adapters_are_those_of_the_file() -> None:
    tasks = numbers(ROOT / "results" / "shared.json")["tasks"]
    text = (ROOT / "docs" / "experiments" / "sharing.md").read_text(encoding="utf-8")
    for method in tasks["cola"]["scores"]:
        cells = [
            spread(tasks[task]["scores"][method], count=True) for task in ("cola", "sst2", "mrpc", "stsb")
        ]
        assert " | ".join(cells) in text, method


def test_norms_of_outputs_are_those_of_the_file() -> None:
    found = numbers(ANALYSES / "outputs.json")
    last = {
        name: tuple(
            f"{found[f'full-{name}']['layers'][f'norm {when}'][-1]:.1f}" for when in ("before", "after")
        )
        for name in ("sst2", "stsb", "cola")
    }
    (a, b), (c, d), (e, f) = last.values()
    says("experiments/outputs.md", f"from {a} to {b} on SST-2, {c} to {d} on STS-B, {e} to {f} on CoLA")


def test_the_page_and_the_readme_have_the_memory_and_the_time_of_parts_of_few_tokens() -> None:
    found = numbers(ROOT / "results" / "speed-float32" / "speed.json")["memory"]
    peak = {entry["variant"]: entry["peak_bytes"] for entry in found}
    own, whole, again = (peak[f"tune{more}"] / peak["lora"] for more in ("-micro", "", "-checkpointed"))
    by_length = numbers(ROOT / "results" / "micro_batches.json")["by_tokens_a_row"]
    slower = {length: 1 / of_length["without / with"] for length, of_length in by_length.items()}
    says(
        "results.md",
        f"takes {own:.2f} of LoRA's memory ({peak['tune-micro'] / 1e6:.0f} MB; `tune` without it {whole:.2f}",
        f"with `--gradient-checkpointing` {again:.2f}; [speed-float32]",
        f"for {slower['128']:.2f} times the time (64 to 256 tokens a row: {min(slower.values()):.2f} to "
        f"{max(slower.values()):.2f};",
    )
    says(
        "../README.md",
        f"needs {own:.2f} of what LoRA's whole batch needs (in float32, where `tune` without it needs "
        f"{whole:.2f}), for {min(slower.values()):.2f} to {max(slower.values()):.2f} times the time",
    )


RTE_IN_FLOAT32 = {
    "attention-norm": "attention norm only", "red": "RED", "ln-tuning": "LN-tuning", "ia3": "IA3",
    "bitfit": "BitFit",
}  # fmt: skip
RTE_IN_AVERAGE = {
    "ia3": "IA3", "hadamard-wide": "wide", "bitfit": "BitFit", "hadamard": "the paper's form",
    "ln-tuning": "LN-tuning", "attention-norm": "the norm of attention alone", "red": "RED",
}  # fmt: skip


def test_the_page_has_the_scores_of_rte_in_float32() -> None:
    scores = bench_scores("all-MiniLM-L6-v2")
    cells = [f"{title} {spread(scores['rte, 5 epochs', name])}" for name, title in RTE_IN_FLOAT32.items()]
    says("results.md", ", ".join(cells))
    tasks = ("cola, 8 epochs", "mrpc, 5 epochs", "sst2 (10,000 rows), 3 epochs", "stsb, 5 epochs")

    def average(method: str) -> float:
        rte = "rte, 5 epochs" if method in RTE_IN_FLOAT32 else "rte, 5 epochs, bf16"
        names = (rte, *(f"{task}, bf16" for task in tasks))
        return mean(mean(scores[name, method].values()) for name in names)

    kept = {title: 100 * average(method) / average("full") for method, title in RTE_IN_AVERAGE.items()}
    first, *others = kept.items()
    more = [f"{title} {share:.1f} %" for title, share in others]
    says("results.md", f"with RTE {first[0]} keeps {first[1]:.1f} %, {', '.join(more)}")


def test_the_page_has_the_overlaps_of_the_file() -> None:
    found = numbers(ROOT / "results" / "overlaps.json")["hold_a_text_of"]
    pairs = {frozenset((task, other)) for task, others in found.items() for other in others}
    reviews = "movieReviewSnippets"
    assert pairs == {frozenset(pair) for pair in (("mrpc", "stsb"), ("cola", "stsb"), ("sst2", reviews))}
    assert found["cola"]["stsb"] == {"train": 1, "dev": 0}
    of_dev, of_train = found["sst2"][reviews]["dev"], found["stsb"]["mrpc"]["train"]
    says("experiments/README.md", f"hold {of_dev} of SST-2's 872 dev sentences")
    says("experiments/README.md", f"without the {of_train} rows that hold a sentence of MRPC")
