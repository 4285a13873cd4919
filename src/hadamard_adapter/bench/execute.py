"""One run from its lock to its record: whoever executes it, where, and whatever becomes of it."""

import datetime
import errno
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hadamard_adapter.bench.results import Results
from hadamard_adapter.bench.run import (
    Run,
    data_of,
    identified,
    key_of,
    name_of,
    settings_of,
    work_of,
)
from hadamard_adapter.bench.train import Trained, refuse_unfit, train
from hadamard_adapter.errors import HadamardError, LoadError, TrainingError, is_out_of_memory
from hadamard_adapter.tasks import Examples, Task, data_fingerprint, score
from hadamard_adapter.tasks.metrics import checked_logits, decided
from hadamard_adapter.tuning.models import pick_device
from hadamard_adapter.tuning.report import (
    forget_peak_memory,
    peak_memory_mb,
    processor_name,
    versions,
)
from hadamard_adapter.tuning.resume import is_out_of_space

__all__ = ["execute"]

_AWAY = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE)
"""Of a disk that fails or is away for now, and of a process with too many files: no word on the method."""
ROOM_OF_A_PROCESS_GB = 1.0
"""Of a GPU, that a process takes beside its tensors, at most."""
RARE = 0.01
"""Predictions that name one class for all but this share of the rows have collapsed."""


def execute(run: Run, results: Results) -> bool:
    """Do one run and write its record; whether it was done here or before, not by another process just now.

    Args:
        run: what to do; one that is finished is left as it is.
        results: receives the record.

    Raises:
        TrainingError: the disk is full. There is no record, what is finished stays, and the run continues
            the next time.
        DataError, SettingsError: the rows or the model cannot be read.
    """
    return results.do_once(name_of(run), lambda work: _record(run, results, work))


def _record(run: Run, results: Results, work: Path) -> dict[str, Any]:
    """The record of a run that was done or failed; a run that was interrupted leaves a cancelled one."""
    started, started_at = time.perf_counter(), datetime.datetime.now(datetime.timezone.utc)
    is_resumed = any(entry.name != "lock" for entry in work.iterdir())
    rows, data = data_of(run)
    common = {
        **identified(run),
        "settings": key_of(run),
        "work": work_of(run),
        "started_at": started_at.isoformat(timespec="seconds"),
        "versions": versions(),  # of the code that is loaded: it may be another one at the end
    }
    settings = settings_of(run)
    device = pick_device(settings.device).type
    forget_peak_memory()  # of runs before this one, in the same process
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        refuse_unfit(run.method, settings, data)
        trained = train(run.method, settings, data, work)
        found = _found(run, trained, rows.task, rows.dev, results)
    except KeyboardInterrupt:
        results.cancel(name_of(run), common, "interrupted")
        raise
    except LoadError:  # a hub that is away for now: no word on the method
        raise
    except Exception as error:
        if is_out_of_space(error, work):
            raise  # `do_once` explains it
        if isinstance(error, OSError) and error.errno in _AWAY:
            raise LoadError(f"{name_of(run)}: {error}; once it is mended run the same again") from error
        is_of_gpu = isinstance(error, RuntimeError) and is_out_of_memory(error)  # else it is the host's
        if is_of_gpu and (others_gb := _held_by_others_gb()) > ROOM_OF_A_PROCESS_GB:
            raise LoadError(
                f"{name_of(run)}: {_told(error)}; other processes hold {others_gb:.0f} GB of the GPU: run "
                "the same again with fewer --workers, or when they are gone"
            ) from error
        found = {"status": "failed", "error": _told(error)}
    return {
        **common,
        **found,
        "seconds": round(time.perf_counter() - started, 2),
        **({"is_resumed": True} if is_resumed else {}),
        "peak_memory_mb": peak_memory_mb(),
        **({"peak_gpu_memory_mb": torch.cuda.max_memory_allocated() >> 20} if device == "cuda" else {}),
        "device": device,
        "machine": {"processor": processor_name(device), "threads": torch.get_num_threads()},
        "rows": {"train": len(data.train), "held_out": len(rows.held_out), "dev": len(rows.dev)},
    }


def _found(run: Run, trained: Trained, task: Task, dev: Examples, results: Results) -> dict[str, Any]:
    """What a training says; only a run whose score counts looks at dev, once, with its chosen epoch."""
    metric = task.metrics[0]
    found: dict[str, Any] = {
        "status": "done",
        "metric": metric,
        "score": trained.best["scores"][metric],
        "best": trained.best,
        "curve": trained.curve,
        "trained_parameters": trained.n_trained,
        "head_parameters": trained.n_head,
        "base_parameters": trained.n_base,
        "share_percent": 100 * trained.n_trained / trained.n_base,
    }
    _refuse_not_finite(metric, found["score"])
    _refuse_not_finite("loss", trained.best["dev_loss"])
    if run.purpose == "search":
        return found
    logits = trained.logits(dev.texts, dev.pairs)
    scores = score(task, logits, dev.labels or [])
    predicted = decided(task, checked_logits(task, logits))
    fingerprint = data_fingerprint(dev)
    _refuse_not_finite(metric, scores[metric])
    results.write_labels(fingerprint, _words(np.asarray(dev.labels)))
    return {
        **found,
        "score": scores[metric],
        "scores": scores,
        "predictions": _words(predicted),
        "dev_fingerprint": fingerprint,
        "is_collapsed": _is_collapsed(task, predicted, dev.labels or []),
        "layers": trained.layers,
    }


def _refuse_not_finite(name: str, value: float) -> None:
    if not np.isfinite(value):
        raise TrainingError(f"{name}: expected a finite number, received {value}; look for odd labels in dev")


def _told(error: Exception) -> str:
    """An error in one line; of one that nobody expected also where it came from."""
    line = f"{type(error).__name__}: {error}"
    if isinstance(error, HadamardError) or is_out_of_memory(error):
        return line
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{line} ({Path(frame.filename).name}:{frame.lineno}; perhaps a bug)"


def _held_by_others_gb() -> float:
    """GPU memory that is taken and not this process's tensors."""
    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free - torch.cuda.memory_reserved()) / 1e9


def _words(values: Any) -> str:
    """Numbers in one string, so that a record stays short to read."""
    return " ".join(f"{value:.9g}" for value in np.asarray(values, dtype=np.float64).ravel())


def _is_collapsed(task: Task, predicted: Any, labels: Any) -> bool:
    """Whether nearly all rows get the same prediction, where they have not the same label; numbers: next to
    the spread of the labels."""
    if task.problem_type == "regression":
        return bool(np.std(predicted) < RARE * np.std(labels))
    counts = (np.unique(rows, axis=0, return_counts=True)[1] for rows in (predicted, labels))
    most_predicted, most = (of.max() / len(predicted) for of in counts)
    return bool(most_predicted > 1 - RARE >= most)
