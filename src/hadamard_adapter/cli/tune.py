"""`hadamard tune`: train the head, then the adapter, and leave a complete folder."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hadamard_adapter.cli.console import StageBars, hush_libraries, message_console
from hadamard_adapter.cli.options import command_from
from hadamard_adapter.tuning.settings import TuneSettings

if TYPE_CHECKING:
    from hadamard_adapter.tuning import TuneResult

__all__ = ["summary", "tune_command"]


@command_from("tune", TuneSettings)
def tune_command(settings: TuneSettings) -> None:
    """Train a head and a Hadamard adapter on your rows.

    Stage 1 trains the classifier head on the frozen model, stage 2 the adapter and the norms. The same command
    again continues a run that was stopped, and says so when it is finished.

    \b
    Example:
      hadamard tune --model sentence-transformers/all-MiniLM-L6-v2 \\
        --train train.csv --dev dev.csv --output adapter
      hadamard tune --model ./bert-base-uncased --task cola --data glue/CoLA --output cola
    """
    from hadamard_adapter.tuning import tune

    hush_libraries()
    console = message_console(settings.quiet)
    with StageBars(console) as bars:
        result = tune(settings, say=console.print, progress=bars)
    for line in summary(result):
        console.print(line)


def summary(result: "TuneResult") -> Iterable[str]:
    """The closing lines of a run: what it reached, what was trained, where it is, what to do with it.

    Args:
        result: what `tune` returned.

    Example:
        >>> from pathlib import Path
        >>> from hadamard_adapter.tuning import TuneResult
        >>> list(summary(TuneResult(output=Path("out"), metrics={}, run={})))[0]
        'in       out'
    """
    score = _scores(result.metrics)
    if score:
        yield f"dev      {score}"
    trained = _trained(result.run)
    if trained:
        yield f"trained  {trained}"
    yield f"in       {result.output}"
    yield f"next     hadamard eval --adapter {result.output} --data FILE"
    yield f"         hadamard predict --adapter {result.output} --input FILE --output FILE"


def _scores(metrics: dict[str, Any]) -> str:
    raise NotImplementedError


def _trained(run: dict[str, Any]) -> str:
    raise NotImplementedError
