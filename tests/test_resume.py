"""A run may be killed at any moment: nothing half-written is seen, and the same call ends at the same bytes.

Every run is a process of its own, forked from a server that has loaded the libraries, and killed by SIGKILL.
"""

import contextlib
import errno
import multiprocessing
import os
import random
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import peft_model

from hadamard_adapter import files
from hadamard_adapter.errors import SettingsError, TrainingError
from hadamard_adapter.files import read_json
from hadamard_adapter.tuning import Progress, prefix, recipe, resume, training
from hadamard_adapter.tuning.precision import pick_dtype
from tuning_help import Sees, Stop, adapter_sha256, lay_out, silent, tiny_folder, tiny_tune, write_rows

N_CHAINS, N_KILLS = 5, 4
SETTINGS: dict[str, Any] = {"grad_accumulation": 2, "batch_size": 4, "layers": (1,), "dtype": "bfloat16"}
VISIBLE = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "metrics.json",
    "run.json",
    "curve.png",
    "README.md",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model that has dropout, so that random states count, and rows."""
    rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.1)
    return lay_out(tmp_path_factory.mktemp("resume"), 48, **rates)


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """Starts processes that have the libraries loaded and one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv(
            "PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep
        )  # older Pythons' server does not get our sys.path
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tuning_help"])
        first = context.Process(target=silent, args=("the server has started",))
        first.start()
        first.join()
        yield context


@pytest.fixture(scope="module")
def whole(place: Path, server: Any) -> tuple[str, float]:
    """The adapter of a run that nobody disturbs, and how long it takes."""
    start = time.perf_counter()
    run_in_process(server, place, place / "whole").join()
    return adapter_sha256(place / "whole"), time.perf_counter() - start


def run_in_process(server: Any, place: Path, output: Path, moment: str | None = None, **more: Any) -> Any:
    process = server.Process(target=run_until, args=(place, output, moment, more))
    process.start()
    return process


def run_until(place: Path, output: Path, moment: str | None, more: dict[str, Any]) -> None:
    if moment is not None:
        MOMENTS[moment]()
    settings = {**SETTINGS, "dev": str(place / "dev.csv"), **more}
    tiny_tune(place / "model", output, place / "train.csv", **settings)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_around(owner: Any, name: str, count: int, is_after: bool, half: bool = False) -> None:
    """Replace a function in this (forked) process by one that dies at its `count`-th call."""
    original, calls = getattr(owner, name), [0]

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == count and not is_after and not half:
            die()
        result = original(*args, **kwargs)
        if calls[0] == count:
            if half:
                path = next(Path(value) for value in args if isinstance(value, (str, Path)))
                os.truncate(path, path.stat().st_size // 2)
            die()
        return result

    setattr(owner, name, dying)


def die_at_complete(name: str, is_after: bool) -> None:
    original = files.complete

    def dying(temporary: Path, target: Path) -> None:
        if target.name == name and not is_after:
            die()
        original(temporary, target)
        if target.name == name:
            die()

    files.complete = dying


MOMENTS: dict[str, Callable[[], None]] = {
    "while the frozen layers are computed": lambda: die_around(np.lib.format, "open_memmap", 1, True),
    "while those of stage 2 are": lambda: die_around(np.lib.format, "open_memmap", 3, True),
    "between the two files of the frozen layers": lambda: die_around(prefix, "write_json", 1, True),
    "in the adapter file of a checkpoint": lambda: die_around(
        peft_model, "safe_save_file", 2, False, half=True
    ),
    "in the optimizer file of a checkpoint": lambda: die_around(torch, "save", 5, False, half=True),
    "before a checkpoint's manifest": lambda: die_around(resume, "fsync", 10, False),
    "in the removal of an old checkpoint": lambda: die_around(shutil, "rmtree", 2, False),
    "before the change of stage": lambda: die_at_complete("head.done", False),
    "after the change of stage": lambda: die_at_complete("head.done", True),
    "before the end of stage 2": lambda: die_at_complete("adapter.done", False),
    "while the report is written": lambda: die_around(recipe, "write_report", 1, True),
    "before the result is complete": lambda: die_at_complete("final", False),
    "after the result is complete": lambda: die_at_complete("final", True),
    "at the start of the publication": lambda: die_around(recipe, "publish", 1, False),
    "after the publication's rename": lambda: die_around(resume, "remove_scrap", 1, False),
}


def assert_continues(server: Any, place: Path, output: Path, expected: str, **more: Any) -> None:
    if output.exists():
        assert {path.name for path in output.iterdir()} >= VISIBLE, "a half-written result is visible"
    process = run_in_process(server, place, output, **more)
    process.join()
    assert process.exitcode == 0
    assert adapter_sha256(output) == expected
    assert not resume.partial_of(output).exists()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_a_named_moment_ends_at_the_same_adapter(
    moment: str, place: Path, server: Any, whole: tuple[str, float], tmp_path: Path
) -> None:
    process = run_in_process(server, place, tmp_path / "out", moment)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the moment never came"
    assert_continues(server, place, tmp_path / "out", whole[0])


SEARCH: dict[str, Any] = {"lr": (0.003, 0.03), "seeds": 2, "epochs": 1, "head_epochs": 1}


@pytest.fixture(scope="module")
def whole_search(place: Path, server: Any) -> str:
    """The adapter that a search chooses which nobody disturbs."""
    run_in_process(server, place, place / "whole search", **SEARCH).join()
    return adapter_sha256(place / "whole search")


@pytest.mark.parametrize(
    "moment",
    [
        "while the frozen layers are computed",
        "between the two files of the frozen layers",
        "before the end of stage 2",
        "while the report is written",
        "at the start of the publication",
        "before the result is complete",
    ],
)
def test_a_search_killed_at_a_named_moment_chooses_the_same_adapter(
    moment: str, place: Path, server: Any, whole_search: str, tmp_path: Path
) -> None:
    process = run_in_process(server, place, tmp_path / "out", moment, **SEARCH)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the moment never came"
    assert_continues(server, place, tmp_path / "out", whole_search, **SEARCH)


@pytest.mark.parametrize("chain", range(N_CHAINS))
def test_a_run_killed_at_random_moments_again_and_again_ends_at_the_same_adapter(
    chain: int, place: Path, server: Any, whole: tuple[str, float], tmp_path: Path
) -> None:
    chance = random.Random(chain)
    for _ in range(N_KILLS):
        process = run_in_process(server, place, tmp_path / "out")
        process.join(chance.uniform(0, 0.7 * whole[1]))
        process.kill()
        process.join()
    assert_continues(server, place, tmp_path / "out", whole[0])


def test_a_second_process_cannot_write_into_a_run(tmp_path: Path) -> None:
    with (
        resume.open_workspace(tmp_path / "out", {"seed": 0}, False),
        pytest.raises(SettingsError, match="another run"),
        resume.open_workspace(tmp_path / "out", {"seed": 0}, False),
    ):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_goes_without(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refused)
    with files.locked(tmp_path):
        pass


def test_a_file_system_that_syncs_no_folders_keeps_what_is_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def refused(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refused)
    with files.filled(tmp_path / "out") as folder:
        (folder / "a").write_text("whole")
    assert (tmp_path / "out" / "a").read_text() == "whole"


def test_an_unfinished_run_of_other_settings_is_refused_unless_overwritten(tmp_path: Path) -> None:
    with resume.open_workspace(tmp_path / "out", {"seed": 0}, False) as partial:
        (partial / "head").mkdir()
    with (
        pytest.raises(SettingsError, match="seed 0 there, 1 now"),
        resume.open_workspace(tmp_path / "out", {"seed": 1}, False),
    ):
        pass
    assert (partial / "head").exists()
    with resume.open_workspace(tmp_path / "out", {"seed": 1}, True):
        assert not (partial / "head").exists()


def test_a_run_goes_on_with_less_memory_and_beside_what_file_managers_leave(tmp_path: Path) -> None:
    with resume.open_workspace(tmp_path / "out", {"seed": 0, "cache_gb": 8.0}, False) as partial:
        (partial / "head").mkdir()
    for name in (".DS_Store", "desktop.ini", "._head"):
        (partial / name).write_text("of a file manager")
    less = {"seed": 0, "cache_gb": 0.0, "gradient_checkpointing": True, "micro_batch_tokens": 64}
    with resume.open_workspace(tmp_path / "out", less, False):
        assert (partial / "head").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").touch()
    assert not resume.check_output(tmp_path / "out", less, False)


def test_the_same_command_on_a_machine_that_is_faster_in_another_dtype_goes_on_in_the_first(
    place: Path, tmp_path: Path
) -> None:
    here = pick_dtype("auto", torch.device("cpu"))
    other = {"float32": "bfloat16", "bfloat16": "float32"}[here]
    said, where = list[str](), (place / "model", tmp_path / "out", place / "train.csv")
    first = tiny_tune(*where, epochs=1, dtype=other)
    with pytest.raises(SettingsError, match=f"dtype '{other}' there, '{here}' now"):
        tiny_tune(*where, epochs=1, dtype=here)
    with pytest.raises(SettingsError, match="epochs 1 there, 2 now"):
        tiny_tune(*where, epochs=2, dtype="auto")
    again = tiny_tune(*where, say=said.append, epochs=1, dtype="auto", gradient_checkpointing=True)
    assert again.run == first.run and said[-1].startswith("finished already")
    assert any(line.startswith(f"{other}, in which this run began, though here {here} is") for line in said)


@pytest.mark.parametrize("more", [{}, {"lr": (1e-2, 3e-2)}])
def test_a_killed_run_goes_on_in_its_dtype_where_another_is_faster_and_with_less_memory(
    more: dict[str, Any], place: Path, tmp_path: Path, server: Any
) -> None:
    here = pick_dtype("auto", torch.device("cpu"))
    other = {"float32": "bfloat16", "bfloat16": "float32"}[here]
    run_in_process(server, place, tmp_path / "whole", dtype=other, **more).join()
    killed = run_in_process(
        server, place, tmp_path / "out", "in the optimizer file of a checkpoint", dtype=other, **more
    )
    killed.join()
    assert killed.exitcode == -signal.SIGKILL and (tmp_path / "out.partial").is_dir()
    less = {"gradient_checkpointing": True}
    run_in_process(server, place, tmp_path / "out", dtype="auto", **more, **less).join()
    assert adapter_sha256(tmp_path / "out") == adapter_sha256(tmp_path / "whole")
    assert read_json(tmp_path / "out" / "run.json")["key"]["dtype"] == other


def test_a_run_that_goes_on_without_a_cache_drops_the_one_that_it_began_with(
    place: Path, tmp_path: Path, server: Any
) -> None:
    moment = "in the adapter file of a checkpoint"
    run_in_process(server, place, tmp_path / "out", moment).join()
    assert [*(tmp_path / "out.partial" / "cache").rglob("*.npy")]
    settings = {**SETTINGS, "dev": str(place / "dev.csv"), "cache_gb": 0.0}
    sees = Sees(tmp_path)
    tiny_tune(place / "model", tmp_path / "out", place / "train.csv", sees, **settings)
    assert sees.found.keys() == {"head", "adapter"} and not any(sees.found.values())


def test_what_cannot_be_read_for_a_moment_is_not_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a stale handle on NFS; a missing file, or one that is no JSON, is another thing."""
    with resume.open_workspace(tmp_path / "out", {"seed": 0}, False) as partial:
        checkpoint = partial / "head" / "checkpoint-3"
        checkpoint.mkdir(parents=True)
        resume.seal(checkpoint, 1.0)
    read, stale = Path.read_text, OSError(errno.ESTALE, "Stale file handle")

    def read_later(path: Path, *given: Any, **more: Any) -> str:
        if path.name in ("settings.json", "manifest.json"):
            raise stale
        return read(path, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", read_later)
        with (
            pytest.raises(OSError, match="Stale"),
            resume.open_workspace(tmp_path / "out", {"seed": 0}, True),
        ):
            pass
        with pytest.raises(OSError, match="Stale"):
            resume.last_sealed(checkpoint.parent)
    with resume.open_workspace(tmp_path / "out", {"seed": 0}, False):
        assert resume.last_sealed(checkpoint.parent) == checkpoint


def test_a_folder_that_is_filled_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    (tmp_path / "out.tmp").mkdir()
    (tmp_path / "out.tmp" / "thesis.txt").write_text("mine")
    with files.filled(tmp_path / "out") as folder:
        (folder / "a").touch()
    with pytest.raises(KeyError), files.filled(tmp_path / "other") as folder:
        raise KeyError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.tmp"]
    assert (tmp_path / "out.tmp" / "thesis.txt").read_text() == "mine" and (tmp_path / "out" / "a").exists()


def test_a_strange_work_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("mine")
    with (
        pytest.raises(SettingsError, match=r"thesis\.txt"),
        resume.open_workspace(tmp_path / "out", {}, True),
    ):
        pass
    assert (tmp_path / "out.partial" / "thesis.txt").read_text() == "mine"


def test_scraps_that_cannot_be_removed_while_open_do_not_cost_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where the name of an open file is gone and the folder is not empty yet."""
    rows, removed = write_rows(tmp_path / "train.csv", 16), files.remove

    def stubborn(path: Path) -> None:
        if path.name in ("lock", "out.partial", "cache"):
            raise OSError(errno.ENOTEMPTY, "open")
        removed(path)

    tiny_folder(tmp_path / "model")
    monkeypatch.setattr(files, "remove", stubborn)
    tiny_tune(tmp_path / "model", tmp_path / "out", rows, epochs=1, layers=(1,))
    assert {path.name for path in (tmp_path / "out").iterdir()} >= VISIBLE
    monkeypatch.undo()
    (tmp_path / "out.partial" / ".nfs0123").touch()
    tiny_tune(tmp_path / "model", tmp_path / "out", rows, epochs=2, layers=(1,), overwrite=True)
    assert not (tmp_path / "out.partial").exists()


def test_scores_of_a_resumed_run_stand_in_the_order_of_its_metrics(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "train.csv", 32)
    tiny_folder(tmp_path / "model")
    settings: dict[str, Any] = {"metric": "mcc", "stages": 1, "epochs": 3}
    with pytest.raises(Stop):
        tiny_tune(tmp_path / "model", tmp_path / "out", rows, StopAfterTwoEpochs(), **settings)
    metrics = tiny_tune(tmp_path / "model", tmp_path / "out", rows, **settings).metrics
    assert {tuple(entry["scores"]) for entry in metrics["curve"]} == {("mcc", "accuracy", "macro-f1")}


class StopAfterTwoEpochs(Progress):
    """Ends a run within its third epoch."""

    n_epochs = 0

    def step(self, step: int, loss: float | None) -> None:
        if self.n_epochs == 2:
            raise Stop

    def epoch(self, epoch: int, scores: dict[str, float]) -> None:
        self.n_epochs += 1


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_folder_that_is_not_ours_is_refused(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SettingsError, match="something else"):
        resume.check_output(tmp_path, {}, overwrite)


def test_records_of_a_wrong_kind_are_no_result_of_this_run(tmp_path: Path) -> None:
    for name in resume.RESULT_FILES:
        (tmp_path / name).write_text("[]")
    for key, message in (("null", "seed None there, 0 now"), ('{"seed": 0}', "with files missing")):
        (tmp_path / "run.json").write_text(f'{{"key": {key}}}')
        with pytest.raises(SettingsError, match=message):
            resume.check_output(tmp_path, {"seed": 0}, False)
        assert not resume.check_output(tmp_path, {"seed": 0}, True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_came_to_the_output_while_a_run_trained_stays_and_the_result_waits(
    overwrite: bool, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, original = tmp_path / "out", recipe.write_final

    def written_beside_another(*args: Any) -> None:
        output.mkdir()
        (output / "thesis.txt").write_text("mine")
        original(*args)

    monkeypatch.setattr(recipe, "write_final", written_beside_another)
    words = {"epochs": 1, "head_epochs": 1, "overwrite": overwrite}
    with pytest.raises(SettingsError, match=r"filled by something else.*waits in .*out.partial/final"):
        tiny_tune(place / "model", output, place / "train.csv", **words)
    assert [path.name for path in output.iterdir()] == ["thesis.txt"]
    monkeypatch.setattr(recipe, "set_up", None)  # nothing is trained again
    output.rename(tmp_path / "elsewhere")
    assert tiny_tune(place / "model", output, place / "train.csv", **words).metrics["dev"]


@pytest.mark.parametrize("is_trained", [False, True])
def test_a_run_that_was_stopped_before_it_trained_holds_nothing_back(
    is_trained: bool, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), resume.open_workspace(output, {"lr": 1}, False) as partial:
        if is_trained:
            (partial / "both").mkdir()
        raise KeyboardInterrupt
    (resume.partial_of(output) / "lock").unlink()  # Windows has none
    told = pytest.raises(SettingsError, match="unfinished run") if is_trained else contextlib.nullcontext()
    with told, resume.open_workspace(output, {"lr": 2}, False) as partial:
        assert read_json(partial / "settings.json") == {"lr": 2}


@pytest.mark.parametrize("damage", ["no manifest", "one byte changed", "file cut", "file gone"])
def test_a_damaged_checkpoint_does_not_count_and_is_deleted(damage: str, tmp_path: Path) -> None:
    for step in (5, 10):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "weights").write_bytes(b"0123456789")
        resume.seal(checkpoint, seconds=1.0)
    file = checkpoint / "weights"
    if damage == "no manifest":
        (checkpoint / resume.MANIFEST).unlink()
    elif damage == "one byte changed":
        file.write_bytes(b"0123456780")
    elif damage == "file cut":
        os.truncate(file, 5)
    else:
        file.unlink()
    assert resume.last_sealed(tmp_path) == tmp_path / "checkpoint-5"
    assert not checkpoint.exists()


def test_a_stage_whose_best_checkpoint_is_damaged_begins_anew(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epoch 1 is taken for the best, epoch 2 is the last; of both there is a checkpoint when it stops."""
    monkeypatch.setattr(training, "best_epoch", lambda curve, metric: curve[0])
    few: dict[str, Any] = {"stages": 1, "epochs": 3}

    def run(output: Path, progress: Any = None) -> Path:
        return tiny_tune(place / "model", output, place / "train.csv", progress=progress, **few).output

    whole = run(tmp_path / "whole")
    for damaged in ("best", "none"):
        output = tmp_path / damaged
        with pytest.raises(Stop):
            run(output, StopAfterTwoEpochs())
        best, newest = sorted((output.with_name(f"{damaged}.partial") / "both").iterdir(), key=resume.step_of)
        assert resume.step_of(best) < resume.step_of(newest)
        if damaged == "best":
            (best / "adapter_model.safetensors").write_bytes(b"cut")
        assert adapter_sha256(run(output)) == adapter_sha256(whole)


def test_a_finished_run_leaves_a_work_folder_alone_while_another_works_there(
    place: Path, tmp_path: Path
) -> None:
    def run() -> None:
        tiny_tune(place / "model", tmp_path / "out", place / "train.csv", stages=1, epochs=1)

    run()
    key = read_json(tmp_path / "out" / "run.json")["key"]
    with resume.open_workspace(tmp_path / "out", key, False) as partial:
        run()
        assert (partial / "settings.json").exists()
    run()
    assert not partial.exists()


def test_a_full_disk_is_told_in_one_message(tmp_path: Path) -> None:
    with (
        pytest.raises(TrainingError, match="no space left"),
        resume.disk_errors_explained(tmp_path),
        Path("/dev/full").open("w") as full,
    ):
        full.write("x" * 100_000)


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_checkpoint(
    place: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"at step \d+.*lower learning rate"):
        tiny_tune(
            place / "model", tmp_path / "out", place / "train.csv", dev=str(place / "dev.csv"), head_epochs=1,
            epochs=3, lr=1e30, warmup=0.9, max_grad_norm=1e30,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial" / "head.done" / "adapter_model.safetensors").exists()
