"""`hadamard analyse` and `hadamard prune`: the paper's analyses, as tables, JSON and pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from hadamard_adapter.cli.console import data_console, message_console, plain_table
from hadamard_adapter.cli.hub import base_name_in, stay_offline_without_hub
from hadamard_adapter.cli.options import command_from, refuse_no_file, refuse_no_picture
from hadamard_adapter.errors import SettingsError, refuse_below
from hadamard_adapter.files import expanded, write_json
from hadamard_adapter.tuning.places import refuse_taken

__all__ = ["analyse_group", "prune_command"]


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """Options of every analysis."""

    json: str | None = None
    """JSON file that receives all numbers, with what they were made from."""
    plot: str | None = None
    """SVG or PNG file that receives the picture."""
    quiet: bool = False
    """Whether to say nothing but errors."""

    def __post_init__(self) -> None:
        """Check what can be checked before anything is computed."""
        if self.json is not None:
            refuse_no_file("--json", self.json)
        if self.plot is not None:
            refuse_no_picture(self.plot)


@dataclass(frozen=True, kw_only=True)
class AdaptersOptions(PictureOptions):
    """Options of analyses of adapters."""

    adapters: tuple[str, ...]
    """Folders that `hadamard tune` made, of one base model."""

    def __post_init__(self) -> None:
        """Refuse one adapter under two names, which would count as agreement."""
        super().__post_init__()
        _check_names("--adapters", self.adapters)


@dataclass(frozen=True, kw_only=True)
class KnobsOptions(PictureOptions):
    """The options of `hadamard analyse knobs`."""

    results: str
    """Folder of `hadamard bench` with runs of the adapter's parts, such as those of minilm-knobs.toml."""


@dataclass(frozen=True, kw_only=True)
class OutputsOptions(PictureOptions):
    """The options of `hadamard analyse outputs`."""

    model: str
    """The base model: a folder with config.json, or a name on the hub."""
    tuned: tuple[str, ...]
    """Folders of the same model after tuning, made by `save_pretrained`."""
    data: tuple[str, ...]
    """Rows whose tokens are looked at, a file for each tuned model."""
    text: str | None = None
    """Column of the text; found by its name or its content if not given."""
    pair: str | None = None
    """Column of the second text of a pair."""
    position: Literal["output", "input"] = "output"
    """Whether to look at what attention's projection puts out or at what it takes in."""
    tokens: int = 12000
    """Tokens of each file, at most; 70 % make the fits, the others score them."""
    max_length: int = 128
    """Tokens after which a row is cut."""

    def __post_init__(self) -> None:
        """Check that every tuned model has its rows."""
        super().__post_init__()
        _check_names("--tuned", self.tuned)
        if len(self.tuned) != len(self.data):
            raise SettingsError(
                f"--data: expected {len(self.tuned)} files, one a tuned model, received {len(self.data)}"
            )
        refuse_below("--tokens", self.tokens, 1)
        refuse_below("--max-length", self.max_length, 2)


@dataclass(frozen=True, kw_only=True)
class PruneOptions(AdaptersOptions):
    """The options of `hadamard prune`."""

    by: Literal["offset", "zero", "fisher"] = "zero"
    """What ranks the layers. zero: loss without one; offset: size of its offsets; fisher: Fisher
    information."""
    keep: int | None = None
    """Layers to keep; None: two thirds."""
    rows: int = 400
    """Training rows that rank the layers, at most."""
    curve: bool = False
    """Whether to score every number of layers, by every ranking; --plot asks for it too."""
    output: str | None = None
    """New folder that receives the adapter without the layers that matter least; of one adapter only."""
    tune_again: bool = False
    """Whether the layers that stay are tuned again, from the start, with the adapter's own settings."""
    allow_remote_code: bool = False
    """Whether code that comes with the base model may run."""

    def __post_init__(self) -> None:
        """Check numbers, and that an output belongs to one adapter."""
        super().__post_init__()
        if self.output is not None and len(self.adapters) > 1:
            raise SettingsError(f"--output: expected one adapter, received {len(self.adapters)}")
        if self.tune_again and self.output is None:
            raise SettingsError("--tune-again needs --output, the folder for the new adapter")
        if self.output is not None:
            refuse_taken(expanded(self.output))
        if self.tune_again and self.keep == 0:
            raise SettingsError("--tune-again: expected --keep 1 or more, received 0")
        refuse_below("--keep", self.keep, 0)
        refuse_below("--rows", self.rows, 1)


def _check_names(option: str, folders: Sequence[str]) -> None:
    """Results are told apart by the last names of folders."""
    names = [Path(folder).name for folder in folders]
    if not names or len(set(names)) < len(names):
        raise SettingsError(
            f"{option}: expected folders with names that differ, received {','.join(folders)!r}"
        )


@click.group("analyse", short_help="Look into adapters and tuned models, as the paper does.")
def analyse_group() -> None:
    """Look into adapters and tuned models, as the paper does.

    \b
    Example:
      hadamard analyse patterns --adapters cola-0,cola-1,rte-0 --plot patterns.svg
      hadamard analyse outputs --model MODEL --tuned full-cola --data dev.tsv --plot outputs.svg
    """


@command_from("patterns", AdaptersOptions)
def patterns_command(options: AdaptersOptions) -> None:
    """Compare adapters of several tasks and seeds, layer by layer.

    Cosines are means over pairs of adapters of one task (seeds) and of different tasks.

    \b
    Example:
      hadamard analyse patterns --adapters cola-0,cola-1,rte-0,rte-1 --plot patterns.svg
    """
    from hadamard_adapter.analysis.offsets import made_with
    from hadamard_adapter.analysis.patterns import patterns_of_folders, patterns_picture

    found: dict[str, Any] = patterns_of_folders(options.adapters)
    made = {Path(folder).name: made_with(folder) for folder in options.adapters}
    rows = [
        (kind, _number(found["within_task"][kind]), _number(found["between_tasks"][kind]))
        for kind in found["cosine"]
    ]
    _print("cosine of", ("seeds of one task", "different tasks"), rows)
    shares = ", ".join(f"{100 * share:.0f} %" for share in found["components"]["variance_share"][:4])
    data_console().print(f"\nprincipal components hold {shares} of the variance")
    _write(options, {"made_with": made, **found}, patterns_picture)


@command_from("sharing", AdaptersOptions)
def sharing_command(options: AdaptersOptions) -> None:
    """Show how much of each adapter a basis of k shared directions holds, by squared length.

    "task left out" makes the basis of the other tasks' adapters. A task then stores k numbers.

    \b
    Example:
      hadamard analyse sharing --adapters cola-0,cola-1,rte-0,rte-1 --plot sharing.svg
    """
    from hadamard_adapter.analysis.offsets import made_with
    from hadamard_adapter.analysis.sharing import sharing_of_folders, sharing_picture

    found = sharing_of_folders(options.adapters)
    for part in ("in_basis", "task_left_out"):
        rows = [(k, *(_number(share) for share in shares)) for k, shares in found[part].items()]
        _print(f"{part.replace('_', ' ')}: k", found["adapters"], rows)
    made = {Path(folder).name: made_with(folder) for folder in options.adapters}
    _write(options, {"made_with": made, **found}, sharing_picture)


@command_from("knobs", KnobsOptions)
def knobs_command(options: KnobsOptions) -> None:
    """Show what scale, shift and norm bring, each alone and together, from the runs of a bench.

    A knob's share of the gain over the head alone is its Shapley value: what it adds, on average over all
    orders in which the three can be turned on; the shares add up to the whole gain.

    \b
    Example:
      hadamard analyse knobs --results results/bench --plot knobs.svg
    """
    from hadamard_adapter.analysis.knobs import knobs_of_results, knobs_picture
    from hadamard_adapter.analysis.statistics import summarise

    found = knobs_of_results(options.results)
    for name, task in found["tasks"].items():
        summaries = {part: summarise(list(scores.values())) for part, scores in task["scores"].items()}
        rows = [
            (part, f"{one.mean:.4f}" + ("" if one.sd is None else f" ± {one.sd:.4f}"), str(one.n))
            for part, one in summaries.items()
        ]
        _print(name, (task["metric"], "seeds"), rows)
        shares = [f"{knob} {share['mean']:+.4f}" for knob, share in task.get("shares", {}).items()]
        if shares:
            data_console().print(f"share of the gain over none: {', '.join(shares)}")
    _write(options, found, knobs_picture)


@command_from("outputs", OutputsOptions)
def outputs_command(options: OutputsOptions) -> None:
    """Show what full fine-tuning does to the outputs of self-attention, and which map would do the same.

    R² of a fit is the share of the outputs' change that it explains on tokens it was not made from.

    \b
    Example:
      hadamard analyse outputs --model MODEL --tuned full-cola --data dev.tsv --plot outputs.svg
    """
    stay_offline_without_hub([options.model, *options.data])
    from hadamard_adapter.analysis.outputs import outputs_of_models, outputs_picture
    from hadamard_adapter.tasks import encode_texts, find_columns, read_table

    found: dict[str, Any] = {}
    for tuned, data in zip(options.tuned, options.data, strict=True):
        table = read_table(data)
        columns = find_columns(table, options.text, options.pair, None, False)
        rows = encode_texts(table, columns)
        found[Path(tuned).name] = {
            "made_with": {
                "model": options.model,
                "tuned": tuned,
                "data": data,
                "max_length": options.max_length,
            },
            **outputs_of_models(
                options.model,
                tuned,
                rows.texts,
                rows.pairs,
                position=options.position,
                n_tokens=options.tokens,
                max_length=options.max_length,
            ),
        }
    for name, one in found.items():
        n_layers = len(one["layers"]["change"])
        rows = [(row, *(f"{value:.3f}" for value in values)) for row, values in one["layers"].items()]
        _print(f"{name}: layer", [str(layer) for layer in range(n_layers)], rows)
    _write(options, found, outputs_picture)


@command_from("prune", PruneOptions)
def prune_command(options: PruneOptions) -> None:
    """Find the layers whose adapters a task can do without, and write the adapter without them.

    Layers are ranked on training rows; scores are on the dev rows of the adapter's own tuning, read again
    from where its run.json says. A layer that is dropped is a row of zeros.

    \b
    Example:
      hadamard prune --adapters cola --output cola-pruned
      hadamard prune --adapters cola,mrpc,rte --plot prune.svg
    """
    stay_offline_without_hub([base_name_in(folder) for folder in options.adapters])
    from hadamard_adapter.analysis.offsets import refuse_two_bases, tasks_of
    from hadamard_adapter.analysis.prune import CRITERIA, prune_folder, prune_picture, rank_agreement

    refuse_two_bases([expanded(folder) for folder in options.adapters])
    output = None if options.output is None else expanded(options.output)
    found: dict[str, Any] = {}
    for folder in options.adapters:
        one = found[Path(folder).name] = prune_folder(
            expanded(folder),
            by=options.by,
            keep=options.keep,
            n_rows=options.rows,
            has_curve=options.curve or options.plot is not None,
            output=output,
            is_tuned_again=options.tune_again,
            allow_remote_code=options.allow_remote_code,
        )
        if output is not None:
            message_console(options.quiet).print(f"adapter in {output}")
        _print_pruned(Path(folder).name, one)
    if len(found) > 1:
        tasks = tasks_of(options.adapters)
        # Of other layers no rank says what another does.
        alike = len({tuple(one["layers"]) for one in found.values()}) == 1
        shown = {
            name: rank_agreement([one["scores"][name] if alike else [] for one in found.values()], tasks)
            for name in CRITERIA
        }
        rows = [(name, *map(_number, means.values())) for name, means in shown.items()]
        unknown = "" if alike else ": not known, since the adapters are of other layers"
        data_console().print(f"\nagreement of rankings, mean Spearman correlation{unknown}")
        _print("by", ("seeds of one task", "different tasks"), rows)
        found = {"agreement": shown, "adapters": found}
    else:
        found = {"adapters": found}
    _write(options, found, lambda all: prune_picture(all["adapters"]))


def _print_pruned(name: str, one: Mapping[str, Any]) -> None:
    """What `prune_folder` found of an adapter."""
    layers = [str(layer) for layer in one["layers"]]
    rows = [(criterion, *(f"{value:.3g}" for value in values)) for criterion, values in one["scores"].items()]
    _print(f"{name}: layer", layers, rows)
    for criterion, entries in one.get("curve", {}).items():
        text = "  ".join(f"{entry['n']}: {entry['score']:.4f}" for entry in entries)
        data_console().print(f"{one['metric']} by layers kept, by {criterion}:  {text}", soft_wrap=True)
    kept = ",".join(map(str, one["kept"])) or "no layer"
    scores = f"{one['metric']} {one['kept_score']:.4f} (all layers: {one['score']:.4f})"
    data_console().print(f"keep {kept} by {one['by']}: {scores}", soft_wrap=True)
    if "again" in one:
        data_console().print(f"tuned again: {one['metric']} {one['again']['score']:.4f}")


def _write(options: PictureOptions, found: Mapping[str, Any], picture: Callable[[Any], Any]) -> None:
    """The files that were asked for."""
    console = message_console(options.quiet)
    if options.json is not None:
        from hadamard_adapter.tuning.report import versions

        write_json(expanded(options.json), {**found, "versions": versions()})
        console.print(f"numbers in {options.json}")
    if options.plot is not None:
        from hadamard_adapter.analysis.pictures import save_figure

        save_figure(picture(found), options.plot)
        console.print(f"picture in {options.plot}")


def _print(first: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = plain_table((first, *columns))
    for row in rows:
        table.add_row(*row)
    data_console().print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


for _command in (knobs_command, outputs_command, patterns_command, sharing_command):
    analyse_group.add_command(_command)
