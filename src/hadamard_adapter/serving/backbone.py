"""The backbone of a bank: a classifier whose modules take each row's numbers from tables."""

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from hadamard_adapter.adapter.families import find_sites, layer_stacks
from hadamard_adapter.adapter.fingerprint import HASHED, fingerprint
from hadamard_adapter.adapter.heads import find_head, fresh_parameters
from hadamard_adapter.errors import AdapterError, SettingsError
from hadamard_adapter.offset_name import KINDS
from hadamard_adapter.serving.layers import (
    BankHeadNorm,
    BankLinear,
    BankNorm,
    BankOutput,
    BankProjection,
    Batch,
    bias_of,
)
from hadamard_adapter.serving.source import BankAdapter
from hadamard_adapter.serving.tables import RowTable
from hadamard_adapter.tuning.onednn import pack_linears

__all__ = ["ENCODERS", "Backbone"]

ENCODERS = frozenset(
    {
        *("bert", "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "electra", "mpnet", "distilbert"),
        *("deberta", "deberta-v2", "modernbert"),
    }
)
"""Model types that a bank takes; the laws of tests/test_bank.py run over them."""


class Backbone:
    """A classifier and the tables that its modules read: a slot an adapter, slot 0 the base model.

    Whoever fills, frees or takes slots while another thread does holds a lock.

    Args:
        model: a transformers classifier of an encoder family (`ENCODERS`); changed in place.
        dtype: of the tables.

    Raises:
        SettingsError: another kind of model, or a head with other layers than linear ones and norms.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        """Put the bank's layers into the model."""
        _check(model)
        self.model, self.dtype = model.eval().requires_grad_(False), dtype
        self.base_fingerprint = fingerprint(model)
        self._fresh = set(fresh_parameters(model) or ())
        self._batch = Batch()
        self._places: dict[tuple[str, str], int] = {}
        self._heads: dict[str, BankLinear | BankOutput | BankHeadNorm] = {}
        self._wrap_head()
        self._wrap_sites()
        self.n_packed = pack_linears(model, but=self._heads)
        """Linear layers below the head that oneDNN computes."""
        self.n_slots, self._free = 1, list[int]()

    def make_room(self, lock: AbstractContextManager[Any]) -> None:
        """Have the next `fill` find a place in every table, without holding the lock while one is copied."""
        offsets = () if self._free else self._offsets.values()
        for table in (*offsets, *(table for layer in self._heads.values() for table in layer.tables)):
            table.make_room(lock)

    def fill(self, adapter: BankAdapter) -> int:
        """Write an adapter's numbers into a slot that nobody reads; the slot. An error changes nothing."""
        slot = self._free.pop() if self._free else self.n_slots
        try:
            self._write(slot, adapter)
        except BaseException:
            self.free(slot)  # the next one takes it, before any new slot
            raise
        self.n_slots = max(self.n_slots, slot + 1)
        return slot

    def _write(self, slot: int, adapter: BankAdapter) -> None:
        for kind, table in self._offsets.items():
            row = torch.zeros_like(table.values[0])
            for (path, own), value in adapter.offsets.items():
                if own == kind:
                    row[self._places[path, kind]] = value.to(row)
            table.put(row, slot)
        for path, layer in self._heads.items():
            if path in adapter.identity and not isinstance(layer, BankOutput):
                layer.put_identity(slot)
            else:
                layer.put(slot, adapter.head.get(f"{path}.weight"), adapter.head.get(f"{path}.bias"))
        self._sizes[slot] = adapter.task.n_outputs
        layers = [self._layer_of_site[self._places[place]] for place in adapter.offsets]
        self._depths[slot] = min(layers, default=len(self.layers))

    def free(self, slot: int) -> None:
        """Give a slot to the next `fill`."""
        for layer in self._heads.values():
            layer.drop(slot)
        self._free.append(slot)

    def depths(self, slots: Sequence[int]) -> list[int]:
        """For each slot, the number of layers below the first one that its adapter changes."""
        return [self._depths[slot] for slot in slots]

    def take(self, slots: Sequence[int]) -> None:
        """Take what the rows of the next forward pass need out of the tables."""
        batch = self._batch
        batch.slots = index = torch.tensor(slots, device=self.model.device)
        scale, shift, gamma, beta = (self._offsets[kind].values[index].float() for kind in KINDS)
        batch.factors, batch.shifts = (1 + scale).unbind(1), shift.unbind(1)
        batch.gammas, batch.betas = (self._gammas + gamma).unbind(1), (self._betas + beta).unbind(1)
        sizes: dict[int, list[int]] = {}
        for row, slot in enumerate(slots):
            sizes.setdefault(self._sizes[slot], []).append(row)
        batch.groups = sizes

    def check_fit(self, id: str, adapter: BankAdapter) -> None:
        """Refuse an adapter of another backbone; changes nothing.

        Raises:
            AdapterError: another base model, a site, width or head tensor that this model does not have,
                other outputs than labels, or a number that is not finite.
        """
        self.check_base(f"adapter {id!r}", adapter.base_fingerprint)
        self._check_offsets(id, adapter)
        self._check_head(id, adapter)
        for name, tensor in (
            *((str(place), t) for place, t in adapter.offsets.items()),
            *adapter.head.items(),
        ):
            if not torch.isfinite(tensor.to(self.dtype)).all():
                raise AdapterError(
                    f"adapter {id!r}: expected finite numbers, received NaN or infinity in {name}; tune again"
                )
        identity = {f"{path}.{name}" for path in adapter.identity for name in ("weight", "bias")}
        missing = sorted(self._fresh - set(adapter.head) - identity)
        if missing:
            raise AdapterError(
                f"adapter {id!r} lacks {missing[0]!r}, and so does the base model's checkpoint"
            )

    def _check_offsets(self, id: str, adapter: BankAdapter) -> None:
        d = self._offsets["scale"].values.shape[-1]
        for place, tensor in adapter.offsets.items():
            if place not in self._places:
                raise AdapterError(
                    f"adapter {id!r} changes {place[0]!r} ({place[1]}), which is no site of this model's "
                    "family; serve it merged"
                )
            if tensor.shape != (d,):
                raise AdapterError(
                    f"adapter {id!r} is of another width: expected {d} numbers for {place[0]!r}, received "
                    f"{tuple(tensor.shape)}"
                )

    def _check_head(self, id: str, adapter: BankAdapter) -> None:
        for key, tensor in adapter.head.items():
            path, _, name = key.rpartition(".")
            layer = self._heads.get(path)
            own = None if layer is None else getattr(layer.base_layer, name, None)
            is_output = isinstance(layer, BankOutput)
            if own is None or own.shape[is_output:] != tensor.shape[is_output:]:
                expected = "no such tensor" if own is None else f"shape {tuple(own.shape)}"
                raise AdapterError(
                    f"adapter {id!r}, head tensor {key!r} of shape {tuple(tensor.shape)}: expected "
                    f"{expected} in this model's head"
                )
            if is_output and len(tensor) != adapter.task.n_outputs:
                raise AdapterError(
                    f"adapter {id!r}: expected {adapter.task.n_outputs} outputs, one a label, received "
                    f"{len(tensor)}"
                )
        for path in adapter.identity:
            if isinstance(self._heads.get(path), (BankOutput, type(None))):
                raise AdapterError(
                    f"adapter {id!r} makes {path!r} the identity: expected a layer before the output layer "
                    "of this model's head"
                )
        for path, layer in self._heads.items():
            if isinstance(layer, BankOutput) and f"{path}.weight" not in adapter.head:
                n_own = layer.base_layer.weight.shape[0]
                if n_own != adapter.task.n_outputs or f"{path}.bias" in adapter.head:
                    raise AdapterError(
                        f"adapter {id!r} brings no weight of {path!r}: expected one with "
                        f"{adapter.task.n_outputs} outputs, as its labels are; the base model's has {n_own}"
                    )
            both = {f"{path}.{name}" for name, _ in layer.base_layer.named_parameters()}
            if missing := sorted(both - adapter.head.keys() if both & adapter.head.keys() else ()):
                raise AdapterError(
                    f"adapter {id!r} lacks {missing[0]!r} beside its other tensor: its file is not whole"
                )

    def check_base(self, what: str, base_fingerprint: str | None) -> None:
        """Refuse what belongs to another base model.

        Raises:
            AdapterError: another fingerprint; none is taken on trust.
        """
        if base_fingerprint not in (None, self.base_fingerprint):
            raise AdapterError(
                f"{what} belongs to another base model: expected fingerprint {self.base_fingerprint}, "
                f"received {base_fingerprint} (a sha256 of {HASHED})"
            )

    def _wrap_head(self) -> None:
        names = find_head(self.model, modules_to_save=["pooler"], has_task=True)
        leaves = [
            (f"{name}.{path}" if path else name, module)
            for name in names
            for path, module in self.model.get_submodule(name).named_modules()
            if next(module.parameters(recurse=False), None) is not None
        ]
        for path, module in leaves:
            if not isinstance(module, (nn.Linear, nn.LayerNorm)):
                raise SettingsError(
                    f"the head's {path!r} is a {type(module).__name__}; expected a linear layer or layer norm"
                )
        linears = [path for path, module in leaves if isinstance(module, nn.Linear)]
        order = [name for name, _ in self.model.named_modules() if name in linears]
        for path, module in leaves:
            if isinstance(module, nn.LayerNorm):
                layer: Any = BankHeadNorm(module, self._batch, self.dtype)
            else:
                layer = (BankOutput if path == order[-1] else BankLinear)(module, self._batch, self.dtype)
            self._heads[path] = layer
            self.model.set_submodule(path, layer)
        self._sizes = {0: self.model.config.num_labels}
        for layer in self._heads.values():
            layer.put(0)

    def _wrap_sites(self) -> None:
        sites = find_sites(self.model, ["attention", "ffn"])
        self.layers: list[nn.Module] = list(layer_stacks(self.model)[0])
        self._layer_of_site = [site.layer_index for site in sites]
        self._depths = {0: len(self.layers)}
        norms = Counter(site.norm for site in sites)
        width = 0
        for index, site in enumerate(sites):
            module = self.model.get_submodule(site.projection)
            width = len(module.weight)
            self._places |= {(site.projection, kind): index for kind in KINDS[:2]}
            self.model.set_submodule(site.projection, BankProjection(module, self._batch, index))
            if site.norm is None:
                continue
            assert norms[site.norm] == 1, "each site has a norm of its own"
            module = self.model.get_submodule(site.norm)
            self._places |= {(site.norm, kind): index for kind in KINDS[2:]}
            self.model.set_submodule(site.norm, BankNorm(module, self._batch, index))
        zeros = torch.zeros(len(sites), width, device=self.model.device)
        self._gammas, self._betas = zeros.clone(), zeros.clone()
        for index, site in enumerate(sites):
            if site.norm is not None:
                norm = self.model.get_submodule(site.norm).base_layer
                self._gammas[index], self._betas[index] = norm.weight, bias_of(norm)
        self._offsets = {kind: RowTable(zeros.to(self.dtype)) for kind in KINDS}


def _check(model: Any) -> None:
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if kind not in ENCODERS:
        raise SettingsError(
            f"a bank takes encoders ({', '.join(sorted(ENCODERS))}), received model type {kind!r}"
        )
    if not type(model).__name__.endswith("ForSequenceClassification"):
        raise SettingsError(
            f"a bank takes a sequence classifier, received {type(model).__name__}; load the model with "
            "AutoModelForSequenceClassification"
        )
