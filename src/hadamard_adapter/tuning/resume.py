"""Nothing lost, nothing half-written: the work folder of a run, its sealed checkpoints, the publication.

A run works in `<output>.partial/` and the output path appears by one rename when all is done.

    <output>.partial/
        lock            held (flock) while a process works here
        settings.json   the run's key: what must be equal for a result to be equal, up to rounding
        head/           the Trainer's checkpoints of stage 1; one counts only with its manifest.json
        cache/          what the frozen layers put out, while a stage runs
        head.done/      the best epoch of stage 1; appears by a rename when the stage is over
        adapter/        stage 2, likewise
        adapter.done/
        runs/           of several learning rates or seeds: each run's result, and its work folder before
        shared/         what these runs share: cache/, and head-<seed>.done/ as head.done/ above
        final/          the result, complete; appears by a rename, then moves to the output path

Any moment is a good moment to be killed: the manifest is written last; what has none, and every `*.tmp`, is
deleted at the next start, and training continues from the last sealed checkpoint and its random states.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hadamard_adapter.errors import SettingsError, TrainingError, option
from hadamard_adapter.files import (
    entries,
    file_sha256,
    fsync,
    is_kept,
    is_no_space,
    locked,
    read_json,
    remove,
    remove_scrap,
    write_json,
)

__all__ = [
    "FINAL",
    "HOW",
    "MANIFEST",
    "check_output",
    "disk_errors_explained",
    "is_out_of_space",
    "is_same_run",
    "keys_begun",
    "last_sealed",
    "open_workspace",
    "partial_of",
    "prune",
    "publish",
    "seal",
    "step_of",
]

MANIFEST = "manifest.json"
FINAL = "final"
RESULT_FILES = ("metrics.json", "adapter_model.safetensors")
"""Of a finished run, beside its run.json."""
_REPLACED = "replaced"
CONTINUES = "free some and run the same command again: it continues from the last complete checkpoint"
_KNOWN = re.compile(
    r"\.nfs\w+|lock|replaced|cache|runs|shared|settings\.json|((head|adapter|both)(\.done)?|final)(\.tmp)?"
    r"|\.(settings\.json|(head|adapter|both)\.done|final)\.\w+\.tmp"
)


HOW = ("gradient_checkpointing", "cache_gb", "micro_batch_tokens", "torch_compile")
"""Settings of time and memory: of a result they change rounding, and what dropout draws, and nothing else."""


def partial_of(output: Path) -> Path:
    """The work folder beside an output folder."""
    return output.with_name(output.name + ".partial")


def is_same_run(found: Any, key: dict[str, Any]) -> bool:
    """Whether two keys are of one run; how its numbers are computed may differ.

    Example:
        >>> is_same_run({"lr": 0.1, "cache_gb": 8.0}, {"lr": 0.1, "cache_gb": 0.0})
        True
    """
    return isinstance(found, dict) and _without_how(found) == _without_how(key)


def keys_begun(output: Path) -> list[dict[str, Any]]:
    """The keys of the runs that a folder is of: that which is finished, that which is not."""
    run, begun = read_json(output / "run.json"), read_json(partial_of(output) / "settings.json")
    found = [run.get("key") if isinstance(run, dict) else None, begun]
    return [key for key in found if isinstance(key, dict)]


def check_output(output: Path, key: dict[str, Any], overwrite: bool) -> bool:
    """Whether the output folder holds the finished result of just this run, whole.

    Raises:
        SettingsError: it holds something that is not ours (even with overwrite), or without overwrite the
            result of other settings.
    """
    if not output.exists() or (output.is_dir() and not entries(output)):
        return False
    run = read_json(output / "run.json") if output.is_dir() else None
    if not (isinstance(run, dict) and "key" in run):
        raise SettingsError(
            f"output {str(output)!r} holds something else (no run.json of ours); expected a new path, an "
            "empty folder or an earlier result; nothing there was touched: pass another output"
        )
    are_there = all((output / name).is_file() for name in RESULT_FILES)
    is_whole = "pruned" not in run and are_there and isinstance(read_json(output / "metrics.json"), dict)
    is_this = is_same_run(run["key"], key)
    if is_this and is_whole:
        return True
    if not overwrite:
        found = f"the result of other settings ({_differences(run['key'], key)})"
        if is_this:
            found = "of this run a part alone (pruned, stage 1, or with files missing)"
        raise SettingsError(
            f"output {str(output)!r} holds {found}; "
            f"pass another output, or {option('overwrite', 'True')} to replace it"
        )
    return False


@contextlib.contextmanager
def open_workspace(output: Path, key: dict[str, Any], overwrite: bool) -> Iterator[Path]:
    """The locked work folder of a run, cleaned of everything half-written.

    Args:
        output: the folder that the run will publish.
        key: what must be equal for the same result; a work folder with another key is refused.
        overwrite: whether a work folder with another key is emptied instead.

    Raises:
        SettingsError: another process works there, or it belongs to other settings, or it is not ours.
    """
    partial = partial_of(output)
    partial.mkdir(parents=True, exist_ok=True)
    is_left = False
    with locked(partial):
        strange = [entry.name for entry in entries(partial) if not _KNOWN.fullmatch(entry.name)]
        if strange:
            raise SettingsError(
                f"work folder {str(partial)!r} holds something else ({strange[0]!r}); "
                f"remove {str(partial / strange[0])!r} or pass another output"
            )
        is_begun = bool({entry.name for entry in entries(partial)} - {"lock", "settings.json"})
        found = read_json(partial / "settings.json") if is_begun else None
        if found is not None and not is_same_run(found, key):
            if not overwrite:
                raise SettingsError(
                    f"{str(partial)!r} holds an unfinished run of other settings "
                    f"({_differences(found, key)}); pass the same settings to continue it, another "
                    f"output, or {option('overwrite', 'True')} to drop it"
                )
            found = None
        for entry in partial.iterdir():
            if entry.name != "lock" and (found is None or entry.name.endswith(".tmp")):
                remove(entry)
        if found is None:
            write_json(partial / "settings.json", key)
        try:
            yield partial
        except Exception:
            for name in ("runs", "shared"):
                if not any(path.is_file() and is_kept(path) for path in (partial / name).rglob("*")):
                    remove(partial / name)
            if partial.is_dir() and {entry.name for entry in entries(partial)} <= {"lock", "settings.json"}:
                remove(partial)  # nothing was trained yet: a corrected command starts afresh
            raise
        is_left = partial.is_dir()
    if is_left:
        with contextlib.suppress(OSError):  # on NFS the lock's file went when it was closed
            partial.rmdir()


def seal(checkpoint: Path, seconds: float) -> None:
    """Declare a checkpoint complete: write the manifest of its files, after all of them.

    Args:
        checkpoint: folder that the Trainer wrote.
        seconds: training time of the stage up to here; a resumed run counts on from it.
    """
    files = {
        str(path.relative_to(checkpoint)): {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }
    for name in files:
        fsync(checkpoint / name)
    write_json(checkpoint / MANIFEST, {"files": files, "seconds": seconds})


def last_sealed(stage_folder: Path) -> Path | None:
    """The newest complete checkpoint of a stage; every incomplete one is deleted."""
    if not stage_folder.is_dir():
        return None
    sealed: list[Path] = []
    for entry in stage_folder.iterdir():
        if entry.name.startswith("checkpoint-") and _is_intact(entry):
            sealed.append(entry)
        else:
            remove(entry)
    return max(sealed, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The step at which a checkpoint was written, from its name."""
    return int(checkpoint.name.split("-")[-1])


def prune(stage_folder: Path, keep: set[str]) -> None:
    """Delete the checkpoints of a stage but those whose names are given.

    The manifest goes first, so that a checkpoint killed half-way through its removal does not count.
    """
    for entry in stage_folder.glob("checkpoint-*"):
        if entry.name not in keep:
            (entry / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(entry)


def publish(partial: Path, output: Path, key: dict[str, Any], overwrite: bool) -> None:
    """Move the complete result to the output path and remove the work folder.

    An earlier result there steps aside first; killed in between, the same command finds `final/` and goes on.

    Args:
        partial: the work folder, locked.
        output: where the result goes.
        key: of the run.
        overwrite: whether it may take the place of another run's result.

    Raises:
        SettingsError: since the run began something came to the output path that must not be replaced; the
            result stays in the work folder.
    """
    if (partial / FINAL).is_dir():
        try:
            check_output(output, key, overwrite)
        except SettingsError as error:
            raise SettingsError(
                f"output {str(output)!r} was filled by something else while this run trained; its result is "
                f"complete and waits in {str(partial / FINAL)!r}: move away what is there and run the same "
                "command again"
            ) from error
        if output.exists():
            remove(partial / _REPLACED)
            os.rename(output, partial / _REPLACED)
        os.rename(partial / FINAL, output)
        fsync(output.parent)
    # The settings go last: without them the rest of the folder would be deleted anyway.
    for entry in sorted(partial.iterdir(), key=lambda entry: entry.name in ("settings.json", "lock")):
        remove_scrap(entry)
    remove_scrap(partial)


@contextlib.contextmanager
def disk_errors_explained(partial: Path, advice: str = CONTINUES) -> Iterator[None]:
    """Turn "no space left", in whatever form it comes, into a TrainingError that says what was kept.

    PyTorch's and safetensors' writers raise errors of their own, hence the search through texts and causes.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_space(error, partial):
            raise
        raise TrainingError(f"no space left on the disk of {str(partial)!r}; {advice}") from error


def is_out_of_space(error: BaseException | None, partial: Path) -> bool:
    """Whether an error, or what caused it, says that the disk of a folder is full."""
    while error is not None:
        if is_no_space(error):
            return True
        is_torch_writer = "PytorchStreamWriter" in str(error) or "inline_container" in str(error)
        if is_torch_writer and shutil.disk_usage(partial).free < 1 << 22:
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_intact(checkpoint: Path) -> bool:
    manifest = read_json(checkpoint / MANIFEST)
    if not isinstance(manifest, dict):
        return False
    for name, entry in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != entry["size"] or file_sha256(path) != entry["sha256"]:
            return False
    return True


def _without_how(key: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in key.items() if name not in HOW}


def _differences(found: Any, wanted: dict[str, Any]) -> str:
    found, wanted = _without_how(found if isinstance(found, dict) else {}), _without_how(wanted)
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    shown = [f"{name} {found.get(name)!r} there, {wanted.get(name)!r} now" for name in names[:4]]
    return "; ".join(shown) + ("; ..." if len(names) > 4 else "")
