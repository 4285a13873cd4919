"""The options that commands share which take an adapter, and those which run it on rows."""

from dataclasses import dataclass

from hadamard_adapter.errors import refuse_below

__all__ = ["AdapterOptions", "RowOptions"]


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Options of every command that takes an adapter."""

    adapter: str
    """Folder that `hadamard tune` made."""
    model: str | None = None
    """Base model, where it is no longer where the adapter's config says: a folder or a name on the hub."""
    allow_remote_code: bool = False
    """Whether a model may run Python code that its folder or the hub brings."""
    quiet: bool = False
    """Whether to say nothing but errors."""


@dataclass(frozen=True, kw_only=True)
class RowOptions(AdapterOptions):
    """Options of every command that runs an adapter on the rows of a file."""

    text: str | None = None
    """Column of the text; the one of the training if not given."""
    pair: str | None = None
    """Column of the second text of a pair; the one of the training if not given."""
    quoting: bool | None = None
    """Whether quotes in the file enclose cells; by default yes in csv, no in tsv."""
    delimiter: str | None = None
    """Character between the cells of the file; by default a comma in csv, a tab in tsv."""
    batch_size: int = 32
    """Rows at a time in the model; less memory with fewer."""
    device: str | None = None
    """cpu, cuda or mps; by default the fastest that is there."""

    def __post_init__(self) -> None:
        """Check the options before the model is loaded."""
        refuse_below("--batch-size", self.batch_size, 1)
