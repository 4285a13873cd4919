"""`hadamard tune`: train the head, then the adapter, and leave a complete folder."""

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hadamard_adapter.cli.console import StageBars, message_console
from hadamard_adapter.cli.hub import stay_offline_without_hub
from hadamard_adapter.cli.options import command_from
from hadamard_adapter.tuning.settings import TuneSettings, refuse_idle

if TYPE_CHECKING:
    from hadamard_adapter.tuning import TuneResult

__all__ = ["summary", "tune_command"]


@command_from("tune", TuneSettings)
def tune_command(settings: TuneSettings) -> None:
    """Train a head and a Hadamard adapter on your rows.

    Stage 1 trains the classifier head on the frozen model, stage 2 the adapter and the norms. The same
    command again continues a run that was stopped, and says so when it is finished.

    \b
    Example:
      hadamard tune --model sentence-transformers/all-MiniLM-L6-v2 \\
        --train train.csv --dev dev.csv --output adapter
      hadamard tune --model ./bert-base-uncased --task cola --data glue/CoLA --output cola
    """
    _refuse_idle_rates(settings)
    stay_offline_without_hub([settings.model, settings.train, settings.dev])
    from accelerate import PartialState

    from hadamard_adapter.tuning import tune

    console = message_console(settings.quiet)
    with StageBars(console) as bars:
        result = tune(settings, say=console.print, progress=bars)
    if PartialState().is_main_process:
        for line in summary(result):
            console.print(line)


def _refuse_idle_rates(settings: TuneSettings) -> None:
    """Refuse a rate of what does not train; in settings that are resolved every rate is filled in."""
    idle = {
        "scale_lr": (not settings.train_scale, "no scale"),
        "shift_lr": (not settings.train_shift, "no shift"),
        "norm_lr": (settings.norm_modules == (), "no norm"),
        "lr": (
            None not in (settings.scale_lr, settings.shift_lr, settings.norm_lr),
            "scale_lr, shift_lr and norm_lr, which replace it",
        ),
    }
    refuse_idle(settings, idle)


def summary(result: "TuneResult") -> Iterator[str]:
    """The closing lines of a run: what it reached, what was trained, what to do with it.

    Args:
        result: what `tune` returned.

    Example:
        >>> from pathlib import Path
        >>> from hadamard_adapter.tuning import TuneResult
        >>> metrics = {"dev": {"accuracy": 0.9}, "selected_on": "dev", "stage1_dev": None}
        >>> metrics |= {"adapter_parameters": 36864, "share_percent": 0.0337, "head_parameters": 1538}
        >>> list(summary(TuneResult(Path("out"), metrics, {})))[:2]  # doctest: +NORMALIZE_WHITESPACE
        ['dev      accuracy 0.9000',
         'trained  36,864 parameters of the adapter (0.0337 % of the model) and 1,538 of the head']
    """
    metrics = result.metrics
    before = metrics["stage1_dev"]
    stage1 = f" (head alone: {_scores(before)})" if before else ""
    yield f"{metrics['selected_on']:<8} {_scores(metrics['dev'])}{stage1}"
    yield (
        f"trained  {metrics['adapter_parameters']:,} parameters of the adapter "
        f"({metrics['share_percent']:.4f} % of the model) and {metrics['head_parameters']:,} of the head"
    )
    adapter = shlex.quote(str(result.output))
    yield f"next     hadamard eval --adapter {adapter} --data FILE"
    yield f"         hadamard predict --adapter {adapter} --input FILE --output FILE"


def _scores(scores: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
