"""What a run tells about itself: metrics.json, run.json, the curve as a picture, the model card."""

import contextlib
import dataclasses
import functools
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict

from hadamard_adapter.files import write_json
from hadamard_adapter.offset_name import offset_name, split
from hadamard_adapter.tasks import data_fingerprint
from hadamard_adapter.tuning.data import TuneData
from hadamard_adapter.tuning.precision import cpu_flags
from hadamard_adapter.tuning.settings import TuneSettings
from hadamard_adapter.tuning.shared import Basis
from hadamard_adapter.tuning.titles import STAGE_TITLES
from hadamard_adapter.tuning.weights import WEIGHTS, read_weights

__all__ = [
    "code_commit",
    "count_parameters",
    "forget_peak_memory",
    "libraries",
    "metrics_of",
    "peak_memory_mb",
    "processor_name",
    "run_of",
    "status_kb",
    "versions",
    "write_report",
]

_PACKAGES = (
    *("hadamard-adapter", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy"),
    "scikit-learn",
)
_INSTRUCTIONS = {
    **{"amx_bf16": "AMX BF16", "avx512_bf16": "AVX-512 BF16", "avx512_f": "AVX-512", "avx2": "AVX2"},
    **{"sve_bf16": "SVE BF16", "bf16": "NEON BF16"},
}
"""Flag of `torch.cpu.get_capabilities` to name; of several the first."""
_CLEAR = Path("/proc/self/clear_refs")
"""Sets the kernel's high-water mark of a process back to what it holds; of Linux."""


def count_parameters(model: torch.nn.Module, n_base: int, basis: Basis | None = None) -> dict[str, Any]:
    """Numbers of parameters of adapter (scale, shift, norm offsets) and head, and the adapter's share.

    Args:
        model: PEFT model with the adapter "default".
        n_base: number of the base model's parameters.
        basis: directions whose coefficients are what the task has of its own; None: all offsets are.

    Returns:
        adapter_parameters, head_parameters, base_parameters, share_percent (the head is not counted in it).
    """
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    n_offsets, n_head = (sum(t.numel() for t in part.values()) for part in split(saved))
    n_adapter = n_offsets if basis is None else basis.n
    return {
        "adapter_parameters": n_adapter,
        "head_parameters": n_head,
        "base_parameters": n_base,
        "share_percent": 100 * n_adapter / n_base,
    }


def metrics_of(data: TuneData, stages: dict[str, Any], counts: dict[str, Any]) -> dict[str, Any]:
    """Content of metrics.json.

    Args:
        data: gives the task and the name of the dev rows.
        stages: name -> content of its stage.json, in the order of training.
        counts: of `count_parameters`.
    """
    last = list(stages)[-1]
    curve = [{"stage": name, **entry} for name, stage in stages.items() for entry in stage["curve"]]
    return {
        "dev": stages[last]["best"]["scores"],
        "metric": data.task.metrics[0],
        "selected_on": data.dev_name,
        "best_epoch": {name: stage["best"]["epoch"] for name, stage in stages.items()},
        "stage1_dev": stages["head"]["best"]["scores"] if "head" in stages else None,
        **counts,
        "curve": curve,
    }


def run_of(settings: TuneSettings, data: TuneData, stages: dict[str, Any]) -> dict[str, Any]:
    """What run.json says about settings, data and time."""
    return {
        "settings": dataclasses.asdict(settings),
        "seed": settings.seed,
        "task": dataclasses.asdict(data.task),
        "columns": dataclasses.asdict(data.columns),
        "rows": {"train": len(data.train.texts), "dev": len(data.dev.texts), "dev_is": data.dev_name},
        "data_fingerprint": {"train": data_fingerprint(data.train), "dev": data_fingerprint(data.dev)},
        "seconds": {name: round(stage["seconds"], 2) for name, stage in stages.items()},
    }


def versions() -> dict[str, str]:
    """Name -> version of Python and of the packages that the result depends on; a clone's with its commit."""
    found = {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
    found["hadamard-adapter"] += code_commit()
    return found


def libraries(found: Mapping[str, str]) -> str:
    """Major and minor versions of what computes; a third number mends bugs and is left out.

    Args:
        found: of `versions`, or of a record.

    Example:
        >>> libraries({"python": "3.11.1", "torch": "2.13.0+cpu", "peft": "0.19.1"})
        'torch 2.13, peft 0.19'
    """
    named = (name for name in ("torch", "transformers", "peft") if name in found)
    return ", ".join(f"{name} {'.'.join(str(found[name]).split('.')[:2])}" for name in named)


@functools.cache
def code_commit() -> str:
    """A clone's last commit of this code, as in "+g0123456789ab", or "+g0123456789ab.dirty"; else none.

    Who does a run asks first, when the code was loaded: a run of hours may end at another one.
    """
    source = Path(__file__).resolve().parents[2]
    if not (source.parent / ".git").exists():
        return ""
    git = functools.partial(subprocess.run, cwd=source, capture_output=True, text=True, check=True)
    try:
        commit = git(["git", "log", "-1", "--format=%H", "--", "."]).stdout[:12]
        changes = git(["git", "--no-optional-locks", "status", "--porcelain", "--", "."]).stdout
    except (OSError, subprocess.CalledProcessError):  # no git, or a clone of somebody else's
        return ""
    return f"+g{commit}" + (".dirty" if changes else "") if commit else ""


def processor_name(device: str = "cpu") -> str:
    """The processor's model, as the kernel names it or, where it does not tell, as Python does, and the
    widest instructions it has for products of matrices: virtual machines of one model's name may differ in
    these, and a step by ten times. Then the GPU's, where that computes.

    Args:
        device: type of the one that computes: cpu, cuda or mps.

    Example:
        >>> processor_name()  # doctest: +SKIP
        'AMD EPYC, AVX-512 BF16'
    """
    flags = cpu_flags()
    instructions = (name for flag, name in _INSTRUCTIONS.items() if flags.get(flag, False))
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return ", ".join(filter(None, (_model_name(), next(instructions, None), gpu)))


def _model_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def forget_peak_memory() -> None:
    """Have `peak_memory_mb` count from here on; where the kernel does not allow it, what was stays in it."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")


def peak_memory_mb() -> int | None:
    """Largest resident memory of this process so far, in MiB; None on Windows, which does not tell."""
    peak = status_kb("VmHWM")  # what `getrusage` tells on Linux is also that of the process that started it
    if peak is not None:
        return round(peak / (1 << 10))
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10))


def status_kb(name: str) -> int | None:
    """A line of this process's status, such as VmHWM, in units of 1,024 bytes; None where it has none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def write_report(folder: Path, metrics: dict[str, Any], run: dict[str, Any]) -> None:
    """Write metrics.json, run.json, curve.png and README.md into a folder."""
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "run.json", run)
    _plot_curve(folder / "curve.png", metrics)
    (folder / "README.md").write_text(_card(metrics, run, _kinds_in(folder)), encoding="utf-8")


def _plot_curve(path: Path, metrics: dict[str, Any]) -> None:
    """Dev score and training loss by epoch, one panel each, stages one after the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    upper, lower = figure.subplots(1, 2)
    start = 0
    for stage in dict.fromkeys(entry["stage"] for entry in metrics["curve"]):
        entries = [entry for entry in metrics["curve"] if entry["stage"] == stage]
        epochs = [start + entry["epoch"] for entry in entries]
        scores = [entry["scores"][metrics["metric"]] for entry in entries]
        best = metrics["best_epoch"][stage] - 1
        (line,) = upper.plot(epochs, scores, marker=".", label=STAGE_TITLES[stage])
        upper.plot(epochs[best], scores[best], marker="o", color=line.get_color())
        losses = [entry["loss"] for entry in entries]
        lower.plot(epochs, losses, marker=".", label=STAGE_TITLES[stage])
        start = epochs[-1]
    upper.set(xlabel="epoch", ylabel=f"{metrics['metric']} ({metrics['selected_on']})")
    lower.set(xlabel="epoch", ylabel="training loss")
    upper.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})


_CARD = """---
library_name: peft
base_model: {model}
tags:
- hadamard-adapter
- text-classification
---

# Hadamard adapter for {model}

{n_adapter:,} parameters ({share:.4f} % of the base model's) besides the head's {n_head:,}: {kinds}.
Sites: {sites}. Trained on {n_train:,} rows by
`hadamard tune`, preset `{preset}`, seed {seed}. Kind of task: {problem_type}{labels}.

| score on {selected_on} ({n_dev:,} rows; they also chose the epoch) | value |
|---|---|
{scores}

![dev score and training loss by epoch](curve.png)

## Use

```python
from hadamard_adapter import load

classifier = load(".")  # this folder
print(classifier.predict({example}))
```

With PEFT alone, the import registers the method (without it PEFT raises `KeyError: 'HADAMARD'`):

```python
import hadamard_adapter  # in a clone: pip install .
from peft import AutoPeftModelForSequenceClassification

model = AutoPeftModelForSequenceClassification.from_pretrained(".", num_labels={n_labels})
```

On the command line: `hadamard predict --adapter . --input texts.csv --output -`, and
`hadamard merge --adapter . --output plain` for a plain transformers folder.

Settings, versions and fingerprints are in `run.json`, scores of every epoch in `metrics.json`.
"""


_KINDS = {
    "scale": "scales",
    "shift": "shifts",
    "norm_weight": "offsets of norms",
    "norm_bias": "offsets of norms",
}


def _kinds_in(folder: Path) -> str:
    """The kinds of tensors of the adapter in a folder, as words: "scales, shifts and offsets of norms"."""
    offsets, _ = split(read_weights(folder / WEIGHTS))
    kinds = {found.kind for found in map(offset_name, offsets) if found is not None}
    found = dict.fromkeys(words for kind, words in _KINDS.items() if kind in kinds)
    *first, last = found or ["no tensors of its own"]
    return f"{', '.join(first)} and {last}" if first else last


def _shared(settings: dict[str, Any]) -> str:
    """What the adapter took from others, in words; empty where that is nothing."""
    if settings.get("basis") is not None:
        return f", which stay in the directions of `{Path(settings['basis']).name}`"
    return "" if settings.get("start") is None else f", tuned from `{Path(settings['start']).name}`"


def _card(metrics: dict[str, Any], run: dict[str, Any], kinds: str) -> str:
    settings, task = run["settings"], run["task"]
    names = ", ".join(f"`{name}`" for name in task["label_names"][:20])
    stage1 = (metrics["stage1_dev"] or {}).items()
    rows = [f"| {name} | {value:.4f} |" for name, value in metrics["dev"].items()]
    rows += [f"| {name}, head alone (stage 1) | {value:.4f} |" for name, value in stage1]
    has_pair = run["columns"]["pair"] is not None
    return _CARD.format(
        model=settings["model"],
        n_adapter=metrics["adapter_parameters"],
        n_head=metrics["head_parameters"],
        share=metrics["share_percent"],
        kinds=kinds + _shared(settings),
        sites=" and ".join(settings["sites"]),
        n_train=run["rows"]["train"],
        n_dev=run["rows"]["dev"],
        preset=settings["preset"],
        seed=settings["seed"],
        problem_type=task["problem_type"].replace("_", " "),
        labels=f"; labels {names}" if names else "",
        selected_on=metrics["selected_on"],
        scores="\n".join(rows),
        example='["a text"], ["its second text"]' if has_pair else '["a text"]',
        n_labels=max(1, len(task["label_names"])),
    )
