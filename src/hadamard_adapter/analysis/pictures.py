"""Pictures as SVG text: scores, seeds and offsets of methods, speed; figures as files."""

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hadamard_adapter.analysis.speed import GrowthLine, SpeedGroup
from hadamard_adapter.analysis.table import Group, Row
from hadamard_adapter.bench.speed.variants import VARIANTS
from hadamard_adapter.errors import SettingsError
from hadamard_adapter.files import expanded

__all__ = [
    "curves_picture",
    "draw_seeds",
    "growth_picture",
    "offsets_picture",
    "save_figure",
    "scores_picture",
    "seeds_picture",
    "without_mathtext",
]

_STABLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "hadamard"}
_METADATA = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
"""With these the same figure gives the same bytes, its text kept as text."""

Draw = Callable[[Any, Any], None]


def scores_picture(group: Group) -> str:
    """Score against trained parameters (without the head) on a log axis: the mean, and a dot for every seed.

    Args:
        group: a model and a task with at least one run that is done.
    """

    def draw(figure: Any, axes: Any) -> None:
        for index, (label, row) in enumerate(_labelled(group).items()):
            x = max(row.n_trained or 0, 1)
            color, marker = f"C{index % 10}", "os"[index // 10 % 2]
            axes.plot([x] * len(row.scores), list(row.scores.values()), ".", color=color, alpha=0.4)
            mean = row.summary.mean if row.summary is not None else 0.0
            axes.plot([x], [mean], marker, color=color, label=label)
        axes.set_xscale("symlog", linthresh=100)
        axes.margins(0.08)
        axes.set(xlabel="trained parameters beside the head", ylabel=group.metric)
        figure.legend(loc="outside right upper", frameon=False, fontsize=9.5)

    return _svg(draw, (6.4, 3.6))


def seeds_picture(group: Group) -> str:
    """A line a method, a dot a seed, a bar at the mean."""

    scores = {label: list(row.scores.values()) for label, row in _labelled(group).items()}

    def draw(figure: Any, axes: Any) -> None:
        draw_seeds(axes, scores, group.metric)

    return _svg(draw, (5.2, 0.9 + 0.32 * len(scores)))


def _labelled(group: Group) -> dict[str, Row]:
    """The rows that have scores under names of their own: the method, and what tells its rows apart."""
    rows = _done(group)
    methods = [row.method for row in rows]
    found = dict[str, Row]()
    for row in rows:
        label = row.method
        if methods.count(label) > 1:
            label += f", lr {' '.join(f'{rate:g}' for rate in row.lr)}"
        while label in found:
            label += " (another)"
        found[label] = row
    return found


def without_mathtext(name: str) -> str:
    r"""A name as matplotlib draws it letter by letter: a folder called a$^$ is no formula.

    Example:
        >>> print(without_mathtext("a$^$"))
        a\$^\$
    """
    return name.replace("$", r"\$")


def draw_seeds(axes: Any, scores: Mapping[str, Sequence[float]], metric: str) -> None:
    """A line a name from the bottom on, a dot a seed, a bar at the mean; a name without seeds stays empty."""
    for y, values in enumerate(scores.values()):
        axes.plot(values, [y] * len(values), "o", color="C0", alpha=0.6)
        if values:
            axes.plot([np.mean(values)], [y], "|", color="black", markersize=16)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.set(xlabel=metric, ylim=(-0.6, len(scores) - 0.4))
    axes.grid(axis="x", alpha=0.3)


def offsets_picture(row: Row) -> str:
    """A heat map of the offsets' root mean square: a row a kind of offset, a column a layer.

    Args:
        row: a method whose runs kept their layers.
    """

    def draw(figure: Any, axes: Any) -> None:
        values = np.array(list(row.layers.values()))
        image = axes.imshow(values, aspect="auto", cmap="viridis")
        names = [name.rpartition(".")[0] or name for name in row.layers]  # ".dense" only takes room
        axes.set_yticks(range(len(names)), names)
        axes.set_xticks(range(values.shape[1]))
        axes.set(xlabel="layer, from the lowest adapted one on")
        figure.colorbar(image, ax=axes, label="rms of offsets")

    return _svg(draw, (5.2, 1.1 + 0.3 * len(row.layers)))


def curves_picture(group: SpeedGroup) -> str:
    """Dev score against seconds of training on a log axis: a line a variant and seed.

    A colour is a method, a width what stands around it (tune's path thick), a dash tells variants that share
    both apart.
    """

    def draw(figure: Any, axes: Any) -> None:
        rows = sorted((row for row in group.rows if row.curves), key=lambda row: row.variant)
        methods = list(dict.fromkeys(VARIANTS[row.variant].method for row in rows))
        seen = Counter[tuple[str, bool]]()
        for row in rows:
            look = VARIANTS[row.variant]
            is_ours = look.path.name == "tune"
            dash = ("-", ":", "--", "-.")[seen[look.method, is_ours] % 4]
            seen[look.method, is_ours] += 1
            for index, curve in enumerate(row.curves.values()):
                axes.plot(
                    *zip(*curve, strict=True),
                    color=f"C{methods.index(look.method) % 10}",
                    linestyle=dash,
                    linewidth=2.4 if is_ours else 1.0,
                    alpha=1.0 if index == 0 else 0.5,
                    label=row.title if index == 0 else None,
                )
        axes.set_xscale("log")
        axes.set(
            xlabel="seconds of training, caches included (on one thread: its processor time)",
            ylabel=group.metric,
        )
        axes.grid(alpha=0.3)
        if rows:
            figure.legend(loc="outside right upper", frameon=False)

    return _svg(draw, (8.4, 4.2))


def growth_picture(lines: Sequence[GrowthLine]) -> str:
    """Seconds of an epoch over what grows, both on plain axes from zero, so that a straight line is one.

    Args:
        lines: of one axis.
    """

    def draw(figure: Any, axes: Any) -> None:
        for line in lines:
            axes.plot(*zip(*line.points, strict=True), marker="o", label=line.title)
        axes.set(xlabel=GROWN[lines[0].axis], ylabel="seconds of an epoch", xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)

    return _svg(draw, (5.2, 3.6))


GROWN = {"rows": "training rows", "length": "tokens of every row", "layers": "layers adapted"}
"""Axis of growth -> its name for readers."""


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure on white, as SVG or PNG by the name's ending; the same figure gives the same bytes.

    Raises:
        SettingsError: another ending.
    """
    import matplotlib

    target = expanded(path)
    kind = target.suffix.lower().removeprefix(".")
    if kind not in _METADATA:
        raise SettingsError(f"picture {str(path)!r}: expected a name that ends in .svg or .png")
    with matplotlib.rc_context(_STABLE):
        figure.savefig(target, format=kind, dpi=110, metadata=_METADATA[kind])


def _done(group: Group) -> list[Row]:
    return [row for row in group.rows if row.scores]


def _svg(draw: Draw, size: tuple[float, float]) -> str:
    """One picture with one pair of axes, its text kept as text; the same input gives the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STABLE, "font.size": 10.5}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=_METADATA["svg"], transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
