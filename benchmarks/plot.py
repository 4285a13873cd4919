"""Draw what the benchmarks of bank and server have found: docs/bank.svg, from the files in results/.

Command: python benchmarks/plot.py      (a second; draws what is there)

Upper row: time of a forward pass over that of the bare model as PyTorch computes it: MiniLM-L6, MPNet-base,
and beside ONNX Runtime. Lower row: cost over the number of adapters, and what the server makes of it.
"""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from hadamard_adapter.analysis.pictures import save_figure

ROOT = Path(__file__).parent.parent
RESULTS, PICTURE = ROOT / "results", ROOT / "docs" / "bank.svg"
SHAPES = ("16x16", "64x16", "16x128", "64x128")
BARS = {
    "bank.json": ("MiniLM-L6", ("bank", "bare_packed", "peft_mixed", "peft_one_by_one")),
    "bank_mpnet.json": ("MPNet-base", ("bank", "bare_packed", "peft_mixed", "peft_one_by_one")),
    "onnx.json": ("beside ONNX Runtime", ("bank", "bank_bf16", "onnx", "onnx_int8")),
}
"""File -> title, and the variants that are drawn."""


def main() -> None:
    """Draw."""
    figure = Figure(figsize=(11.5, 6.2), layout="constrained")
    upper, lower = figure.subplots(2, 3)
    for axes, (name, (title, variants)) in zip(upper, BARS.items(), strict=True):
        if (RESULTS / name).exists():
            bars(axes, read(name), title, variants)
        else:
            axes.set_axis_off()
    bank, server = read("bank.json"), read("serving.json")
    growth(lower[0], bank["growth"])
    forward(lower[1], bank["growth"]["forward"])
    paces(lower[2], server)
    save_figure(figure, str(PICTURE))


def read(name: str) -> dict[str, Any]:
    """A result."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def bars(axes: Any, found: dict[str, Any], title: str, variants: tuple[str, ...]) -> None:
    """Ratios to the bare model by rows x tokens; above 2.2 the bar is cut and says its value."""
    width, top = 0.8 / len(variants), 2.2
    for index, variant in enumerate(variants):
        for place, shape in enumerate(SHAPES):
            ratio = found[shape].get(f"{variant}/bare")
            if ratio is None:
                continue
            x = place + (index - (len(variants) - 1) / 2) * width
            label = variant.replace("_", " ") if place == 0 else None
            axes.bar(x, min(ratio, top), width, color=f"C{index}", label=label)
            axes.text(x, min(ratio, top), f"{ratio:.2f}", ha="center", va="bottom", fontsize=6)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(SHAPES)), SHAPES)
    axes.set(title=title, xlabel="rows x tokens", ylabel="time / bare model's", ylim=(0, top + 0.15))
    axes.legend(fontsize=7)


def growth(axes: Any, found: dict[str, Any]) -> None:
    """Adding and looking up over the number of adapters."""
    sizes = {int(name.split()[0]): one for name, one in found.items() if name.endswith("adapters")}
    for unit, label in (("add_ms", "add, ms"), ("look_up_us", "look up, µs")):
        axes.plot(list(sizes), [one[unit] for one in sizes.values()], "o-", label=label)
    axes.set_xscale("log")
    axes.set(title="cost of an adapter more", xlabel="adapters in the bank", ylim=(0, None))
    axes.legend(fontsize=7)


def forward(axes: Any, found: dict[str, Any]) -> None:
    """A forward pass over the number of adapters, with its interval."""
    names = [name for name in found if "/" in name and not name.endswith("interval")]
    for place, name in enumerate(names):
        low, high = found[f"{name} interval"]
        axes.plot([place, place], [low, high], color="C0")
        axes.plot([place], [found[name]], "o", color="C0")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(names)), [f"{name.split('/')[0]} : {name.split('/')[1]}" for name in names])
    axes.set(title="forward pass, more adapters : fewer", xlim=(-0.5, len(names) - 0.5), ylim=(0.9, 1.1))


def paces(axes: Any, found: dict[str, Any]) -> None:
    """Texts a second of the bank alone and of the server."""
    kinds = [name for name, one in found.items() if isinstance(one, dict) and "texts_per_s" in one]
    values = [found["bank"], *(found[name]["texts_per_s"] for name in kinds)]
    axes.barh(range(len(values)), values, color=["C1", *["C0"] * len(kinds)])
    axes.set_yticks(range(len(values)), ["bank alone", *kinds])
    axes.invert_yaxis()
    axes.set(title="server on one core, 128 tokens", xlabel="texts a second")


if __name__ == "__main__":
    main()
