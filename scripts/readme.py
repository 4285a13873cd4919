"""Fills the README's tables from the committed result files.

Command:  python scripts/readme.py
          python scripts/readme.py --check   (fails if the README does not say what the files say)
"""

import dataclasses
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

from hadamard_adapter.analysis.overview import Overview, overviews
from hadamard_adapter.analysis.table import Group, Row, read_groups
from hadamard_adapter.analysis.texts import remarks
from hadamard_adapter.bench.results import Results
from hadamard_adapter.bench.speed.variants import VARIANTS

ROOT = Path(__file__).resolve().parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "results"
ROWS = {
    "majority": "majority class",
    "tfidf": "TF-IDF (1,2-grams) + logistic regression",
    "head": "frozen model, tuned head (stage 1)",
    "hadamard": "**Hadamard adapter** (stage 2)",
    "merged": "Hadamard, merged into the model",
}
SPEC, EXPERIMENT = "experiments/minilm.toml", "MiniLM-L6, five GLUE tasks"
OTHERS = "experiments/minilm-others.toml"
FLOAT32, IN_FLOAT32 = "experiments/minilm-rte-float32.toml", "MiniLM-L6, RTE in float32"
OURS = ("hadamard", "hadamard-wide")
SPEED_MODEL, SPEED_TASKS = "all-MiniLM-L6-v2", ("stsb", "cola", "sst2 (10,000 rows)")
NAMES = {"stsb": "STS-B", "cola": "CoLA", "mrpc": "MRPC", "rte": "RTE", "sst2": "SST-2"}
AIM_MODELS = {"all-MiniLM-L6-v2": "MiniLM-L6", "all-mpnet-base-v2": "MPNet-base, 1,000 rows"}
METRIC_NAMES = {"mcc": "MCC", "pearson": "Pearson"}
SPEED = (
    "tune",
    "tune-upper",
    "tune-last-step",
    "tune-dropout",
    "lora",
    "lora-grouped",
    "lora-ours-bf16",
    "lora-ours-last-step",
    "full",
    "full-grouped",
    "ia3-grouped",
    "ln-tuning-grouped",
)


def quickstart() -> str:
    """The table of the quickstart's last committed run."""
    path = RESULTS / "quickstart.json"
    if not path.exists():
        return "Not measured yet: `bash quickstart.sh` prints this table."
    found = json.loads(path.read_text())
    gap = found["hadamard"]["minus_tfidf"]
    seeds = json.loads((RESULTS / "quickstart_seeds.json").read_text())["test_accuracy"]
    lines = [
        "| movie reviews, MiniLM-L6 | test accuracy | adapter | head | bytes | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for key, title in ROWS.items():
        row = found[key]
        lines.append(
            f"| {title} | {row['score']:.3f} | {row['adapter_parameters']:,} | {row['head_parameters']:,} | "
            f"{row['bytes']:,} | {row['seconds']:.0f} |"
        )
    lines += [
        "",
        f"Accuracy over TF-IDF, by example: {100 * gap['difference']:.1f} points "
        f"(95 %: {100 * gap['low']:.1f} to {100 * gap['high']:.1f}). "
        "The adapter is wide, on the upper four of six layers.",
        f"Of its bytes {found['hadamard']['head_bytes']:,} are the head's; `--head linear` saves most.",
        f"Seeds 0, 1, 2: {', '.join(f'{score:.3f}' for score in seeds['--shuffle-groups'].values())} "
        "([quickstart_seeds.json](results/quickstart_seeds.json)).",
        "`bash quickstart.sh`, two cores of an AMD EPYC with AVX2, in float32, no GPU;",
        "[results/quickstart.json](results/quickstart.json).",
    ]
    return "\n".join(lines)


def compare() -> str:
    """Mean ± sd over seeds of each method and task; a cell without runs stays empty."""
    known = read_groups(Results(RESULTS / "bench"))
    spare = {head(group): group for group in known if IN_FLOAT32 in group.specs}
    groups = [completed(group, spare.get(head(group))) for group in known if EXPERIMENT in group.specs]
    in_float32 = {id(row) for group in spare.values() for row in group.rows}
    found = next((one for one in overviews(groups) if EXPERIMENT in one.title), None)
    if found is None:
        return f"Not measured yet: `hadamard bench {SPEC}` makes the runs."
    heads = [head(group) for group in groups]
    lines = [
        "| MiniLM-L6, GLUE dev | trained, % | " + " | ".join(heads) + " | average | % of full |",
        "|---|---|" + "---|" * (len(heads) + 2),
    ]
    for one in found.rows:
        first = one.first
        if first.share_percent is None:
            continue
        title = f"**{first.title}**" if first.method in OURS else first.title
        title += remarks(one.n_failed, one.n_collapsed)
        marks = [" †" if id(row) in in_float32 else "" for row in one.rows]
        cells = [cell(row) + mark for row, mark in zip(one.rows, marks, strict=True)]
        cells.insert(0, share_text(first.share_percent))
        cells += ["" if one.average is None else f"{one.average:.3f}{max(marks)}"]
        cells += ["" if one.ratio_percent is None else f"{one.ratio_percent:.1f}{max(marks)}"]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Mean ± sd of dev (n seeds); rates and epochs chosen on rows held out of train, dev read once a run.",
        "% of full: of its average. collapsed: one class for nearly all rows; empty: not run; †: RTE in",
        "float32 with rates searched on 1,500 rows, all else in bfloat16. All train the same head,",
        f"{head_words(found)}, which is not counted. Every seed, tests, rates:",
        f"[report](results/bench/report.md), made by `hadamard bench` ({SPEC}, {OTHERS},",
        f"{FLOAT32}) and `hadamard report`.",
    ]
    return "\n".join(lines)


def speed() -> str:
    """Time to 99 % of LoRA's own final score as a share of LoRA's, final scores, and memory."""
    path = RESULTS / "speed" / "speed.json"
    if not path.exists():
        return "Not measured yet: `hadamard bench speed` makes the runs."
    found = json.loads(path.read_text())
    own = [group for group in found["curves"] if group["model"] == SPEED_MODEL]
    rows = {  # of a variant with several settings that of most seeds
        group["task"].split(" ")[0]: {
            row["variant"]: row
            for row in sorted(group["rows"], key=lambda row: (len(row["curves"]), row["epochs"]))
        }
        for group in own
        if group["task"] in SPEED_TASKS
    }
    memory = {entry["variant"]: entry for entry in found["memory"] if entry["model"] == SPEED_MODEL}
    elsewhere = [
        VARIANTS[name].title.split(",")[0]
        for name in SPEED
        if "AMD" not in memory.get(name, {}).get("processor", "AMD")
    ]
    note = f" (memory of {' and '.join(elsewhere)}: another processor)" if elsewhere else ""
    tasks = [name for name in (task.split(" ")[0] for task in SPEED_TASKS) if name in rows]
    heads = [f"{NAMES[task]}: time" for task in tasks] + [f"{NAMES[task]}: score" for task in tasks]
    lines = [
        "| MiniLM-L6, one core | " + " | ".join(heads) + " | memory |",
        "|---|" + "---|" * (len(heads) + 1),
    ]
    for variant in SPEED:
        if not any(variant in of_task for of_task in rows.values()):
            continue
        cells = [share(rows[task].get(variant)) for task in tasks]
        cells += [final(rows[task].get(variant)) for task in tasks]
        title = f"**{VARIANTS[variant].title}**" if variant == "tune" else VARIANTS[variant].title
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {megabytes(memory.get(variant))} |")
    lines += [
        "",
        "time: processor time of training to 99 % of the final score of LoRA on the Trainer, caches",
        "included, as a share of LoRA's; median of (n) seeds. 2 of 3: two seeds get there; not reached (1 of",
        "3): only one does, so there is no median; kept 1: of those that get there one is still there at its",
        "end; empty: not measured. score: mean at the last epoch, trained on all of train and scored on at",
        "most 1,000 rows of dev, so not to be held against the table above. memory: a step of 32 x 128",
        "tokens beyond the loaded model. The Trainer's schedule: a rate that falls linearly, the last step's",
        "weights; `tune` has a constant rate and scores the mean of the last steps' weights. Steps go from",
        "long rows to short ones, as the Trainer groups them (`--no-shuffle-groups`).",
        f"One core of an AMD EPYC with AVX-512 BF16{note}.",
        "`hadamard bench speed`; [results/speed/speed.md](results/speed/speed.md).",
    ]
    return "\n".join(lines)


def aims() -> str:
    """On how many tasks each aim of time is met, and the aims of memory."""
    path = RESULTS / "speed" / "speed.json"
    if not path.exists():
        return "Not measured yet: `hadamard bench speed` makes the runs."
    found = json.loads(path.read_text())
    cells: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for aim in found["aims"]:
        own, other = (VARIANTS[aim[key]].title for key in ("variant", "reference"))
        cells[f"{own}: {aim['words']}", other][aim["model"]] = aim_cell(aim)
    for one in found["aims_of_memory"]:
        rows, tokens = one["shape"]
        words = f"hadamard tune: half of the memory of a step of {rows} x {tokens} tokens"
        cells[words, VARIANTS["lora"].title][one["model"]] = f"{one['ratio']:.2f}"
    lines = [
        f"| aim, on two tasks of three | against | {' | '.join(AIM_MODELS.values())} |",
        "|---|---|" + "---|" * len(AIM_MODELS),
    ]
    for (what, other), by_model in cells.items():
        lines.append(f"| {what} | {other} | {' | '.join(by_model.get(m, 'not run') for m in AIM_MODELS)} |")
    lines += [
        "",
        "else: not met. n 1: the reference learned nothing with other seeds, which meets no aim. 2 of 3,",
        "kept 1: two seeds of three get there, and one of them is still there at its end.",
    ]
    return "\n".join(lines)


def aim_cell(aim: dict) -> str:
    """The tasks where the aim is met, and the others, with the ratios that there are."""
    by_met: dict[bool, list[str]] = {True: [], False: []}
    most = max((pairing["n"] for pairing in aim["ratios"].values() if pairing is not None), default=0)
    for task, is_met in aim["met"].items():
        pairing = aim["ratios"][task]
        if pairing is None:
            found = " not measured"
        elif pairing["ratio"] is None:
            found = " not reached"
        else:
            few = ([f"n {pairing['n']}"] if pairing["n"] < most else []) + how_often(pairing)
            found = f" {pairing['ratio']:.2f}" + (f" ({', '.join(few)})" if few else "")
        by_met[is_met].append(NAMES[task.split(" ")[0]] + found)
    groups = [", ".join(names) for names in by_met.values() if names]
    return f"{len(by_met[True])} of {len(aim['met'])}: {'; else '.join(groups)}"


def completed(group: Group, spare: Group | None) -> Group:
    """The table, in place of methods that were not run those of the same task's other table that were."""
    ran = {row.method: row for row in spare.rows if row.summary is not None} if spare is not None else {}
    rows = [ran.get(row.method, row) if row.summary is None else row for row in group.rows]
    return dataclasses.replace(group, rows=tuple(rows))


def head_words(found: Overview) -> str:
    """Size of the head that all methods train."""
    first = next(one.first for one in found.rows if one.first.n_head and one.first.method in OURS)
    base = first.n_trained / first.share_percent * 100
    return f"{first.n_head:,} numbers, {100 * first.n_head / base:.2g} %"


def share(row: dict | None) -> str:
    """A variant's time over LoRA's."""
    pairing = None if row is None else row["cached_pairings"]["lora"]
    if pairing is None or not pairing["n"]:
        return ""
    if pairing["ratio"] is None:
        return f"not reached ({pairing['n_reached']} of {pairing['n']})"
    count = [str(pairing["n"])] if pairing["n_reached"] == pairing["n"] else []
    return f"{pairing['ratio']:.2f} ({', '.join(count + how_often(pairing))})"


def how_often(pairing: dict) -> list[str]:
    """Of how many seeds a score is reached, where not of all, and kept, where not of all these."""
    n, n_reached, n_kept = (pairing[name] for name in ("n", "n_reached", "n_kept"))
    reached = [f"{n_reached} of {n}"] if n_reached < n else []
    return reached + ([f"kept {n_kept}"] if n_kept < n_reached else [])


def final(row: dict | None) -> str:
    """A variant's mean score."""
    return "" if row is None or row["final"] is None else f"{row['final']:.3f} ({len(row['curves'])})"


def megabytes(entry: dict | None) -> str:
    """Peak beyond the loaded model."""
    return "" if entry is None or entry["peak_bytes"] is None else f"{entry['peak_bytes'] / 1e6:.0f} MB"


def head(group: Group) -> str:
    """A task's name, the size of its part, and its metric."""
    found = re.match(r"(\w+)(?: \(([\d,]+ rows)\))?", group.task)
    assert found is not None, group.task
    name = NAMES[found[1]] + (f", {found[2]}" if found[2] else "")
    return f"{name} ({METRIC_NAMES.get(group.metric, group.metric)})"


def cell(row: Row | None) -> str:
    """Mean ± sd (n)."""
    if row is None or row.summary is None:
        return ""
    spread = "" if row.summary.sd is None else f" ± {row.summary.sd:.3f}"
    return f"{row.summary.mean:.3f}{spread} ({row.summary.n})"


def share_text(percent: float) -> str:
    """Two digits, three for most of a model (all of it but the head, which is not counted)."""
    return f"{percent:.3g}" if percent > 1 else f"{percent:.2g}"


def filled(text: str) -> str:
    """The README with its result blocks made anew."""
    for name, make in BLOCKS.items():
        block = f"<!-- results: {name} -->\n{make()}\n<!-- end -->"
        text = re.sub(
            rf"<!-- results: {name} -->\n.*?<!-- end -->", lambda _, b=block: b, text, flags=re.DOTALL
        )
    return text


BLOCKS = {"quickstart": quickstart, "compare": compare, "speed": speed, "aims": aims}

if __name__ == "__main__":
    before = README.read_text(encoding="utf8")
    after = filled(before)
    if "--check" in sys.argv:
        sys.exit("README.md differs from results/; run: python scripts/readme.py" if before != after else 0)
    README.write_text(after, encoding="utf8")
