"""The report of speed: tables in Markdown, their figures in JSON, pictures of curves and growth."""

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hadamard_adapter.analysis.pace import Key, Pace, gains_of, read_paces
from hadamard_adapter.analysis.pictures import GROWN, curves_picture, growth_picture
from hadamard_adapter.analysis.speed import (
    SHARE,
    Clock,
    Footprint,
    GrowthLine,
    Pairing,
    SpeedGroup,
    SpeedRow,
    clocks_of,
    read_footprints,
    read_growth,
    read_speed_groups,
    slope,
)
from hadamard_adapter.analysis.texts import table_head, table_line
from hadamard_adapter.bench.search import GOOD_ENOUGH
from hadamard_adapter.bench.speed.variants import REFERENCES, VARIANTS

__all__ = ["speed_files", "speed_markdown"]

CLOCKS: dict[Clock, str] = {
    "paced": "paced seconds",
    "wall": "seconds on the wall",
    "processor": "seconds of processor time",
}
DISTURBED = 0.5
"""Load beyond this process's threads from which on a run counts as disturbed."""

Record = Mapping[str, Any]


def speed_files(records: Sequence[Record], problems: Sequence[str] = ()) -> dict[str, str]:
    """Name -> content of the files of the report.

    Args:
        records: of runs of speed.
        problems: a line for every file that does not count.
    """
    pictures: dict[str, str] = {}
    clocks = clocks_of(records)
    for group in read_speed_groups(records, clocks[0]):
        pictures[f"curves-{_word(group.model)}-{_word(group.task)}.svg"] = curves_picture(group)
    for axis, lines in itertools.groupby(read_growth(records), key=lambda line: (line.model, line.axis)):
        pictures[f"growth-{_word(axis[0])}-{axis[1]}.svg"] = growth_picture(list(lines))
    figures = {
        **{clock: [dataclasses.asdict(g) for g in read_speed_groups(records, clock)] for clock in clocks},
        "gains": [dataclasses.asdict(gain) for gain in gains_of(read_paces(records))],
        "memory": [dataclasses.asdict(found) for found in read_footprints(records)],
        "growth": [dataclasses.asdict(line) for line in read_growth(records)],
    }
    text = json.dumps(figures, indent=2, ensure_ascii=False) + "\n"
    return {"speed.md": speed_markdown(records, list(pictures), problems), "speed.json": text, **pictures}


def speed_markdown(
    records: Sequence[Record], pictures: Sequence[str] = (), problems: Sequence[str] = ()
) -> str:
    """The report in Markdown.

    Args:
        records: of runs of speed.
        pictures: names of files that stand beside it.
        problems: a line for every file that does not count.
    """
    lines = ["# Speed", "", *_machine(records)]
    for picture in pictures:
        lines += [f"![{picture}]({picture})", ""]
    for clock in clocks_of(records):
        for group in read_speed_groups(records, clock):
            title = f"{group.model}, {group.task}: {group.metric}, {CLOCKS[clock]}"
            lines += [f"## {title}", "", *_table(group), ""]
    paces = read_paces(records)
    lines += _without_pace(records)
    lines += [*_gains(paces), *_paces(paces)]
    lines += [*_memory(read_footprints(records)), *_growth(read_growth(records))]
    lines += ["## How to read it", "", *(f"- {note}" for note in _NOTES), ""]
    if problems:
        lines += ["## Files that do not count", "", *(f"- {problem}" for problem in problems), ""]
    return "\n".join(lines)


_PERCENT = f"{100 * SHARE:g} %"
_NOTES = (
    "Seconds are of training alone: batches, forward, backward, optimizer. Loading, tokenising, caches of "
    "frozen layers, evaluation and checkpoints are held apart; `prepare` and `caches` give the first three "
    "(`prepare`: of the short runs, on their rows, where there is a pace).",
    "Paced seconds: the steps of the run that made the curve, each as long as the median of short runs of "
    "the same variant and task, which took turns in rounds with nothing else on the machine; so the curve "
    "itself may have been made beside other work.",
    f"s to {_PERCENT} of LoRA: training time of the first point whose score is at least {_PERCENT} of LoRA's "
    "own final score on the same seed (LoRA on the plain Trainer); median over seeds. Where more than half "
    "of the seeds do not get there it is empty; `at LoRA's end` is the median score when LoRA is done, "
    "`final` the mean at a variant's own end.",
    f"× a reference: the variant's time over the reference's own, both to {_PERCENT} of the reference's "
    "final score, the time of caches counted as training; median of ratios paired by seed, smallest and "
    "largest in brackets, n seeds. `without caches` leaves that time out, as the column of seconds does.",
    "All variants have the same rows, batch size, warm-up and evaluation steps, each its own learning rate "
    "and epochs, chosen on held-out rows by the same rule: of the epochs searched, the fewest that come "
    f"within {GOOD_ENOUGH:.0%} of the best score. The searches had bfloat16 and no dropout in the "
    "backbone, for all variants. On the plain Trainer the model's dropout stays and the "
    "rate falls linearly, as its users have it; our path leaves dropout out of the backbone and scores the "
    "mean of the weights at a constant rate, as `tune` does (last step: neither mean nor constant rate).",
    "Each gain, on and off: steps of the last stage (for the head's input: of the first) of two variants "
    "that differ in what the row names; off / on: median of ratios paired by round, smallest and largest.",
    "Memory: the kernel's high-water mark of a fresh process after three training steps, less what it "
    "held with the model loaded and wrapped; all with the same rows and tokens, none of them padding. Saved "
    "tensors: what autograd keeps from one forward pass. Result: the files that hold the trained tensors.",
)


def _machine(records: Sequence[Record]) -> list[str]:
    """On what it ran, and how many runs something else disturbed, of those whose time counts."""
    is_paced = bool(read_paces(records))
    counts = ("pace", "growth") if is_paced else ("curve", "growth")
    done = [r for r in records if r["status"] == "done" and r["run"]["purpose"] in counts]
    found = {(r["machine"]["processor"], r["machine"]["device"], r["machine"]["threads"]) for r in done}
    lines = [f"{cpu}, {device}, {n} threads. " for cpu, device, n in sorted(found)]
    disturbed = [
        r
        for r in done
        if max(r["machine"]["load_average"], default=0.0) > r["machine"]["threads"] + DISTURBED
    ]
    if disturbed:
        lines.append(f"{len(disturbed)} of {len(done)} runs whose time counts had other work beside them: ")
        rounds = sorted({f"{r['run']['task']['name']}, round {r['run']['value']}" for r in disturbed})
        lines.append(f"{'; '.join(rounds)}." if is_paced else "see processor time.")
    return [*lines, ""]


def _table(group: SpeedGroup) -> list[str]:
    there = {row.variant for row in group.rows}
    names = {ref: VARIANTS[ref].title for ref in REFERENCES if ref in there}
    ratios = [f"× {title}" for title in names.values()]
    heads = ["variant", "lr", "epochs", "s an epoch", f"s to {_PERCENT} of LoRA", "× LoRA without caches"]
    heads += [*ratios, "final", "at LoRA's end", "prepare s", "caches s"]
    lines = table_head(heads)
    for row in group.rows:
        lora = row.pairings.get("lora")
        cells = [row.title + (f" [{row.n_failed} failed]" if row.n_failed else "")]
        cells += [", ".join(f"{rate:g}" for rate in row.lr), ", ".join(f"{n:g}" for n in row.epochs)]
        cells += [_number(row.epoch_seconds, 2)]
        cells += [_number(None if lora is None else lora.seconds, 1)]
        cells += [_ratio(lora), *(_ratio(row.cached_pairings.get(ref)) for ref in names), _final(row)]
        cells += [_number(None if lora is None else lora.score_then, 4)]
        cells += [_number(row.prepare_seconds, 1), _number(row.cache_seconds, 1)]
        lines.append(table_line(cells))
    return lines


def _without_pace(records: Sequence[Record]) -> list[str]:
    """Final scores of curves whose pace was not measured, so that none goes untold."""
    if "paced" not in clocks_of(records):
        return []
    shown = {(g.model, g.task, row.variant) for g in read_speed_groups(records, "paced") for row in g.rows}
    rows = [
        table_line([group.model, group.task, row.title, _final(row)])
        for group in read_speed_groups(records)
        for row in group.rows
        if (group.model, group.task, row.variant) not in shown
    ]
    head = ["## Curves without a pace", "", *table_head(["model", "task", "variant", "final"])]
    return [*head, *rows, ""] if rows else []


def _paces(found: Mapping[Key, Pace]) -> list[str]:
    """What paced seconds are made of."""
    if not found:
        return []
    heads = ["model", "task", "variant", "ms a step", "ms of caches a row", "rounds", "largest / smallest"]
    lines = ["## Paces", "", *table_head(heads)]
    for (model, task, variant), pace in sorted(found.items()):
        steps = ", ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in pace.step_seconds.items())
        cells = [model, task, VARIANTS[variant].title, steps, f"{1e3 * pace.cache_seconds:.2f}"]
        lines.append(table_line([*cells, str(pace.n), f"{pace.spread:.2f}"]))
    return [*lines, ""]


def _gains(paces: Mapping[Key, Pace]) -> list[str]:
    """Each gain on and off."""
    found = gains_of(paces)
    if not found:
        return []
    heads = ["model", "task", "gain", "variant", "ms a step", "without", "ms a step", "off / on"]
    lines = ["## Each gain, on and off", "", *table_head(heads)]
    for one in found:
        gain, ratio = one.gain, f"{one.ratio:.2f} [{one.low:.2f}, {one.high:.2f}], n {one.n}"
        on, off = (f"{1e3 * seconds:.1f}" for seconds in (one.on, one.off))
        cells = [one.model, one.task, gain.title, VARIANTS[gain.on].title, on]
        lines.append(table_line([*cells, VARIANTS[gain.off].title, off, ratio]))
    return [*lines, ""]


def _memory(found: Sequence[Footprint]) -> list[str]:
    if not found:
        return []
    lines: list[str] = []
    for (model, shape), group in itertools.groupby(found, key=lambda one: (one.model, one.shape)):
        members = list(group)
        lora = next((one.peak_bytes for one in members if one.variant == "lora"), None)
        lines += [f"## Memory of a step: {model}, {shape[0]}x{shape[1]} tokens", ""]
        lines += table_head(
            [
                "variant",
                "beyond the loaded model, MB",
                "× LoRA",
                "saved tensors, MB",
                "result, kB",
                "processor",
            ]
        )
        for one in members:
            ratio = one.peak_bytes / lora if one.peak_bytes is not None and lora else None
            peak = None if one.peak_bytes is None else one.peak_bytes / 1e6
            cells = [one.title, _number(peak, 0), _number(ratio, 2)]
            cells += [_number(one.saved_bytes / 1e6, 1), f"{one.result_bytes / 1e3:,.0f}", one.processor]
            lines.append(table_line(cells))
        lines.append("")
    return lines


def _growth(found: Sequence[GrowthLine]) -> list[str]:
    if not found:
        return []
    lines = ["## Growth of an epoch's time", ""]
    lines += table_head(["model", "over", "variant", "value: seconds", "caches", "exponent"])
    for line in found:
        points = ", ".join(f"{value:g}: {seconds:.2f}" for value, seconds in line.points)
        caches = (
            ", ".join(f"{seconds:.2f}" for seconds in line.cache_seconds) if any(line.cache_seconds) else ""
        )
        cells = [line.model, GROWN[line.axis], line.title, points, caches, _number(slope(line.points), 2)]
        lines.append(table_line(cells))
    note = (
        "Exponent p of seconds ~ value^p; 1 is a straight line through zero. Caches, filled once a run for "
    )
    return [*lines, "", note + "train and dev rows, are not in the seconds.", ""]


def _ratio(pairing: Pairing | None) -> str:
    if pairing is None:
        return ""
    if pairing.ratio is None:
        return f"not reached ({pairing.n_reached} of {pairing.n})"
    high = "never" if pairing.high is None else f"{pairing.high:.2f}"
    return f"{pairing.ratio:.2f} [{pairing.low:.2f}, {high}], n {pairing.n}"


def _final(row: SpeedRow) -> str:
    return "" if row.final is None else f"{row.final:.4f} (n {len(row.curves)})"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _word(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-")
