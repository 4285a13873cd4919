"""One run in a process of its own: `python -m hadamard_adapter.bench.worker JOB.json`.

A job is a JSON file with the run and the folder of results. Exit codes: 0 the record is written, 3 another
process is at this run, 2 an error that the user can mend (in one line on standard error).
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hadamard_adapter.bench.execute import execute
from hadamard_adapter.bench.results import Results
from hadamard_adapter.bench.run import Run
from hadamard_adapter.errors import HadamardError
from hadamard_adapter.files import write_json

__all__ = ["BUSY", "DONE", "MENDABLE", "Do", "do_job", "last_line", "main", "run_as_child", "write_job"]

DONE, MENDABLE, BUSY = 0, 2, 3

Do = Callable[[dict[str, Any], Results], bool]
"""A run as JSON, and the results that receive its record -> False where another process is at it."""


def write_job(name: str, run: Any, results: Results) -> Path:
    """The file that tells a worker what to do, with paths that hold from anywhere.

    Args:
        name: of the run.
        run: a dataclass, of any kind of spec.
        results: receives the record.
    """
    path = results.made("jobs") / f"{name}.json"
    write_json(path, {"run": dataclasses.asdict(run), "results": str(results.folder.absolute())})
    return path


def last_line(log: Path) -> str:
    """The last line that a worker wrote; empty where there is none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def do_job(path: str, do: Do = lambda run, results: execute(Run.from_json(run), results)) -> tuple[int, str]:
    """Do what a job says; the exit code, and the line of an error that the user can mend (else empty)."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        is_here = do(job["run"], Results(Path(job["results"])))
    except HadamardError as error:
        return MENDABLE, f"error: {' '.join(str(error).split())}"
    return (DONE if is_here else BUSY), ""


def main(path: str, *do: Do) -> int:
    """`do_job`, its line on standard error; returns the exit code."""
    code, line = do_job(path, *do)
    try:
        if line:
            print(line, file=sys.stderr, flush=True)
    except OSError:  # the log is on the disk that is full; what is buffered would fail again at the end
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
    return code


def run_as_child(path: str, log: str, environment: dict[str, str]) -> None:
    """Do what a job says in a process that `multiprocessing` began, and leave it with the exit code.

    Args:
        path: of the job.
        log: file that receives all that is written.
        environment: variables of this process alone; OMP_NUM_THREADS is its number of threads.
    """
    import torch

    os.environ |= environment
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # the library read the variable long ago
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(main(path))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
