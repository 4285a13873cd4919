"""The recipe: the head first, then the adapter, from a table of rows to a folder that is complete."""

import contextlib
import dataclasses
import functools
import gc
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hadamard_adapter.errors import DivergedError, SettingsError, option
from hadamard_adapter.files import expanded, filled, read_json, remove, remove_scrap, write_json
from hadamard_adapter.tasks import describe_columns, describe_task
from hadamard_adapter.tuning.data import TuneData, read_data, run_key
from hadamard_adapter.tuning.models import collator, pick_device, quiet_libraries
from hadamard_adapter.tuning.places import refuse_no_place
from hadamard_adapter.tuning.precision import placed
from hadamard_adapter.tuning.prefix import trained_below
from hadamard_adapter.tuning.processes import deterministic_on, processes_on
from hadamard_adapter.tuning.report import (
    count_parameters,
    metrics_of,
    peak_memory_mb,
    run_of,
    versions,
    write_report,
)
from hadamard_adapter.tuning.resume import (
    FINAL,
    check_output,
    disk_errors_explained,
    is_same_run,
    keys_begun,
    open_workspace,
    partial_of,
    publish,
)
from hadamard_adapter.tuning.search import Trial, as_lines, describe, trials_of, write_chosen
from hadamard_adapter.tuning.settings import TuneSettings, resolve
from hadamard_adapter.tuning.shared import coefficients_in, trained_offsets
from hadamard_adapter.tuning.shortcuts import shortcuts
from hadamard_adapter.tuning.stage import Progress, Stage
from hadamard_adapter.tuning.titles import STAGE_TITLES
from hadamard_adapter.tuning.training import run_stage
from hadamard_adapter.tuning.weights import WEIGHTS, load_weights
from hadamard_adapter.tuning.workbench import Say, Tokenized, Workbench, class_weights, set_up

__all__ = [
    "TuneResult",
    "do_stage",
    "done_folder",
    "make_stage",
    "resolved_for",
    "result_in",
    "say_nothing",
    "say_on_stderr",
    "set_masks",
    "tune",
    "workspace",
    "write_final",
]


@dataclass(frozen=True)
class TuneResult:
    """What a tuning run leaves."""

    output: Path
    """The folder of the adapter."""
    metrics: dict[str, Any]
    """Content of its metrics.json."""
    run: dict[str, Any]
    """Content of its run.json."""


def say_on_stderr(line: str) -> None:
    """Write one line for the user on standard error."""
    print(line, file=sys.stderr, flush=True)


def say_nothing(line: str) -> None:
    """Keep silent."""


def tune(
    settings: TuneSettings,
    say: Say = say_on_stderr,
    progress: Progress | None = None,
    data: TuneData | None = None,
) -> TuneResult:
    """Tune a classification head and a Hadamard adapter; leave a complete folder or none.

    Stage 1 trains the head on the frozen model. Stage 2 starts from its best epoch, freezes the head (or
    keeps training it, as the preset says) and trains scale, shift and norm. Killed at any moment, the same
    call continues and ends at the same adapter, bit for bit (on MPS, whose random state the Trainer does not
    keep, up to dropout). Several processes (`torchrun --nproc_per_node 2
    ...` or `accelerate launch --multi_gpu ...`; on CPUs with ACCELERATE_USE_CPU=true) share each step: n of
    them with batch b / n are one with batch b, but for an epoch's last step where b does not divide the rows:
    Accelerate fills it with rows from the epoch's beginning.

    Of several learning rates and seeds, a run that diverges is left out (in one process; of several, it ends
    the search).

    Args:
        settings: see `TuneSettings`.
        say: receives one line at a time for the user; silenced by `settings.quiet`.
        progress: told of every step and epoch, for a display.
        data: rows that are read already; None: those that the settings name.

    Returns:
        The output folder and what stands in its metrics.json and run.json.

    Raises:
        DataError: the rows are not as they must be.
        SettingsError: settings do not fit the model, the data, or what the output folder holds.
        TrainingError: the loss is not finite (of all runs), or the disk is full; the last complete checkpoint
            is kept.

    Example:
        >>> result = tune(TuneSettings("bert-base-uncased", "out", train="train.csv"))  # doctest: +SKIP
        >>> result.metrics["dev"]["accuracy"]  # doctest: +SKIP
        0.91
    """
    device = pick_device(settings.device)
    state = processes_on(device)
    if settings.quiet or not state.is_main_process:
        say = say_nothing
    progress = progress if state.is_main_process else None
    output = expanded(settings.output).absolute()
    if not os.path.exists(output):
        refuse_no_place("output", output)
    with quiet_libraries():
        data = read_data(settings) if data is None else data
        say(describe_task(data.task))
        if settings.task is None:
            say(describe_columns(data.columns))
        for line in (data.how_split, *data.notes):
            say(line)
        settings, key = _in_the_dtype_begun(settings, placed(settings), data, output, say)
        trials = trials_of(settings)
        work = _run if len(trials) == 1 else functools.partial(_search, trials)
        is_finished = check_output(output, key, settings.overwrite)
        state.wait_for_everyone()  # all have looked before one acts
        if is_finished:
            return _already_finished(output, key, say)
        refuse_no_place("output", output)
        with workspace(output, key, settings.overwrite):
            work(resolved_for(trials[0].settings, data), data, key, output, say, progress)
            state.wait_for_everyone()
    result = result_in(output)
    say(f"done: {output}")
    return result


def resolved_for(settings: TuneSettings, data: TuneData) -> TuneSettings:
    """The settings of one run, with what preset and number of rows decide filled in."""
    return resolve(settings, len(data.train.texts))


def _key_of(settings: TuneSettings, trials: list[Trial], data: TuneData) -> dict[str, Any]:
    """The key of a run; of a search the first run's, with all its learning rates and seeds."""
    key = run_key(resolved_for(trials[0].settings, data), data, PartialState().num_processes)
    if len(trials) == 1:
        return key
    own = {name: getattr(settings, name) for name in ("seeds", "scale_lr", "shift_lr", "norm_lr")}
    rates = settings.lr if isinstance(settings.lr, tuple) else (key["lr"],)
    return {**key, **own, "lr": list(rates)}


def _in_the_dtype_begun(
    given: TuneSettings, here: TuneSettings, data: TuneData, output: Path, say: Say
) -> tuple[TuneSettings, dict[str, Any]]:
    """The settings of a run and its key; the dtype in which it began, perhaps elsewhere, stays.

    Args:
        given: as the user gave them.
        here: with the device and the dtype that this machine chooses.
        data: the run's rows.
        output: the folder that it was begun for, perhaps.
        say: receives a line where the run goes on in another dtype than this machine's.
    """
    key, begun = _key_of(here, trials_of(here), data), keys_begun(output)
    dtypes = [one["dtype"] for one in begun if is_same_run(one, {**key, "dtype": one.get("dtype")})]
    if given.dtype != "auto" or given.overwrite or not dtypes or here.dtype in dtypes:
        return here, key
    dtype, again = dtypes[0], option("overwrite", "True")
    say(f"{dtype}, in which this run began, though here {here.dtype} is faster; {again} begins anew")
    return dataclasses.replace(here, dtype=dtype), {**key, "dtype": dtype}


@contextlib.contextmanager
def workspace(output: Path, key: dict[str, Any], overwrite: bool) -> Iterator[None]:
    """The work folder of an output, locked by the main process while the others work in it too."""
    state = PartialState()
    with contextlib.ExitStack() as stack:
        if state.is_main_process:
            stack.enter_context(open_workspace(output, key, overwrite))
        state.wait_for_everyone()
        stack.enter_context(disk_errors_explained(partial_of(output)))
        yield


def _search(
    trials: list[Trial],
    first: TuneSettings,
    data: TuneData,
    key: dict[str, Any],
    output: Path,
    say: Say,
    progress: Progress | None,
) -> None:
    """Whatever of runs, choice and publication an earlier, killed search has not done yet."""
    state, partial = PartialState(), partial_of(output)
    is_chosen = (partial / FINAL).is_dir()
    state.wait_for_everyone()  # all have looked before one publishes
    if not is_chosen:
        trials = [dataclasses.replace(trial, settings=resolved_for(trial.settings, data)) for trial in trials]
        outcomes: list[Path | str] = []
        tokenized: Tokenized = {}
        for number, trial in enumerate(trials, start=1):
            say(f"run {number} of {len(trials)}: lr {trial.settings.lr:g}, seed {trial.settings.seed}")
            content = key["model_content"]  # of one model, which is read once
            outcomes.append(_outcome_of(trial, data, content, partial, say, progress, tokenized))
            gc.collect()  # its model
        if all(isinstance(end, str) for end in outcomes):
            raise DivergedError(
                f"all {len(trials)} runs diverged, the last one: {outcomes[-1]}; expected a finite loss of "
                "one or more. Try lower learning rates, a longer warmup, or dtype float32, with overwrite"
            )
        if state.is_main_process:
            runs = describe(trials, outcomes)
            for line in as_lines(runs, data.dev_name):
                say(line)
            chosen = next(end for end, run in zip(outcomes, runs, strict=True) if run["is_chosen"])
            write_chosen(Path(chosen), runs, key, partial / FINAL)
    if state.is_main_process:
        publish(partial, output, key, first.overwrite)


def _outcome_of(
    trial: Trial,
    data: TuneData,
    content: str,
    partial: Path,
    say: Say,
    progress: Progress | None,
    tokenized: Tokenized,
) -> Path | str:
    """The folder of a run's result, trained unless it is there, or in words how the run diverged."""
    state, folder = PartialState(), partial / "runs" / trial.name
    key = run_key(trial.settings, data, state.num_processes, content)
    is_finished = check_output(folder, key, overwrite=True)
    state.wait_for_everyone()  # all have looked before one publishes
    if is_finished:
        return folder
    try:
        with workspace(folder, key, overwrite=True):
            _run(trial.settings, data, key, folder, say, progress, partial / "shared", tokenized)
            state.wait_for_everyone()
    except DivergedError as error:
        if state.num_processes > 1:  # the others wait for this one's gradients
            raise
        reason = str(error).partition(";")[0]
        say(f"it is left out: {reason}")
        return reason
    return folder


def _run(
    settings: TuneSettings,
    data: TuneData,
    key: dict[str, Any],
    output: Path,
    say: Say,
    progress: Progress | None,
    shared: Path | None = None,
    tokenized: Tokenized | None = None,
) -> None:
    """Whatever of stages, report and publication an earlier, killed run has not done yet."""
    state, partial = PartialState(), partial_of(output)
    is_trained = (partial / FINAL).is_dir()
    state.wait_for_everyone()  # all have looked before one publishes
    if not is_trained:
        bench = set_up(settings, data, partial, say, progress, shared, tokenized)
        for name in ("head", "adapter") if settings.stages == 2 else ("both",):
            do_stage(bench, name)
        if state.is_main_process:
            write_final(bench, key)
    if state.is_main_process:
        is_of_search = shared is not None  # whose folders lie in its own work folder
        publish(partial, output, key, settings.overwrite or is_of_search)


def do_stage(bench: Workbench, name: str) -> None:
    """Run one stage, or take its result from an earlier, killed run; the model then is at its best epoch."""
    state, done = PartialState(), done_folder(bench, name)
    set_masks(bench.model, bench.settings, name)
    if not done.is_dir():
        started = time.perf_counter()
        bench.model.to(state.device)
        content = {"base": bench.base_fingerprint, "max_length": bench.max_length}
        if below := trained_below(bench.model):
            content["below"] = below
        with deterministic_on(bench.model.device), shortcuts(
            bench.model, make_stage(bench, name), bench.settings, bench.data, content, _cache(bench),
            bench.say, bench.progress,
        ) as stage:  # fmt: skip
            cache_seconds = time.perf_counter() - started
            outcome = run_stage(
                bench.model, stage, bench.data.task, bench.settings, bench.partial / name, bench.progress
            )
        if state.is_main_process:
            seconds = {"seconds": outcome.seconds + cache_seconds, "cache_seconds": cache_seconds}
            entry = {"curve": outcome.curve, "best": outcome.best, **seconds}
            with filled(done) as folder:
                for file in ("adapter_config.json", WEIGHTS):
                    shutil.copyfile(outcome.checkpoint / file, folder / file)
                write_json(folder / "stage.json", entry)
    if state.is_main_process:
        remove(bench.partial / name)
        if bench.shared is None:
            remove_scrap(_cache(bench))
    state.wait_for_everyone()  # the result is there, the cache is gone
    load_weights(bench.model, done / WEIGHTS)
    best = read_json(done / "stage.json")["best"]
    scores = ", ".join(f"{metric} {value:.4f}" for metric, value in best["scores"].items())
    bench.say(f"{STAGE_TITLES[name]}: best epoch {best['epoch']} on {bench.data.dev_name}: {scores}")


def done_folder(bench: Workbench, name: str) -> Path:
    """Where the result of a stage stands; the head of stage 1 is the same for all learning rates."""
    if name == "head" and bench.shared is not None:
        return bench.shared / f"head-{bench.settings.seed}.done"
    return bench.partial / f"{name}.done"


def _cache(bench: Workbench) -> Path:
    return (bench.shared or bench.partial) / "cache"


def set_masks(model: Any, settings: TuneSettings, name: str) -> None:
    """Let train what a stage trains: the head, the adapter and maybe the head, or both.

    Raises:
        SettingsError: nothing would train.
    """
    config = model.peft_config["default"]
    config.freeze_adapter = name == "head"
    config.freeze_head = name == "adapter" and bool(settings.freeze_head)
    model.base_model.set_adapter(model.active_adapters)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SettingsError(
            f"{STAGE_TITLES[name]}: expected a head to train, found none in {settings.model!r}: its "
            "checkpoint lacks nothing, and it is not known where such a model keeps its head; use stages 1, "
            "which trains the adapter and leaves the head as it was loaded"
        )


def make_stage(bench: Workbench, name: str) -> Stage:
    """What a stage trains, on what and for how long."""
    settings, data = bench.settings, bench.data
    adapter = {"scale": settings.scale_lr, "shift": settings.shift_lr, "norm": settings.norm_lr}
    if settings.basis is not None:
        assert not isinstance(settings.lr, tuple)  # resolved
        adapter = dict.fromkeys(adapter, settings.lr)
    head_lr = settings.head_lr if name == "head" else settings.stage2_head_lr
    epochs = settings.head_epochs if name == "head" else settings.epochs
    batch_size = settings.head_batch_size if name == "head" else settings.batch_size
    assert epochs is not None and batch_size is not None  # resolved
    return Stage(
        name=name,
        epochs=epochs,
        batch_size=batch_size,
        rates={kind: float(rate or 0) for kind, rate in {**adapter, "head": head_lr}.items()},
        train=bench.train,
        dev=bench.dev,
        collate=collator(bench.tokenizer, data.task.problem_type),
        class_weights=class_weights(settings, data),
        micro_batch_tokens=settings.micro_batch_tokens,
    )


def write_final(bench: Workbench, key: dict[str, Any]) -> None:
    """Everything that the output folder will hold, under `final/`."""
    names = [name for name in ("head", "adapter", "both") if done_folder(bench, name).is_dir()]
    stages = {name: read_json(done_folder(bench, name) / "stage.json") for name in names}
    metrics = metrics_of(bench.data, stages, count_parameters(bench.model, bench.n_base, bench.basis))
    if bench.basis is not None:
        trained = {name: p.detach().cpu() for name, p in trained_offsets(bench.model).items()}
        own = coefficients_in(bench.basis.directions, trained)
        metrics["coefficients"] = [round(value, 6) for value in own.tolist()]
    run = run_of(bench.settings, bench.data, stages) | {
        "key": key,
        "max_length": bench.max_length,
        "n_truncated": bench.n_truncated,
        "base_fingerprint": bench.base_fingerprint,
        "peak_memory_mb": peak_memory_mb(),
        "versions": versions(),
    }
    with filled(bench.partial / FINAL) as folder:
        bench.model.save_pretrained(folder, save_embedding_layers=False)  # "auto" asks the hub
        bench.tokenizer.save_pretrained(folder)
        write_report(folder, metrics, run)
        if "head" in stages:
            _write_head(bench, run, folder / "head")


def _write_head(bench: Workbench, run: dict[str, Any], folder: Path) -> None:
    """Stage 1 by itself: untrained offsets and the tuned head, to be loaded like the whole result."""
    shutil.copytree(done_folder(bench, "head"), folder, ignore=shutil.ignore_patterns("stage.json"))
    bench.tokenizer.save_pretrained(folder)
    write_json(folder / "run.json", run)


def _already_finished(output: Path, key: dict[str, Any], say: Say) -> TuneResult:
    state, leftover = PartialState(), partial_of(output)
    if state.is_main_process and is_same_run(read_json(leftover / "settings.json"), key):
        with contextlib.suppress(SettingsError), open_workspace(output, key, overwrite=False):
            publish(leftover, output, key, overwrite=False)  # unless another process is at it
    state.wait_for_everyone()
    say(f"finished already, with these settings: {output}")
    return result_in(output)


def result_in(output: Path) -> TuneResult:
    """What a finished run has left in its output folder."""
    return TuneResult(output, read_json(output / "metrics.json"), read_json(output / "run.json"))
