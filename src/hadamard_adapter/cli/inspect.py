"""`hadamard inspect`: what is adapted, how much of the model that is, and where an adapter changed most."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from hadamard_adapter.cli.anatomy import Anatomy, Part, build_on_meta, plan_adapter, read_adapter
from hadamard_adapter.cli.console import data_console, message_console
from hadamard_adapter.cli.hub import base_name_in, stay_offline_without_hub
from hadamard_adapter.cli.options import command_from, refuse_no_picture
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.files import expanded
from hadamard_adapter.tuning.settings import PRESETS

if TYPE_CHECKING:
    from hadamard_adapter.adapter.candidates import Candidate

__all__ = ["InspectOptions", "inspect_command"]

_BAR_WIDTH = 20


@dataclass(frozen=True)
class InspectOptions:
    """The options of `hadamard inspect`."""

    target: str = field(metadata={"argument": "MODEL|ADAPTER"})
    """A model (a folder with config.json, or a name on the hub) or a folder that `hadamard tune` made."""
    preset: Literal["paper", "wide"] | None = None
    """For a model: what to adapt, as in `hadamard tune`; None: wide."""
    position: Literal["output", "input"] | None = None
    """For a model: whether to adapt what the site's projection puts out or what it takes in; None: output."""
    layers: tuple[int, ...] | None = None
    """For a model: layers to adapt, counted from 0; by default all."""
    plot: str | None = None
    """SVG or PNG file that receives the picture of an adapter's changes by layer."""
    allow_remote_code: bool = False
    """Whether a model may run Python code that its folder or the hub brings."""
    quiet: bool = False
    """Whether to say nothing but errors."""

    def __post_init__(self) -> None:
        """Check what is there before anything is shown."""
        is_adapter = (expanded(self.target) / "adapter_config.json").is_file()
        given = [name for name in ("preset", "position", "layers") if getattr(self, name) is not None]
        if self.plot is not None and not is_adapter:
            raise SettingsError(f"--plot needs a folder that `hadamard tune` made, received {self.target!r}")
        if is_adapter and given:
            raise SettingsError(
                f"--{given[0]}: expected none for an adapter, which is shown as it was made, received "
                f"{getattr(self, given[0])!r}; leave it out, or name a model"
            )
        if self.plot is not None:
            refuse_no_picture(self.plot)


@command_from("inspect", InspectOptions)
def inspect_command(options: InspectOptions) -> None:
    """Show what is or would be adapted, and how much it is.

    For a model its config is enough, no weights are read. For an adapter, bars show its mean absolute change
    by layer. For a model of a family that is not known, modules are proposed.

    \b
    Example:
      hadamard inspect sentence-transformers/all-MiniLM-L6-v2
      hadamard inspect adapter --plot adapter.png
    """
    is_adapter = (expanded(options.target) / "adapter_config.json").is_file()
    stay_offline_without_hub([base_name_in(options.target) or options.target])
    from hadamard_adapter.tuning.models import quiet_libraries

    with quiet_libraries():
        _inspect(options, is_adapter)


def _inspect(options: InspectOptions, is_adapter: bool) -> None:
    console = data_console()
    if is_adapter:
        anatomy = read_adapter(options.target, options.allow_remote_code)
        _print_tree(console, anatomy)
        _print_changes(console, anatomy)
        if options.plot is not None:
            _plot(anatomy, options.plot)
            message_console(options.quiet).print(f"picture in {options.plot}")
        return
    model = build_on_meta(options.target, options.allow_remote_code)
    from hadamard_adapter.adapter.families import FAMILIES

    if model.config.model_type in FAMILIES:
        sites, position = PRESETS[options.preset or "wide"].sites, options.position or "output"
        _print_tree(console, plan_adapter(options.target, model, sites, position, options.layers))
    else:
        _print_candidates(console, options.target, model)


def _print_tree(console: Console, anatomy: Anatomy) -> None:
    tree = Tree(f"{anatomy.name}  ({anatomy.base})")
    for layers, parts in _same_layers(anatomy.parts):
        branch = tree.add(layers)
        for path, kinds in _by_path(parts).items():
            branch.add(f"{path}  {kinds}" if path != layers else kinds)
    if anatomy.head:
        branch = tree.add("head")
        for name, size in anatomy.head.items():
            branch.add(f"{name}  {size:,}")
    console.print(tree)
    console.print()
    n_both, n_model = anatomy.n_adapter + anatomy.n_head, anatomy.n_model
    if n_model is None:
        console.print("model, with its head   the base model's config is not at hand")
    else:
        console.print(f"model, with its head   {n_model:>13,}")
    console.print(f"adapter                {anatomy.n_adapter:>13,}{_share(anatomy.n_adapter, n_model)}")
    console.print(f"adapter and head       {n_both:>13,}{_share(n_both, n_model)}")


def _share(n_trained: int, n_model: int | None) -> str:
    return "" if n_model is None else f"  {100 * n_trained / n_model:.4f} %"


def _same_layers(parts: tuple[Part, ...]) -> list[tuple[str, list[Part]]]:
    """Runs of neighbouring layers that are adapted alike, each shown once."""
    layers: dict[tuple[str, int | None], list[Part]] = {}
    for part in parts:
        layers.setdefault((part.layers, part.layer_index), []).append(part)
    runs: list[tuple[str, int | None, int | None, list[Part]]] = []
    for (name, index), found in layers.items():
        if runs and index is not None and runs[-1][0] == name and runs[-1][2] == index - 1:
            *_, before = runs[-1]
            if _by_path(before) == _by_path(found):
                runs[-1] = (name, runs[-1][1], index, before)
                continue
        runs.append((name, index, index, found))
    return [(_layer_name(name, first, last), found) for name, first, last, found in runs]


def _layer_name(layers: str, first: int | None, last: int | None) -> str:
    if first is None:
        return layers
    return f"{layers}.{first}" if first == last else f"{layers}.{first} to {last}"


def _by_path(parts: list[Part]) -> dict[str, str]:
    """Path of a module -> its vectors, as text."""
    shown: dict[str, str] = {}
    for part in parts:
        text = f"{part.kind.replace('_', ' ')} {part.size:,}"
        shown[part.path] = f"{shown[part.path]}, {text}" if part.path in shown else text
    return shown


def _print_changes(console: Console, anatomy: Anatomy) -> None:
    """Bars of the mean absolute offset, a table per module and kind, one scale for all."""
    sizes = [part.mean_offset for part in anatomy.parts]
    largest = max(filter(math.isfinite, sizes), default=0.0)  # of an adapter that came to nothing, inf or nan
    console.print("\nmean |offset| by layer")
    for layers, path in dict.fromkeys((part.layers, part.path) for part in anatomy.parts):
        here = [part for part in anatomy.parts if (part.layers, part.path) == (layers, path)]
        kinds = list(dict.fromkeys(part.kind for part in here))
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("layer", justify="right")
        for kind in kinds:
            table.add_column(kind.replace("_", " "), no_wrap=True)
        for index in dict.fromkeys(part.layer_index for part in here):
            of_kind = {part.kind: part.mean_offset for part in here if part.layer_index == index}
            cells = [_bar(of_kind[kind], largest) if kind in of_kind else "" for kind in kinds]
            table.add_row("-" if index is None else str(index), *cells)
        console.print(f"\n{path if path == layers else f'{layers}.*.{path}'}")
        console.print(table)


def _bar(value: float, largest: float) -> str:
    eighths = round(8 * _BAR_WIDTH * value / largest) if largest > 0 and math.isfinite(value) else 0
    bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    return f"{value:.5f} {bar:<{_BAR_WIDTH}}"


def _plot(anatomy: Anatomy, path: str) -> None:
    """A heat map: a row per module and kind, a column per layer."""
    from matplotlib.figure import Figure

    from hadamard_adapter.analysis.pictures import save_figure

    rows = list(dict.fromkeys((part.path, part.kind) for part in anatomy.parts))
    columns = list(dict.fromkeys((part.layers, part.layer_index) for part in anatomy.parts))
    values = [[float("nan")] * len(columns) for _ in rows]
    for part in anatomy.parts:
        row, column = rows.index((part.path, part.kind)), columns.index((part.layers, part.layer_index))
        values[row][column] = part.mean_offset
    figure = Figure(figsize=(4 + 0.4 * len(columns), 1.6 + 0.35 * len(rows)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    axes.set_yticks(range(len(rows)), [f"{path} {kind.replace('_', ' ')}" for path, kind in rows])
    axes.set_xticks(range(len(columns)), [str(index) if index is not None else "-" for _, index in columns])
    axes.set_xlabel("layer")
    axes.set_title(f"mean |offset| of {Path(anatomy.name).name}")
    figure.colorbar(image)
    save_figure(figure, path)


def _print_candidates(console: Console, name: str, model: object) -> None:
    from torch import nn

    from hadamard_adapter.adapter.candidates import candidates

    assert isinstance(model, nn.Module)
    found = candidates(model)
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if not found:
        raise SettingsError(
            f"{name}: model_type {model_type!r} is not known, and no list of layers was found in the model"
        )
    tree = Tree(f"{name}  ({model_type}: not a known family; candidates by structure)")
    for layers in dict.fromkeys(candidate.layers for candidate in found):
        branch = tree.add(layers)
        for candidate in (candidate for candidate in found if candidate.layers == layers):
            branch.add(f"{candidate.kind}  {candidate.path}  in {len(candidate.layer_indices)} layers")
    console.print(tree)
    console.print("\nLook at them, then in Python, for example:")
    console.print(_usage(found), soft_wrap=True)


def _usage(found: "list[Candidate]") -> str:
    def names(kind: str) -> str:
        return ", ".join(dict.fromkeys(f'"{item.path}"' for item in found if item.kind == kind))

    return f"HadamardConfig(target_modules=[{names('projection')}], norm_modules=[{names('norm')}])"
