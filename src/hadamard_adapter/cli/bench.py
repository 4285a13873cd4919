"""`hadamard bench`: run an experiment, or say what it would run and for how long."""

import contextlib
import dataclasses
import signal
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from hadamard_adapter.cli.console import message_console
from hadamard_adapter.cli.hub import stay_offline_without_hub
from hadamard_adapter.cli.options import command_from
from hadamard_adapter.errors import SettingsError, TrainingError
from hadamard_adapter.files import expanded

if TYPE_CHECKING:
    from rich.console import Console

    from hadamard_adapter.bench.executors import Executor
    from hadamard_adapter.bench.plan import Records
    from hadamard_adapter.bench.results import Results
    from hadamard_adapter.bench.schedule import Outcome
    from hadamard_adapter.bench.spec import Spec
    from hadamard_adapter.bench.speed import SpeedSpec
    from hadamard_adapter.bench.speed.run import SpeedRun

    S = TypeVar("S", Spec, SpeedSpec)

__all__ = ["BenchOptions", "bench_command"]


@dataclass(frozen=True)
class BenchOptions:
    """The options of `hadamard bench`."""

    spec: str = field(metadata={"argument": "SPEC"})
    """TOML file: models, tasks, methods, seeds and the search of learning rates; or a spec of the package."""
    plan: bool = False
    """Whether to print what would run, with an estimate of time from what ran, and to run nothing."""
    executor: Literal["local", "pool", "slurm"] = "local"
    """local: in this process, one after the other; pool: a process a run; slurm: a job a run."""
    workers: int | None = None
    """Runs at the same time, for pool and slurm; with several GPUs, one each. None: 2."""
    results: str | None = None
    """Folder of results; runs that are there, of any spec, are not run again. None: results/bench, for speed
    and speed-mpnet results/speed, for another spec of speed results/ and its name."""
    model: str | None = None
    """Where the spec's model is on this machine, for a spec of one model."""
    data: str | None = None
    """Where the folder of GLUE is on this machine."""
    purpose: Literal["all", "search", "score", "memory", "curve", "pace", "growth"] = "all"
    """Which runs: all, or those of one purpose. search, score: learning rates, or what has its rate; others
    are of specs of speed, whose curves may run beside other work on a processor: own time counts."""
    quiet: bool = False
    """Whether to say nothing but errors."""


@command_from("bench", BenchOptions)
def bench_command(options: BenchOptions) -> None:
    """Run an experiment: methods side by side, one JSON file a run.

    The same command again continues: what is finished is not run again, and a run that was killed goes on
    from its last checkpoint. Learning rates are searched on rows held out of train, never on dev.

    `hadamard bench speed` measures speed: dev score against seconds of training for `tune`, full
    fine-tuning, LoRA, IA3 and LN-tuning, memory, and how cost grows; each run alone, in a fresh process.
    speed and speed-mpnet come with the package.

    \b
    Example:
      hadamard bench experiments/quick.toml --plan
      hadamard bench speed --data glue --plan
      hadamard bench experiments/quick.toml --results results/quick
      hadamard bench experiments/bert-base.toml --executor pool --workers 8
    """
    from hadamard_adapter.bench.plan import due
    from hadamard_adapter.bench.results import Results
    from hadamard_adapter.bench.schedule import run_all
    from hadamard_adapter.bench.spec import read_spec
    from hadamard_adapter.bench.speed import find_spec, kind_of, read_speed
    from hadamard_adapter.cli.board import BenchBoard

    console, path = message_console(options.quiet), find_spec(options.spec)
    is_speed = kind_of(path) == "speed"
    _check_options(options, is_speed)
    results = Results(expanded(options.results or _usual_results(path, is_speed)))
    results.records()
    for name, problem in results.problems.items():
        console.print(f"{name}: {problem}")
    if is_speed:
        _speed(path, read_speed(path), results, options, console)
        return
    asked = read_spec(path)
    spec = _placed(asked, options)
    if options.plan:
        _print_plan(spec, results, options.purpose)
        return
    executor = _executor(options, results)
    due(spec, results.records())  # refuses a model or rows that are not there, before anything is kept
    _print_notes(spec, console)
    _keep_spec(path, asked, spec, results, console)
    with (
        _ended_by_sigterm_as_by_ctrl_c(),
        BenchBoard(spec, console, executor.n_slots, options.purpose) as board,
    ):
        outcome = run_all(spec, results, executor, board, console.print, options.purpose)
    _tell(outcome, results, console, _failed_before(spec, results) - outcome.failed.keys())


def _usual_results(path: Path, is_speed: bool) -> str:
    """The folder of a spec's results where none is named: those of methods share one, and the package's."""
    from hadamard_adapter.bench.speed import PACKED

    if not is_speed:
        return "results/bench"
    return "results/speed" if path.resolve().parent == PACKED.resolve() else f"results/{path.stem}"


def _check_options(options: BenchOptions, is_speed: bool) -> None:
    """Refuse options that a spec of this kind has no use for."""
    from hadamard_adapter.bench.speed import PURPOSES

    if is_speed and options.executor != "local":
        raise SettingsError(
            f"--executor: expected local for a spec of speed, whose runs must not take time from each other, "
            f"received {options.executor}; leave it out"
        )
    if options.executor == "local" and options.workers is not None:
        advice = "leave it out" if is_speed else "pass --executor pool (or slurm), or leave it out"
        raise SettingsError(f"--workers: these runs are done one after the other; {advice}")
    purposes = PURPOSES if is_speed else ("search", "score")
    if options.purpose not in ("all", *purposes):
        raise SettingsError(
            f"--purpose: {options.spec} has runs of {', '.join(purposes)}, received {options.purpose}"
        )


def _keep_spec(path: Path, asked: "S", spec: "S", results: "Results", console: "Console") -> None:
    """Keep a copy of the spec beside its results; say so where another of its name or title is there."""
    from hadamard_adapter.bench.spec import model_name

    model = model_name(spec.models[0])
    if model == model_name(asked.models[0]):
        model = None
    is_other = results.is_other_spec(path, model)
    kept = results.keep_spec(path, model)
    if kept.name != path.name:
        console.print(
            f"{path.name}: another experiment of this name was run into {results.folder}; this one is "
            f"kept there as specs/{kept.name}"
        )
    if is_other:
        console.print(
            f"{path.name}: not what was run into {results.folder} under this title the last time; the copy "
            "in specs/ is replaced, and the report asks for what this one asks for"
        )


@contextlib.contextmanager
def _ended_by_sigterm_as_by_ctrl_c() -> Iterator[None]:
    """Within it SIGTERM, which schedulers and `timeout` send, ends runs and workers too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _placed(spec: "S", options: BenchOptions) -> "S":
    """The spec with its model and data where they are on this machine; asks no hub where there is none."""
    changes: dict[str, Any] = {} if options.data is None else {"data": options.data}
    if options.model is not None:
        if len(spec.models) > 1:
            raise SettingsError(
                f"--model: expected a spec of one model, {options.spec} has {len(spec.models)}"
            )
        changes["models"] = (options.model,)
    placed = dataclasses.replace(spec, **changes)
    stay_offline_without_hub([*placed.models])
    return placed


def _speed(
    path: Path, asked: "SpeedSpec", results: "Results", options: BenchOptions, console: "Console"
) -> None:
    from hadamard_adapter.bench.speed.plan import missing, runs_of
    from hadamard_adapter.bench.speed.schedule import run_missing

    spec = _placed(asked, options)
    runs = [run for run in runs_of(spec) if options.purpose in ("all", run.purpose)]
    if options.plan:
        _print_speed_plan(runs, results.records())
        return
    missing(runs, results.records())  # refuses a model or rows that are not there, before anything is kept
    _keep_spec(path, asked, spec, results, console)
    with _ended_by_sigterm_as_by_ctrl_c():
        outcome = run_missing(runs, results, console.print)
    _tell(outcome, results, console)


def _print_notes(spec: "Spec", console: "Console") -> None:
    """What may mislead in the rows of each task, as `tune` says it."""
    from hadamard_adapter.bench.rows import read_rows

    for task in spec.tasks:
        for note in read_rows(task, spec.data).notes:
            console.print(f"{task.name}: {note}")


def _failed_before(spec: "Spec", results: "Results") -> set[str]:
    """Names of the runs of a spec that have failed."""
    from hadamard_adapter.bench.plan import cells_of, state_of

    records = results.records()
    names = {name for cell in cells_of(spec) for name in state_of(cell, records).finished}
    return {name for name in names if records[name]["status"] == "failed"}


def _tell(
    outcome: "Outcome", results: "Results", console: "Console", failed_before: Set[str] = frozenset()
) -> None:
    """How a bench ended; runs that were lost are an error, and so is that none went well."""
    console.print(f"done: {outcome.n_done} runs now, {len(results.records())} records in {results.folder}")
    if failed_before:
        console.print(f"failed before: {len(failed_before)}; they stay so until their files are removed")
    if outcome.failed:
        console.print(f"failed: {len(outcome.failed)}; they stay so until their files are removed")
        if not outcome.n_done and not outcome.lost:
            name, error = next(iter(outcome.failed.items()))
            raise TrainingError(f"all {len(outcome.failed)} runs failed, the first one {name}: {error}")
    if outcome.lost:
        name, how = next(iter(outcome.lost.items()))
        raise TrainingError(
            f"{len(outcome.lost)} runs were lost, the first one {name}: {how}; the same command runs them "
            "again"
        )


def _executor(options: BenchOptions, results: "Results") -> "Executor":
    from hadamard_adapter.bench.executors import in_this_process, on_slurm, pool

    n_workers = 2 if options.workers is None else options.workers
    if options.executor == "pool":
        return pool(n_workers)
    if options.executor == "slurm":
        return on_slurm(n_workers, results.made("jobs"))
    return in_this_process()


def _print_plan(spec: "Spec", results: "Results", purpose: str) -> None:
    """A line for each cell, then the sum."""
    from hadamard_adapter.bench.plan import cells_of, state_of, total_seconds
    from hadamard_adapter.bench.spec import model_name
    from hadamard_adapter.cli.board import duration
    from hadamard_adapter.tasks.reading import plural
    from hadamard_adapter.tuning.report import libraries, versions

    records, runs, finished = results.records(), list[Any](), list[str]()
    for cell in cells_of(spec):
        state = state_of(cell, records)
        finished += state.finished
        left = state.left(purpose)
        runs += left
        seconds, n_unknown = total_seconds(left, records)
        time = "unknown" if n_unknown else f"about {duration(seconds)}"
        n_search = sum(run.purpose == "search" for run in left)
        what = f"{n_search} of a search, then {len(left) - n_search}" if n_search else f"{len(left)}"
        rate = "" if state.lr is None else f" at {state.lr:g}"
        rate += f", {state.epochs} epochs" if cell.task.search_epochs and state.epochs else ""
        name = f"{model_name(cell.model)} {cell.task.name} {cell.method}"
        n_failed = sum(records[run]["status"] == "failed" for run in state.finished)
        ended = f"{len(state.finished)} finished" + (f" ({n_failed} failed)" if n_failed else "")
        print(f"{name}: {ended}; to run: {what}{rate}" + (f"; {time}" if left else ""))
    seconds, n_unknown = total_seconds(runs, records)
    known = f"{len(runs) - n_unknown} of them take about {duration(seconds)} one after the other"
    print(f"{len(runs)} runs; {known}, {n_unknown} are of unknown length")
    here = libraries(versions())
    others = Counter(libraries(records[name].get("versions") or {}) for name in finished)
    for there, count in sorted(others.items()):
        if there not in ("", here):
            print(f"{plural(count, 'finished run')} had {there}; here is {here}: they stand in one row")


def _print_speed_plan(runs: "list[SpeedRun]", records: "Records") -> None:
    """A line for each model, task, variant and purpose, then the sum."""
    from hadamard_adapter.bench.spec import model_name
    from hadamard_adapter.bench.speed.plan import missing, total_seconds
    from hadamard_adapter.cli.board import duration

    groups: dict[tuple[str, ...], list[SpeedRun]] = {}
    for run in runs:
        rows = run.task.name if run.purpose != "growth" else f"{run.task.name} {run.axis}"
        groups.setdefault((model_name(run.model), rows, run.variant, run.purpose), []).append(run)
    for key, members in groups.items():
        left = missing(members, records)
        seconds, n_unknown = total_seconds(left, records)
        time = "unknown" if n_unknown else f"about {duration(seconds)}"
        rates = ", ".join(sorted({f"{run.lr:g} ({run.rate_from})" for run in members}))
        rate = f" at {rates}" if key[-1] == "curve" else ""
        finished = f"{len(members) - len(left)} finished; to run: {len(left)}"
        print(f"{' '.join(key)}: {finished}{rate}" + (f"; {time}" if left else ""))
    left = missing(runs, records)
    seconds, n_unknown = total_seconds(left, records)
    known = f"{len(left) - n_unknown} of them take about {duration(seconds)}"
    print(f"{len(left)} runs, one after the other; {known}, {n_unknown} are of unknown length")
