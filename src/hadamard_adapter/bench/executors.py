"""Where runs are done: in this process, in a pool of processes on this machine, or on a Slurm cluster."""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hadamard_adapter.bench.execute import execute
from hadamard_adapter.bench.results import Results
from hadamard_adapter.bench.run import Run, name_of
from hadamard_adapter.bench.worker import BUSY, DONE, do_job, last_line, run_as_child, write_job
from hadamard_adapter.errors import SettingsError, refuse_below

__all__ = ["Executor", "Started", "in_this_process", "on_slurm", "pool"]

MINUTES_A_JOB = 24 * 60
"""Of Slurm, where its environment names no limit; submitit would ask for five."""

LOST = 1
"""Stands for every way in which a cluster can lose a job."""


@runtime_checkable
class Started(Protocol):
    """A run that was started somewhere."""

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that ended it; None while it runs."""
        ...

    def stop(self) -> None:
        """End it; what it has done so far is continued by the next start."""
        ...

    def last_words(self) -> str:
        """The last line that it wrote, for a message; empty if there is none."""
        ...


@dataclass(frozen=True)
class Executor:
    """A place for runs."""

    n_slots: int
    """Runs at the same time, at most."""
    start: Callable[[Run, Results, int], Started]
    """Starts a run in a slot (0 to n_slots - 1)."""


@dataclass(frozen=True)
class _Over:
    """A run that was over when `start` returned."""

    code: int

    def poll(self) -> int | None:
        return self.code

    def stop(self) -> None:
        """Nothing runs."""

    def last_words(self) -> str:
        return ""


@dataclass(frozen=True)
class _Process:
    process: BaseProcess
    log: Path

    def poll(self) -> int | None:
        return self.process.exitcode

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()

    def last_words(self) -> str:
        return last_line(self.log)


@dataclass(frozen=True)
class _Submitted:
    job: Any
    """Of `do_job`."""

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        return LOST if self.job.exception() is not None else self.job.result()[0]

    def stop(self) -> None:
        self.job.cancel(check=False)

    def last_words(self) -> str:
        error = self.job.exception()
        if error is None:
            return self.job.result()[1]
        lines = str(error).strip().splitlines()
        return lines[-1] if lines else ""


def in_this_process() -> Executor:
    """One run after the other, here."""

    def start(run: Run, results: Results, slot: int) -> Started:
        return _Over(DONE if execute(run, results) else BUSY)

    return Executor(1, start)


def pool(n_workers: int) -> Executor:
    """A process a run, so that one that dies takes no other with it; each has its GPU or its share of cores.

    Where the system can, processes are forked from one that has imported everything and done nothing, which
    saves the seconds that imports take; where it cannot (Windows), each begins anew.

    Args:
        n_workers: runs at the same time.

    Raises:
        SettingsError: no worker.
    """
    refuse_below("workers", n_workers, 1)
    is_forked = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver") if is_forked else multiprocessing.get_context("spawn")
    context.set_forkserver_preload([run_as_child.__module__])

    def start(run: Run, results: Results, slot: int) -> Started:
        job = write_job(name_of(run), run, results)
        log = job.with_suffix(".log")
        process = context.Process(target=run_as_child, args=(str(job), str(log), _share(slot, n_workers)))
        process.start()
        return _Process(process, log)

    return Executor(n_workers, start)


def on_slurm(n_jobs: int, folder: Path, cluster: str | None = None) -> Executor:
    """A job of Slurm a run, by submitit (the extra `bench`); the results must be on a disk that nodes share.

    Slurm's own settings come from its environment: SBATCH_PARTITION, SBATCH_GPUS, SBATCH_TIMELIMIT (a day
    without it), ...

    Args:
        n_jobs: jobs in the queue at the same time.
        folder: for submitit's files and the jobs' logs.
        cluster: "local" runs jobs on this machine, as tests do; None: Slurm.

    Raises:
        SettingsError: no job, submitit is not installed, or there is no Slurm here; when a run starts, also
            that Slurm refuses its job.
    """
    refuse_below("workers", n_jobs, 1)
    try:
        import submitit
        from submitit.core.utils import FailedJobError
    except ImportError as error:
        raise SettingsError("executor slurm: needs submitit; pip install '.[bench]' in a clone") from error
    try:
        executor = submitit.AutoExecutor(folder=str(folder), cluster=cluster or "slurm")
    except RuntimeError as error:
        raise SettingsError(f"executor slurm: {error}; choose local or pool") from error

    def start(run: Run, results: Results, slot: int) -> Started:
        executor.update_parameters(name=f"hadamard-{run.method}", timeout_min=MINUTES_A_JOB)
        job = str(write_job(name_of(run), run, results))
        try:
            return _Submitted(executor.submit(do_job, job))
        except FailedJobError as error:  # sbatch said no
            said = " ".join(str(error).split())
            raise SettingsError(
                f"executor slurm: expected Slurm to take a job, but it said {said!r}; set what it lacks in "
                "the environment (SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT, ...), or choose pool"
            ) from error

    return Executor(n_jobs, start)


def _share(slot: int, n_workers: int) -> dict[str, str]:
    """Environment of a worker: one of this process's GPUs while there are several, and a share of the cores.

    What CUDA_VISIBLE_DEVICES lists here, numbers or UUIDs, is what may be given to workers.
    """
    import torch

    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = {"OMP_NUM_THREADS": str(max(1, n_cores // n_workers))}
    n_gpus = torch.cuda.device_count()
    if n_gpus < 2:
        return share
    listed = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(n_gpus)))
    gpus = listed.split(",")[:n_gpus]  # CUDA takes the list up to the first entry that is none
    return {**share, "CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)].strip()}
