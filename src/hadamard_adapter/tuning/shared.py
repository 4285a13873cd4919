"""What tuning takes from other adapters: offsets to start from, or directions that its own offsets stay in.

With a basis of k directions b_1 .. b_k, each as long as all offsets of the adapter together, a task stores k
numbers c beside its head:

    offsets v = Σ_j c_j b_j,    ∂L/∂c_j = <b_j, ∂L/∂v>

The model holds v as in any other run, so that forward pass, checkpoints and the saved adapter are the usual
ones; the optimizer steps in c. The directions are orthogonal, so c is read off v: c_j = <b_j, v> / |b_j|².
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from hadamard_adapter.errors import AdapterError, option
from hadamard_adapter.files import expanded, file_sha256, replacing
from hadamard_adapter.offset_name import is_offset, split
from hadamard_adapter.tuning.averaging import AveragedAdamW
from hadamard_adapter.tuning.folder import read_config
from hadamard_adapter.tuning.weights import WEIGHTS, check_readable, read_weights

__all__ = [
    "Basis",
    "BasisAdamW",
    "coefficients_in",
    "read_basis",
    "shared_content",
    "start_from",
    "trained_offsets",
    "write_basis",
]

_KEY = "hadamard_basis"
"""Of a basis file's metadata."""


@dataclass(frozen=True)
class Basis:
    """Directions that adapters of one base model share."""

    directions: dict[str, Tensor]
    """Name of an offset in an adapter's file -> its part of the directions (k, d), float32."""
    base_fingerprint: str
    """Of the base model's backbone."""
    made_from: tuple[str, ...]
    """Names of the adapters."""
    position: str = "output"
    """Of the adapters: what a projection gives or what it receives."""

    @property
    def n(self) -> int:
        """Number of directions, k."""
        return len(next(iter(self.directions.values())))


def trained_offsets(model: nn.Module) -> dict[str, nn.Parameter]:
    """The offsets of a PEFT model's adapter "default", by their names in its file."""
    ending = ".default"
    return {
        name.removesuffix(ending): parameter
        for name, parameter in model.named_parameters()
        if is_offset(name) and name.endswith(ending)
    }


def shared_content(start: str | None, basis: str | None) -> dict[str, str]:
    """What tells the content of a start or a basis from another's; empty without them.

    Raises:
        AdapterError: there is none, or it cannot be read.
    """
    found: dict[str, str] = {}
    if start is not None:
        folder = expanded(start)
        read_config(folder)
        found["start"] = file_sha256(folder / WEIGHTS)
    if basis is not None:
        read_basis(basis)
        found["basis"] = file_sha256(expanded(basis))
    return found


def start_from(model: nn.Module, folder: str, base_fingerprint: str) -> None:
    """Put the offsets of an adapter's folder into a model with an untrained adapter; the head is left alone.

    Raises:
        AdapterError: the adapter is of another base model, or has other offsets than the model's.
    """
    place = expanded(folder)
    config = read_config(place)
    _refuse_base(f"start {folder!r}", config.base_fingerprint, base_fingerprint)
    _refuse_position(f"start {folder!r}", config.position, model)
    (given, _), own = split(read_weights(place / WEIGHTS)), trained_offsets(model)
    _refuse_names(f"start {folder!r}", {name: tuple(t.shape) for name, t in given.items()}, own)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(given[name])


def write_basis(path: Path, basis: Basis) -> None:
    """Write directions to a safetensors file; it is there whole or not at all."""
    about = {name: getattr(basis, name) for name in ("base_fingerprint", "made_from", "position")}
    metadata = {_KEY: json.dumps(about)}  # one key: several stand in an order of chance
    with replacing(path) as file:
        file.write(save({name: part.contiguous() for name, part in basis.directions.items()}, metadata))


def read_basis(path: str, model: nn.Module | None = None, base_fingerprint: str | None = None) -> Basis:
    """The directions in a file that `hadamard share basis` made.

    Args:
        path: of the file.
        model: PEFT model whose offsets the directions must have, and may then train in; None: not checked.
        base_fingerprint: of its backbone.

    Raises:
        AdapterError: it is no such file, of another base model, or has other offsets than the model's.
    """
    place = expanded(path)
    try:
        if not check_readable(place):
            raise AdapterError(f"no basis {path!r}: expected a file that hadamard share basis made")
        with safe_open(place, "pt") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            directions = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(
            f"basis {path!r} is damaged or not a safetensors file ({error}); make it again"
        ) from error
    if not about or not directions:
        raise AdapterError(
            f"basis {path!r}: expected a file that hadamard share basis made, received another; an adapter's "
            f"folder goes to {option('start')}"
        )
    position = about.get("position", "output")  # files of before have none
    basis = Basis(directions, about["base_fingerprint"], tuple(about["made_from"]), position)
    if model is not None:
        _refuse_base(f"basis {path!r}", basis.base_fingerprint, base_fingerprint)
        _refuse_position(f"basis {path!r}", basis.position, model)
        given = {name: tuple(part.shape[1:]) for name, part in directions.items()}
        _refuse_names(f"basis {path!r}", given, trained_offsets(model))
    return basis


def coefficients_in(directions: Mapping[str, Tensor], offsets: Mapping[str, Tensor]) -> Float32[Tensor, " k"]:
    """The numbers c whose combination of orthogonal directions is nearest to offsets, <b, v> / |b|²."""
    lengths = sum(part.flatten(1).square().sum(1) for part in directions.values())
    return _products(directions, offsets) / lengths


class BasisAdamW(AveragedAdamW):
    """AdamW on the coefficients of directions; the offsets follow. Its first group holds the coefficients.

    The coefficients are read off the offsets before every step, so that a checkpoint needs none of its own.
    """

    def __init__(
        self,
        offsets: Mapping[str, nn.Parameter],
        directions: Mapping[str, Tensor],
        lr: float,
        others: Iterable[dict[str, Any]] = (),
        decay: float = 0.0,
        **options: Any,
    ) -> None:
        """Make the optimizer.

        Args:
            offsets: the model's parameters, by their names in an adapter's file.
            directions: name -> part of the directions (k, d).
            lr: of the coefficients.
            others: further groups of parameters, such as the head.
            decay: of the mean of the last steps' coefficients and other parameters; 0: none.
            options: of AdamW.
        """
        self.offsets = dict(offsets)
        device = next(iter(self.offsets.values())).device
        self.directions = {name: directions[name].to(device) for name in self.offsets}
        self.coefficients = nn.Parameter(torch.zeros(len(next(iter(directions.values()))), device=device))
        super().__init__([{"params": [self.coefficients], "lr": lr}, *others], decay, **options)

    @torch.no_grad()
    def gather(self) -> None:
        """The coefficients of the model's offsets."""
        self.coefficients.copy_(coefficients_in(self.directions, self.offsets))

    @torch.no_grad()
    def spread(self) -> None:
        """The offsets of the coefficients."""
        for name, parameter in self.offsets.items():
            parameter.copy_(torch.tensordot(self.coefficients, self.directions[name], dims=1))

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of AdamW in the coefficients and the other groups."""
        gradients = {name: p.grad for name, p in self.offsets.items() if p.grad is not None}
        self.gather()
        self.coefficients.grad = _products(self.directions, gradients) if gradients else None
        loss = super().step(closure)
        self.spread()
        return loss


def _products(directions: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> Float32[Tensor, " k"]:
    return torch.stack(
        [directions[name].flatten(1) @ vector.float().flatten() for name, vector in vectors.items()]
    ).sum(0)


def _refuse_base(what: str, given: str | None, own: str | None) -> None:
    if given != own:
        raise AdapterError(
            f"{what} belongs to another base model (fingerprint {given}, here {own}); expected one that was "
            "tuned on this model"
        )


def _refuse_position(what: str, given: str, model: Any) -> None:
    """Refuse offsets of a projection's output for its input, which may have their names and shapes."""
    own = model.peft_config["default"].position
    if given != own:
        raise AdapterError(
            f"{what} was tuned with position {given!r}, the adapter to be tuned has {own!r}; tune with the "
            "position of what it was made from"
        )


def _refuse_names(what: str, given: Mapping[str, tuple[int, ...]], own: Mapping[str, Tensor]) -> None:
    """Refuse offsets of other names or shapes than the adapter's."""
    wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}
    differing = sorted(name for name in {*given, *wanted} if given.get(name) != wanted.get(name))
    if differing:
        first = differing[0]
        raise AdapterError(
            f"{what}: {first} has shape {given.get(first, 'none')}, the adapter to be tuned has "
            f"{wanted.get(first, 'none')}; tune with the sites, layers and norms of what it was made from"
        )
