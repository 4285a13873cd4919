"""What a bank takes in: an adapter's tensors, sorted into offsets and head, with what it says of itself."""

from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from hadamard_adapter.errors import AdapterError
from hadamard_adapter.files import expanded
from hadamard_adapter.tasks import Task
from hadamard_adapter.tuning.folder import WEIGHTS, read_config, read_run, task_of
from hadamard_adapter.tuning.models import DEFAULT_MAX_LENGTH
from hadamard_adapter.tuning.weights import read_weights

__all__ = ["KINDS", "BankAdapter", "read_adapter"]

KINDS = ("scale", "shift", "norm_weight", "norm_bias")
"""The kinds of offsets, as the keys of a file name them behind `hadamard_`."""
PREFIX = "base_model.model."


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
    offsets: dict[tuple[str, str], Tensor] = {}
    head: dict[str, Tensor] = {}
    for key, tensor in read_weights(place / WEIGHTS).items():
        path, is_offset, kind = key.removeprefix(PREFIX).rpartition(".hadamard_")
        if is_offset and kind in KINDS:
            offsets[path, kind] = tensor
        else:
            head[key.removeprefix(PREFIX)] = tensor
    return BankAdapter(
        task=task_of(place, config, run),
        offsets=offsets,
        head=head,
        max_length=run.max_length or DEFAULT_MAX_LENGTH,
        base_fingerprint=config.base_fingerprint,
        has_pair=None if run.columns is None else run.columns.pair is not None,
        identity=tuple(config.identity_modules) if isinstance(config.identity_modules, list) else (),
    )
