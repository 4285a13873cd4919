"""Fills the README's tables from the committed result files.

Command:  python scripts/readme.py
          python scripts/readme.py --check   (fails if the README does not say what the files say)
"""

import json
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "results"
ROWS = {
    "majority": "majority class",
    "tfidf": "TF-IDF (1,2-grams) + logistic regression",
    "head": "frozen model, tuned head (stage 1)",
    "hadamard": "**Hadamard adapter** (stage 2)",
    "merged": "Hadamard, merged into the model",
}
TASKS = {"cola": "CoLA (MCC)", "stsb": "STS-B (Pearson)", "mrpc": "MRPC (accuracy)"}
SPEED_MODEL = "all-MiniLM-L6-v2"
NAMES = {"stsb": "STS-B", "cola": "CoLA", "sst2": "SST-2"}
SPEED = {
    "tune": "**hadamard tune**",
    "tune-upper": "tune, upper four of six layers",
    "tune-last-step": "tune without the mean of weights",
    "lora": "PEFT LoRA on the Trainer",
    "lora-grouped": "LoRA, group_by_length, bf16",
    "lora-ours-bf16": "LoRA on tune's path, bf16",
    "lora-ours-last-step": "LoRA on tune's path, no mean",
    "full": "full fine-tuning on the Trainer",
    "full-grouped": "full, group_by_length, bf16",
    "ia3-grouped": "IA3, group_by_length, bf16",
    "ln-tuning-grouped": "LN-tuning, group_by_length, bf16",
}
METHODS = {
    "paper": "Hadamard, paper",
    "wide": "Hadamard, wide",
    "lora": "LoRA r 8 (q, v)",
    "full": "full fine-tuning",
}


def quickstart() -> str:
    """The table of the quickstart's last committed run."""
    path = RESULTS / "quickstart.json"
    if not path.exists():
        return "Not measured yet: `bash quickstart.sh` prints this table."
    found = json.loads(path.read_text())
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
        "`bash quickstart.sh`, two cores, no GPU; [results/quickstart.json](results/quickstart.json).",
    ]
    return "\n".join(lines)


def compare() -> str:
    """Mean ± sd over seeds of each method and task; a cell without runs stays empty."""
    cells = runs()
    if not cells:
        return "Not measured yet: `python benchmarks/compare.py` makes the runs."
    lines = [
        "| MiniLM-L6, GLUE dev | parameters | " + " | ".join(TASKS.values()) + " |",
        "|---|---|" + "---|" * len(TASKS),
    ]
    for method, title in METHODS.items():
        entries = [entry for task in TASKS for entry in cells.get((task, method), [])]
        if not entries:
            continue
        parameters = f"{entries[0]['adapter_parameters']:,} + head {entries[0]['head_parameters']:,}"
        lines.append(
            f"| {title} | {parameters} | "
            + " | ".join(cell(cells.get((t, method), [])) for t in TASKS)
            + " |"
        )
    lines += [
        "",
        "Mean ± sd (n seeds); every method's best epoch is chosen on dev; one JSON a run, with its settings,",
    ]
    lines += ["in [results/compare](results/compare), made by `python benchmarks/compare.py`."]
    return "\n".join(lines)


def speed() -> str:
    """Time to 99 % of LoRA's own final score as a share of LoRA's, final scores, and memory."""
    path = RESULTS / "speed" / "speed.json"
    if not path.exists():
        return "Not measured yet: `hadamard bench speed` makes the runs."
    found = json.loads(path.read_text())
    own = [group for group in found["paced"] if group["model"] == SPEED_MODEL]
    groups = {group["task"].split(",")[0].split(" ")[0]: group for group in own}
    rows = {task: {row["variant"]: row for row in group["rows"]} for task, group in groups.items()}
    memory = {entry["variant"]: entry for entry in found["memory"] if entry["model"] == SPEED_MODEL}
    tasks = [task for task in ("stsb", "cola", "sst2") if task in rows]
    heads = [f"{NAMES[task]}: time" for task in tasks] + [f"{NAMES[task]}: score" for task in tasks]
    lines = [
        "| MiniLM-L6, one core | " + " | ".join(heads) + " | memory |",
        "|---|" + "---|" * (len(heads) + 1),
    ]
    for variant, title in SPEED.items():
        if not any(variant in of_task for of_task in rows.values()):
            continue
        cells = [share(rows[task].get(variant)) for task in tasks]
        cells += [final(rows[task].get(variant)) for task in tasks]
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {megabytes(memory.get(variant))} |")
    lines += [
        "",
        "time: of training, caches included, to 99 % of plain LoRA's own final score, over LoRA's time to it",
        "(median over seeds); score: dev at the last epoch, mean; in brackets the number of seeds; memory: a",
        "step of 32 x 128 tokens beyond the loaded model. `hadamard bench speed`;",
        "[results/speed/speed.md](results/speed/speed.md).",
    ]
    return "\n".join(lines)


def share(row: dict | None) -> str:
    """A variant's time over LoRA's."""
    pairing = None if row is None else row["cached_pairings"]["lora"]
    if pairing is None or not pairing["n"]:
        return ""
    if pairing["ratio"] is None:
        return f"not reached ({pairing['n_reached']} of {pairing['n']})"
    return f"{pairing['ratio']:.2f} ({pairing['n']})"


def final(row: dict | None) -> str:
    """A variant's mean score."""
    return "" if row is None or row["final"] is None else f"{row['final']:.3f} ({len(row['curves'])})"


def megabytes(entry: dict | None) -> str:
    """Peak beyond the loaded model."""
    return "" if entry is None or entry["peak_bytes"] is None else f"{entry['peak_bytes'] / 1e6:.0f} MB"


def cell(entries: list[dict]) -> str:
    """Mean ± sd (n)."""
    scores = [entry["score"] for entry in entries]
    if not scores:
        return ""
    spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.3f}{spread} ({len(scores)})"


def runs() -> dict[tuple[str, str], list[dict]]:
    """Task and method -> the runs without a tag, of the main model."""
    found: dict[tuple[str, str], list[dict]] = {}
    for path in sorted((RESULTS / "compare").glob("all-MiniLM-L6-v2-*.json")):
        entry = json.loads(path.read_text())
        if not entry["tag"]:
            found.setdefault((entry["task"], entry["method"]), []).append(entry)
    return found


def filled(text: str) -> str:
    """The README with its result blocks made anew."""
    for name, make in (("quickstart", quickstart), ("compare", compare), ("speed", speed)):
        block = f"<!-- results: {name} -->\n{make()}\n<!-- end -->"
        text = re.sub(
            rf"<!-- results: {name} -->\n.*?<!-- end -->", lambda _, b=block: b, text, flags=re.DOTALL
        )
    return text


if __name__ == "__main__":
    before = README.read_text(encoding="utf8")
    after = filled(before)
    if "--check" in sys.argv:
        sys.exit("README.md differs from results/; run: python scripts/readme.py" if before != after else 0)
    README.write_text(after, encoding="utf8")
