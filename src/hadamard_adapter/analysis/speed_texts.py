"""The report of speed: tables in Markdown, their figures in JSON, pictures of curves and growth."""

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hadamard_adapter.analysis.aims import AimOfMemory, AimOfTime, read_aims, read_aims_of_memory
from hadamard_adapter.analysis.gains import GainRow, gains_of, seconds_field
from hadamard_adapter.analysis.pictures import GROWN, curves_picture, growth_picture
from hadamard_adapter.analysis.speed import (
    SHARE,
    Footprint,
    GrowthLine,
    Pairing,
    SpeedGroup,
    SpeedRow,
    read_footprints,
    read_growth,
    read_speed_groups,
    slope,
    twins,
)
from hadamard_adapter.analysis.texts import table_head, table_line
from hadamard_adapter.analysis.unmeasured import Unmeasured, read_unmeasured
from hadamard_adapter.bench.search import GOOD_ENOUGH
from hadamard_adapter.bench.spec import ORDER_TITLES, order_of
from hadamard_adapter.bench.speed.run import SpeedRun
from hadamard_adapter.bench.speed.spec import Purpose
from hadamard_adapter.bench.speed.variants import REFERENCES, VARIANTS

__all__ = ["speed_files"]

DISTURBED = 0.5
"""Load beyond this process's threads from which on a run counts as disturbed."""
Record = Mapping[str, Any]


def speed_files(
    records: Sequence[Record], asked: Sequence[SpeedRun] = (), problems: Sequence[str] = ()
) -> dict[str, str]:
    """Name -> content of the files of the report.

    Args:
        records: of runs of speed.
        asked: runs that specs ask for; those without a record are told.
        problems: a line for every file that does not count.
    """
    figures, pictures = _figures(records, asked), dict[str, str]()
    for group in figures.curves:
        pictures[f"curves-{_word(group.model)}-{_word(group.task)}.svg"] = curves_picture(group)
    for axis, lines in itertools.groupby(figures.growth, key=lambda line: (line.model, line.axis)):
        pictures[f"growth-{_word(axis[0])}-{axis[1]}.svg"] = growth_picture(list(lines))
    text = json.dumps(dataclasses.asdict(figures), indent=2, ensure_ascii=False) + "\n"
    told = [*problems, *twins(records)]
    return {"speed.md": _markdown(records, figures, list(pictures), told), "speed.json": text, **pictures}


@dataclass(frozen=True)
class _Figures:
    """What the tables and pictures show, as speed.json has it."""

    aims: list[AimOfTime]
    aims_of_memory: list[AimOfMemory]
    curves: list[SpeedGroup]
    gains: list[GainRow]
    memory: list[Footprint]
    growth: list[GrowthLine]
    unmeasured: list[Unmeasured]


def _figures(records: Sequence[Record], asked: Sequence[SpeedRun]) -> _Figures:
    groups, footprints = read_speed_groups(records), read_footprints(records)
    aims = (read_aims(groups), read_aims_of_memory(footprints))
    return _Figures(
        *aims, groups, gains_of(records), footprints, read_growth(records), read_unmeasured(asked, records)
    )


def _markdown(
    records: Sequence[Record], figures: _Figures, pictures: Sequence[str], problems: Sequence[str]
) -> str:
    lines = ["# Speed", "", *_machine(records), *_aims(figures)]
    lines += ["## How to read it", "", *(f"- {note}" for note in _notes(records)), ""]
    for picture in pictures:
        lines += [f"![{picture}]({picture})", ""]
    for group in figures.curves:
        lines += [f"## {group.model}, {group.task}: {group.metric}", "", *_table(group), ""]
    lines += [*_gains(figures.gains), *_memory(figures.memory), *_growth(figures.growth)]
    lines += _unmeasured(figures.unmeasured)
    if problems:
        lines += ["## Files that do not count", "", *(f"- {problem}" for problem in problems), ""]
    return "\n".join(lines)


_PERCENT = f"{100 * SHARE:g} %"
_SEARCHED = (
    ", chosen on held-out rows by the same rule: of the epochs searched, the fewest that come within "
    f"{GOOD_ENOUGH:.0%} of the best score"
)
_NOTES = (
    "Seconds are of training alone: batches, forward, backward, optimizer. Loading, tokenising, caches of "
    "frozen layers, evaluation and checkpoints are held apart; `prepare` and `caches` give the "
    "first three. On one thread of a processor they are the process's own processor time, in which other "
    "work on the machine hardly counts; with more threads, and on a GPU, they are the wall's.",
    f"s to {_PERCENT} of LoRA's score, without caches: training time of the first point whose score is at "
    f"least {_PERCENT} of LoRA's own final score on the same seed (LoRA on the plain Trainer); median over "
    "seeds. Where half of the seeds or more do not get there it is empty; `at LoRA's end` is the "
    "median score when LoRA is done, `final` the mean at a variant's own end.",
    "not reached (k of n): with half of the n seeds or more no point is at the target, with k there is one. "
    "[0.1, never]: with one seed or more there is none. kept k: a first point at the target need not be the "
    "last; only k seeds end at it or above. n is less than a variant's seeds where the reference ended at a "
    "score of 0 or below with the others; an aim counts no such task.",
    f"× a reference: the variant's time over the reference's own, both to {_PERCENT} of the reference's "
    "final score, the time of caches counted as training; median of ratios paired by seed, smallest and "
    "largest in brackets, n seeds. `without caches` leaves that time out, as the column of seconds does; `on "
    "the wall` has the same in time on the wall, which other work on the machine makes longer.",
    "All variants have the same rows, batch size, warm-up and evaluation steps{points}, each its own "
    "learning rate and epochs{searched}. On the plain Trainer the model's dropout stays and the "
    "rate falls linearly, as its users have it; tune's path leaves dropout out of the backbone, has rows of "
    "like length together{order} and scores the mean of the weights at a constant rate (the Trainer's "
    "schedule: a rate that falls linearly, and the last step's weights).",
    "Each gain, on and off: steps of the last stage (for the head's input: of the first) of two variants "
    "that differ in what the row names; off / on: median of ratios, smallest and largest. By round: the "
    "first steps of whole tasks, in turn, one after the other. By seed: whole runs, which may be days apart.",
    "Memory: the kernel's high-water mark of a fresh process after three training steps, less what it "
    "held with the model loaded and wrapped; all with the same rows and tokens, none of them padding. Saved "
    "tensors: what autograd keeps from one forward pass. Result: the files that hold the trained tensors.",
)


def _notes(records: Sequence[Record]) -> list[str]:
    """What the figures are, as far as it holds for these records."""
    sources = {r["run"].get("rate_from") for r in records if r["run"]["purpose"] == "curve"}
    own = f" (rates: {', '.join(sorted(map(str, sources)))})" if sources else ""
    searched = _SEARCHED if sources == {"searched"} else own
    told = {"searched": searched, "points": _points(records), "order": _order(records)}
    return [note.format(**told) for note in _NOTES]


def _order(records: Sequence[Record]) -> str:
    """How groups of rows follow each other on `tune`'s path: " (groups at random)"; "" without curves."""
    runs = [r["run"] for r in records if r["run"]["purpose"] == "curve"]
    found = {order_of(run) for run in runs if VARIANTS[run["variant"]].path.is_ordered}
    titles = [title for order, title in ORDER_TITLES.items() if order in found]
    return f" ({' or '.join(titles)})" if titles else ""


def _points(records: Sequence[Record]) -> str:
    """How many points of a curve there are in an epoch, model by model: " (10 an epoch on a; 5 on b)"."""
    curves = [record["run"] for record in records if record["run"].get("points")]
    found = sorted({(run["model"], run["points"]) for run in curves}, key=lambda one: (one[0], -one[1]))
    parts = [f"{n}{'' if index else ' an epoch'} on {model}" for index, (model, n) in enumerate(found)]
    return f" ({'; '.join(parts)})" if parts else ""


def _machine(records: Sequence[Record]) -> list[str]:
    """On what it ran, and how many runs something else disturbed, of those whose time on the wall counts."""
    done = [r for r in records if r["status"] == "done" and r["run"]["purpose"] != "memory"]
    found = {(r["machine"]["processor"], r["machine"]["device"], r["machine"]["threads"]) for r in done}
    lines = [
        f"{cpu}, {device}, {n} {'thread' if n == 1 else 'threads'}. " for cpu, device, n in sorted(found)
    ]
    curves = [r for r in done if r["run"]["purpose"] == "curve"]
    if curves:
        days = sorted(r["started_at"][:10] for r in curves)
        loads = [max(r["machine"]["load_average"], default=0.0) for r in curves]
        lines.append(
            f"{len(curves)} curves of {days[0]} to {days[-1]}, not all in turn; the load of the machine was "
            f"{min(loads):.1f} to {max(loads):.1f}, a curve's own thread counted."
        )
    on_the_wall = [r for r in done if seconds_field(r) == "seconds"]
    disturbed = [
        r
        for r in on_the_wall
        if max(r["machine"]["load_average"], default=0.0) > r["machine"]["threads"] + DISTURBED
    ]
    if disturbed:
        lines.append(f"{len(disturbed)} of {len(on_the_wall)} runs had other work beside them.")
    return [*lines, ""]


def _aims(figures: _Figures) -> list[str]:
    """What was aimed at with `tune`, and where it is met; none where it or a reference was not measured."""
    lines: list[tuple[str, str]] = []
    for aim in figures.aims:
        cells = [f"{task} {_ratio(one) or 'not measured'}" for task, one in aim.ratios.items()]
        own, other = (VARIANTS[name].title for name in (aim.variant, aim.reference))
        what = f"{own}: {aim.words}, to {_PERCENT} of {other}"
        met = f"{sum(aim.met.values())} of {len(aim.met)} tasks"
        lines.append((aim.model, table_line([aim.model, what, "; ".join(cells), met])))
    for one in figures.aims_of_memory:
        what = f"half of LoRA's memory beyond the loaded model, {one.shape[0]}x{one.shape[1]} tokens"
        met = "yes" if one.is_met else "no"
        lines.append((one.model, table_line([one.model, what, f"{one.ratio:.2f}", met])))
    if not lines:
        return []
    heads = table_head(["model", "aim, on two tasks of three", "ratio", "met"])
    lines.sort(key=lambda line: line[0])
    return ["## What was aimed at", "", *heads, *(line for _, line in lines), ""]


_PURPOSES: dict[Purpose, str] = {
    "memory": "memory of a step",
    "curve": "score against time",
    "pace": "steps in turn",
    "growth": "an epoch's time as it grows",
}


def _unmeasured(rows: Sequence[Unmeasured]) -> list[str]:
    """What specs ask for and is not there."""
    if not rows:
        return []
    lines = ["## Asked for and not run", "", "By the specs in specs/; nothing stands in their place.", ""]
    lines += table_head(["model", "what", "task", "variants"])
    for row in rows:
        some = " (some of their runs)" if row.is_begun else ""
        titles = "; ".join(VARIANTS[name].title for name in row.variants)
        lines.append(table_line([row.model, _PURPOSES[row.purpose], "; ".join(row.tasks), titles + some]))
    return [*lines, ""]


def _table(group: SpeedGroup) -> list[str]:
    there = {row.variant for row in group.rows}
    names = {ref: VARIANTS[ref].title for ref in REFERENCES if ref in there}
    ratios = [f"× {title}" for title in names.values()]
    heads = ["variant", "lr", "epochs", "s an epoch", f"s to {_PERCENT} of LoRA's score, without caches"]
    heads += [
        "× LoRA without caches",
        "× LoRA on the wall",
        *ratios,
        "final",
        "at LoRA's end",
        "prepare s",
        "caches s",
    ]
    lines = table_head(heads)
    for row in group.rows:
        lora = row.pairings.get("lora")
        cells = [row.title + (f" [{row.n_failed} failed]" if row.n_failed else "")]
        cells += [", ".join(f"{rate:g}" for rate in row.lr), ", ".join(f"{n:g}" for n in row.epochs)]
        cells += [_number(row.epoch_seconds, 2)]
        cells += [_number(None if lora is None else lora.seconds, 1)]
        cells += [_ratio(lora), _ratio(row.wall_pairings.get("lora"))]
        cells += [*(_ratio(row.cached_pairings.get(ref)) for ref in names), _final(row)]
        cells += [_number(None if lora is None else lora.score_then, 4)]
        cells += [_number(row.prepare_seconds, 1), _number(row.cache_seconds, 1)]
        lines.append(table_line(cells))
    return lines


def _gains(found: Sequence[GainRow]) -> list[str]:
    """Each gain on and off."""
    if not found:
        return []
    heads = ["model", "task", "gain", "variant", "ms a step", "without", "ms a step", "off / on", "pairs"]
    lines = ["## Each gain, on and off", "", *table_head(heads)]
    for one in found:
        gain, ratio = one.gain, f"{one.ratio:.2f} [{one.low:.2f}, {one.high:.2f}], n {one.n}"
        on, off = (f"{1e3 * seconds:.1f}" for seconds in (one.on, one.off))
        pairs = "by seed" if one.source == "curve" else "by round"
        cells = [one.model, one.task, gain.title, VARIANTS[gain.on].title, on, VARIANTS[gain.off].title, off]
        lines.append(table_line([*cells, ratio, pairs]))
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
    lines += table_head(["model", "over", "variant", "value: seconds", "ms of each", "caches", "exponent"])
    for line in found:
        points = ", ".join(f"{value:g}: {seconds:.2f}" for value, seconds in line.points)
        caches = (
            ", ".join(f"{seconds:.2f}" for seconds in line.cache_seconds) if any(line.cache_seconds) else ""
        )
        each = ", ".join(f"{1e3 * seconds / value:,.2f}" for value, seconds in line.points)
        cells = [line.model, GROWN[line.axis], line.title, points, each, caches]
        cells += [_number(slope(line.points), 2)]
        lines.append(table_line(cells))
    note = (
        "Exponent p of seconds ~ value^p; 1 is a straight line through zero. `ms of each`: seconds over "
        "value, alike where the line is straight. Of few rows fewer stand close by length, so that more is "
        "padding. Caches, filled once a run for train and dev rows, are not in the seconds."
    )
    return [*lines, "", note, ""]


def _ratio(pairing: Pairing | None) -> str:
    if pairing is None:
        return ""
    if pairing.ratio is None:
        return f"not reached ({pairing.n_reached} of {pairing.n})"
    high = "never" if pairing.high is None else f"{pairing.high:.2f}"
    kept = "" if pairing.n_kept == pairing.n_reached else f", kept {pairing.n_kept}"
    return f"{pairing.ratio:.2f} [{pairing.low:.2f}, {high}], n {pairing.n}{kept}"


def _final(row: SpeedRow) -> str:
    return "" if row.final is None else f"{row.final:.4f} (n {len(row.curves)})"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _word(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-")
