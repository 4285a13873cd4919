"""The command line inside the test's process, and one tiny tuned adapter on disk for all tests."""

import contextlib
import functools
import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hadamard_adapter.cli.main import run
from tuning_help import tiny_folder, write_rows

__all__ = ["Outcome", "Tuned", "hadamard", "tree_of", "tuned"]


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
    model = tiny_folder(folder / "model")
    train, dev = write_rows(folder / "train.csv", 96), write_rows(folder / "dev.csv", 24, seed=1)
    words = (
        *("tune", "--model", model, "--train", train, "--dev", dev, "--output", folder / "adapter"),
        *("--head-epochs", 1, "--epochs", 6, "--batch-size", 16, "--lr", 0.05, "--device", "cpu"),
    )
    return Tuned(model, train, dev, folder / "adapter", words, hadamard(*words))
