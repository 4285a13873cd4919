"""The command line inside the test's process, and one tiny tuned adapter on disk for all tests."""

import atexit
import contextlib
import functools
import io
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hadamard_adapter.cli.main import run
from tuning_help import tiny_folder, write_rows

__all__ = ["Outcome", "Tuned", "Words", "assert_refused", "hadamard", "tree_of", "tune", "tuned"]

Words = Sequence[object]
"""The words of a command."""


@dataclass(frozen=True)
class Outcome:
    """How one command ended."""

    code: int
    out: str
    err: str


def hadamard(*words: object, stdin: str | bytes = "") -> Outcome:
    """Run one command with its own standard streams."""
    given = stdin if isinstance(stdin, bytes) else stdin.encode()
    out, err, before = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(given))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run([str(word) for word in words])
    finally:
        sys.stdin = before
    return Outcome(code, out.getvalue(), err.getvalue())


def tree_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes; folders with none."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


@dataclass(frozen=True)
class Tuned:
    """Everything that a user has after `hadamard tune`."""

    model: Path
    train: Path
    dev: Path
    adapter: Path
    words: tuple[object, ...]
    told: Outcome


@functools.cache
def tuned() -> Tuned:
    """One tiny adapter, tuned by the command itself, once a process."""
    folder = Path(tempfile.mkdtemp(prefix="hadamard-cli-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model = tiny_folder(folder / "model")
    train, dev = write_rows(folder / "train.csv", 96), write_rows(folder / "dev.csv", 24, seed=1)
    words = (
        *("tune", "--model", model, "--train", train, "--dev", dev, "--output", folder / "adapter"),
        *("--head-epochs", 1, "--epochs", 6, "--batch-size", 16, "--lr", 0.05, "--device", "cpu"),
    )
    return Tuned(model, train, dev, folder / "adapter", words, hadamard(*words))


def tune(train: object, *more: object) -> Words:
    """A tune command that only its data or its further words can spoil."""
    return ["tune", "--model", tuned().model, "--train", train, "--output", "out", "--device", "cpu", *more]


def assert_refused(make: Callable[[], Words], expected: str) -> None:
    """What `make` lays out in the current folder and returns as a command is refused as every user error is.

    Args:
        make: lays out files and returns the words.
        expected: regular expression that the one line of the error must hold.
    """
    words = make()
    before = tree_of(Path()), tree_of(tuned().adapter.parent)
    found = hadamard(*words)
    *_, last = found.err.splitlines()
    assert found.code == 2, found.err
    assert last.startswith("error: ") and found.err.count("error: ") == 1, found.err
    assert re.search(expected, last, re.IGNORECASE), last
    assert "Traceback" not in found.err and found.out == ""
    assert (_known(tree_of(Path())), tree_of(tuned().adapter.parent)) == before


def _known(tree: dict[str, bytes]) -> dict[str, bytes]:
    """Without the work folder that a run whose loss is not finite leaves, with its last good state."""
    trained = bool({"out.partial/head", "out.partial/head.done"} & tree.keys())
    return {
        name: content for name, content in tree.items() if not (trained and name.startswith("out.partial"))
    }
