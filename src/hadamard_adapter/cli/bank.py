"""`hadamard bank`: the adapters of a store, from which a bank is filled."""

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

import click

from hadamard_adapter.cli.console import data_console, message_console, plain_table
from hadamard_adapter.cli.options import command_from
from hadamard_adapter.errors import AdapterError, refuse_below

if TYPE_CHECKING:
    from hadamard_adapter.serving.store import AdapterStore

__all__ = ["bank_group"]


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Options of every command on a store."""

    store: str
    """Folder of the store, or a URL that fsspec knows, such as s3://bucket/adapters."""
    quiet: bool = False
    """Whether to say nothing but errors."""


@dataclass(frozen=True, kw_only=True)
class StoredOptions(StoreOptions):
    """Options of every command on one adapter of a store."""

    id: str = field(metadata={"argument": "ID"})
    """Name of the adapter."""


@dataclass(frozen=True, kw_only=True)
class AddOptions(StoredOptions):
    """The options of `hadamard bank add`."""

    folder: str = field(metadata={"argument": "FOLDER"})
    """Folder that `hadamard tune` made."""


@dataclass(frozen=True, kw_only=True)
class ListOptions(StoreOptions):
    """The options of `hadamard bank list`."""

    json: bool = False
    """Whether to print a JSON list instead of a table."""


@dataclass(frozen=True, kw_only=True)
class RollBackOptions(StoredOptions):
    """The options of `hadamard bank roll-back`."""

    version: str = field(metadata={"argument": "VERSION"})
    """Version to serve again."""


@dataclass(frozen=True, kw_only=True)
class PruneOptions(StoreOptions):
    """The options of `hadamard bank prune`."""

    keep: int
    """Earlier versions of each adapter that can be served again afterwards; 0: none."""

    def __post_init__(self) -> None:
        """Check the number before anything is deleted."""
        refuse_below("--keep", self.keep, 0)


@dataclass(frozen=True, kw_only=True)
class PackOptions(StoreOptions):
    """The options of `hadamard bank pack`."""

    output: str
    """New folder for the pack."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the numbers; bfloat16 halves the size and rounds offsets and heads."""


def _open(options: StoreOptions) -> "AdapterStore":
    """The store; PyTorch is imported no sooner than it is needed."""
    from hadamard_adapter.serving.store import AdapterStore

    return AdapterStore(options.store)


@click.group("bank", short_help="Publish adapters to a store and look after it.")
def bank_group() -> None:
    """Publish adapters to a store and look after it.

    \b
    hadamard bank add --store S mood mood-adapter
    hadamard bank list --store S
    """


@command_from("add", AddOptions)
def _add(options: AddOptions) -> None:
    """Publish an adapter under an id; one of the same id is replaced.

    The files are checked and copied; readers see the old version or the new one, never a part.

    \b
    Example:
      hadamard bank add --store S mood mood-adapter
    """
    published = _open(options).add(options.id, options.folder)
    message_console(options.quiet).print(
        f"{published.id} version {published.version}, {published.size_bytes:,} bytes, in {options.store}"
    )


@command_from("list", ListOptions)
def _list(options: ListOptions) -> None:
    """Show what a store serves.

    \b
    Example:
      hadamard bank list --store S --json
    """
    found = _open(options).served()
    if options.json:
        print(json.dumps([asdict(published) for published in found], indent=2))
        return
    table = plain_table(("id", "version", "earlier", "bytes"), n_left=2)
    for published in found:
        size = f"{published.size_bytes:,}"
        table.add_row(published.id, published.version, str(len(published.history)), size)
    data_console().print(table)


@command_from("show", StoredOptions)
def _show(options: StoredOptions) -> None:
    """Show one adapter as JSON: versions, labels, bytes of adapter and head.

    \b
    Example:
      hadamard bank show --store S mood
    """
    store = _open(options)
    published = store.show(options.id)
    _, adapter = store.read(options.id, published.version)
    shown = {
        **asdict(published),
        "problem_type": adapter.task.problem_type,
        "labels": adapter.task.label_names,
        "adapter_bytes": adapter.offset_bytes,
        "head_bytes": adapter.head_bytes,
        "base_fingerprint": adapter.base_fingerprint,
    }
    print(json.dumps(shown, indent=2, ensure_ascii=False))


@command_from("roll-back", RollBackOptions)
def _roll_back(options: RollBackOptions) -> None:
    """Serve an earlier version of an adapter again.

    \b
    Example:
      hadamard bank roll-back --store S mood 0123456789abcdef
    """
    published = _open(options).roll_back(options.id, options.version)
    message_console(options.quiet).print(f"{published.id} version {published.version} is served again")


@command_from("remove", StoredOptions)
def _remove(options: StoredOptions) -> None:
    """Serve an adapter no more, and delete all its versions.

    \b
    Example:
      hadamard bank remove --store S mood
    """
    _open(options).remove(options.id)
    message_console(options.quiet).print(f"{options.id} is removed")


@command_from("prune", PruneOptions)
def _prune(options: PruneOptions) -> None:
    """Delete earlier versions of all adapters but the newest ones; what is served stays.

    \b
    Example:
      hadamard bank prune --store S --keep 3
    """
    store = _open(options)
    n_gone = sum(store.prune(published.id, options.keep) for published in store.served())
    message_console(options.quiet).print(f"{n_gone} earlier versions deleted, in {options.store}")


@command_from("verify", StoreOptions)
def _verify(options: StoreOptions) -> None:
    """Check every adapter that is served against its hashes; exit code 2 if one is damaged.

    \b
    Example:
      hadamard bank verify --store S
    """
    n_served, problems = _open(options).verify()
    for problem in problems:
        print(problem)
    if problems:
        raise AdapterError(f"{len(problems)} of {n_served} adapters are damaged, see above")
    message_console(options.quiet).print(f"{n_served} adapters, all whole")


@command_from("pack", PackOptions)
def _pack(options: PackOptions) -> None:
    """Copy what a store serves into a few memory-mapped files, for a bank of many adapters.

    \b
    Example:
      hadamard bank pack --store S --output pack
    """
    import torch

    from hadamard_adapter.serving.packed import write_pack

    store = _open(options)
    served = ((found.id, found.version, store.read(found.id, found.version)[1]) for found in store.served())
    n_adapters = write_pack(options.output, served, getattr(torch, options.dtype))
    message_console(options.quiet).print(f"{n_adapters} adapters, in {options.output}")


for _command in (_add, _list, _show, _roll_back, _remove, _prune, _verify, _pack):
    bank_group.add_command(_command)
