"""What a bank takes in: an adapter's tensors, sorted into offsets and head, with what it says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from hadamard_adapter.errors import AdapterError
from hadamard_adapter.files import expanded
from hadamard_adapter.offset_name import PREFIX, offset_name, split
from hadamard_adapter.tasks import Task
from hadamard_adapter.tuning.folder import read_config, read_run, task_of
from hadamard_adapter.tuning.models import DEFAULT_MAX_LENGTH
from hadamard_adapter.tuning.weights import WEIGHTS, read_weights

__all__ = ["BankAdapter", "by_place", "read_adapter"]


@dataclass(frozen=True)
class BankAdapter:
    """One adapter, read and not yet in a bank."""

    task: Task
    """Labels, kind, threshold."""
    offsets: dict[tuple[str, str], Float[Tensor, " d"]]
    """(path of the module, kind) -> offset from the identity; kinds are those of `KINDS`."""
    head: dict[str, Float[Tensor, "..."]]
    """Path of the parameter -> its value."""
    max_length: int
    """Tokens after which a text is cut, as in training."""
    base_fingerprint: str | None
    """Of the backbone that it was trained on, if known."""
    has_pair: bool | None
    """Whether a row has a second text; None: not known."""
    identity: tuple[str, ...] = ()
    """Paths of the head's layers that are the identity; `head` does not have them."""

    @property
    def offset_bytes(self) -> int:
        """Size of the offsets in float32."""
        return sum(4 * tensor.numel() for tensor in self.offsets.values())

    @property
    def head_bytes(self) -> int:
        """Size of the head in float32."""
        return sum(4 * tensor.numel() for tensor in self.head.values())

    def without_values(self) -> "BankAdapter":
        """The same with tensors on the meta device: shapes and no memory."""
        offsets = {place: tensor.to("meta") for place, tensor in self.offsets.items()}
        head = {key: tensor.to("meta") for key, tensor in self.head.items()}
        return replace(self, offsets=offsets, head=head)


def by_place(offsets: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    """Offsets by module and kind, from what a file calls them.

    Example:
        >>> import torch
        >>> list(by_place({"bert.encoder.layer.0.output.dense.hadamard_shift": torch.zeros(2)}))
        [('bert.encoder.layer.0.output.dense', 'shift')]
    """
    places = {name: offset_name(name) for name in offsets}
    return {(place.module, place.kind): offsets[name] for name, place in places.items() if place is not None}


def read_adapter(folder: str | Path) -> BankAdapter:
    """The adapter in a folder that `hadamard tune` or `save_pretrained` made.

    Raises:
        AdapterError: no Hadamard adapter there, a damaged or a pickle file, or one that acts on the input of
            its projections.

    Example:
        >>> read_adapter("out").task.label_names  # doctest: +SKIP
        ('negative', 'positive')
    """
    place = expanded(folder)
    config, run = read_config(place), read_run(place)
    if config.position != "output":
        raise AdapterError(
            f'{str(folder)!r}: expected position "output", received {config.position!r}; a bank holds '
            "offsets of outputs, which all have one width: tune with position output, or serve it merged"
        )
    offsets, head = split(read_weights(place / WEIGHTS))
    return BankAdapter(
        task=task_of(place, config, run),
        offsets=by_place(offsets),
        head={key.removeprefix(PREFIX): tensor for key, tensor in head.items()},
        max_length=run.max_length or DEFAULT_MAX_LENGTH,
        base_fingerprint=config.base_fingerprint,
        has_pair=None if run.columns is None else run.columns.pair is not None,
        identity=tuple(config.identity_modules) if isinstance(config.identity_modules, list) else (),
    )
