"""What the tests of the bench share: a tiny model, rows, and specs as text."""

from pathlib import Path

from hadamard_adapter.bench import Spec, read_spec
from hadamard_adapter.bench.run import Run
from hadamard_adapter.bench.schedule import Board
from tuning_help import silent, tiny_folder, write_rows

__all__ = ["Silent", "lay_out", "silent", "spec_of", "spec_text"]


class Silent:
    """A board that shows nothing."""

    def show(self, running: list[Run], records: object) -> None:
        """Nothing to do."""


_: Board = Silent()


def lay_out(place: Path, n_rows: int = 96) -> Path:
    """A folder with model/, train.csv and dev.csv."""
    tiny_folder(place / "model")
    write_rows(place / "train.csv", n_rows)
    write_rows(place / "dev.csv", 24, seed=1)
    return place


def spec_text(place: Path, methods: str, more: str = "", epochs: int = 2, seeds: int = 2) -> str:
    """A spec on the files of `lay_out`."""
    return f"""
title = "tiny"
models = ["{place / "model"}"]
methods = [{", ".join(f'"{method}"' for method in methods.split())}]
seeds = {seeds}
{more}
[[tasks]]
name = "mood"
train = "{place / "train.csv"}"
dev = "{place / "dev.csv"}"
epochs = {epochs}
head_epochs = 1
batch_size = 16
"""


def spec_of(place: Path, methods: str, more: str = "", **sizes: int) -> Spec:
    """The same, read."""
    path = place / "spec.toml"
    path.write_text(spec_text(place, methods, more, **sizes), encoding="utf-8")
    return read_spec(path)
