"""Modules of a backbone in a bank: the base's own, and for each row of the batch its adapter's numbers.

The bank takes what the rows of a batch need out of its tables before the forward pass (`Batch`); the modules
read it from there. A row of zeros is the base model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from hadamard_adapter.serving.tables import RowTable, Slots

__all__ = ["BankHeadNorm", "BankLinear", "BankNorm", "BankOutput", "BankProjection", "Batch", "bias_of"]


@dataclass
class Batch:
    """What the rows of the batch at hand carry."""

    slots: Int64[Tensor, " b"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """Slot of each row."""
    factors: Sequence[Float32[Tensor, "b d"]] = ()
    """By site: 1 + δw of each row."""
    shifts: Sequence[Float32[Tensor, "b d"]] = ()
    """By site: b of each row."""
    gammas: Sequence[Float32[Tensor, "b d"]] = ()
    """By site: γ + δγ of each row, where a norm follows."""
    betas: Sequence[Float32[Tensor, "b d"]] = ()
    """By site: β + δβ of each row, likewise."""
    groups: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    """Number of outputs -> positions of the rows whose heads have so many."""


def _rows(values: Float[Tensor, "b d"], like: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """Rows (b, d) made to broadcast against activations (b, ..., d)."""
    return values.view(len(values), *(1,) * (like.ndim - 2), values.shape[-1])


def bias_of(layer: nn.Module) -> Float[Tensor, " o"]:
    """A layer's bias, or zeros where it has none."""
    weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)
    return weight.new_zeros(len(weight)) if bias is None else bias


class BankProjection(nn.Module):
    """y = (1 + δw_r) ⊙ (W x + c) + b_r with the offsets of row r's adapter, in float32 and rounded once."""

    def __init__(self, base_layer: nn.Module, batch: Batch, site: int) -> None:
        super().__init__()
        self.base_layer, self.batch, self.site = base_layer, batch, site

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Project, scale, shift."""
        y = self.base_layer(x)
        factor, shift = _rows(self.batch.factors[self.site], y), _rows(self.batch.shifts[self.site], y)
        return torch.addcmul(shift, y.float(), factor).to(y.dtype)


class BankNorm(nn.Module):
    """γ_r ⊙ n(x) + β_r, where n is the norm without weight and bias, γ_r = γ + δγ_r and β_r = β + δβ_r."""

    def __init__(self, base_layer: nn.Module, batch: Batch, site: int) -> None:
        super().__init__()
        self.base_layer, self.batch, self.site = base_layer, batch, site
        ones = torch.ones_like(base_layer.get_parameter("weight"), dtype=torch.float32)
        has_bias = getattr(base_layer, "bias", None) is not None
        self.without = {"weight": ones} | ({"bias": torch.zeros_like(ones)} if has_bias else {})

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Normalise, then scale and shift by row, in float32, rounded once."""
        wide, base = x.float(), self.base_layer
        if type(base) is nn.LayerNorm:
            normal = nn.functional.layer_norm(wide, base.normalized_shape, None, None, base.eps)
        else:
            normal = torch.func.functional_call(base, self.without, (wide,))
        gamma, beta = _rows(self.batch.gammas[self.site], x), _rows(self.batch.betas[self.site], x)
        return torch.addcmul(beta, gamma, normal).to(x.dtype)


class _HeadLayer(nn.Module):
    """A layer of the head, each adapter's own; row 0 is the base's, for adapters without one."""

    def __init__(self, base_layer: nn.Linear | nn.LayerNorm, batch: Batch, dtype: torch.dtype) -> None:
        super().__init__()
        self.base_layer, self.batch = base_layer, batch
        self.slots = Slots(base_layer.weight.device)
        # A linear layer's weight stands transposed, (i, o), so that an input's share of the sum is one row.
        self.weight = RowTable(base_layer.weight.t().contiguous().to(dtype))
        self.bias = RowTable(bias_of(base_layer).to(dtype))
        self.tables = [self.weight, self.bias]

        self.identity_row: int | None = None
        """Row of the identity, which all slots with it share; None until there is one."""

    def put(
        self, slot: int, weight: Float[Tensor, "..."] | None = None, bias: Float[Tensor, "..."] | None = None
    ) -> None:
        """Give a slot a layer of its own, or none: then it has the base's."""
        if weight is None:
            self.slots.set(slot, 0)
            return
        self.slots.set(slot, self._put_row(weight, bias))

    def put_identity(self, slot: int) -> None:
        """Give a slot the identity: W = I and c = 0, or γ = 1 and β = 0."""
        if self.identity_row is None:
            like = self.base_layer.weight
            values = torch.eye(len(like)) if like.ndim == 2 else torch.ones(len(like))
            self.identity_row = self._put_row(values.to(like), None)
        self.slots.set(slot, self.identity_row)

    def _put_row(self, weight: Float[Tensor, "..."], bias: Float[Tensor, "..."] | None) -> int:
        row = self.weight.put(weight.t())
        try:
            same = self.bias.put(torch.zeros_like(self.bias.values[0]) if bias is None else bias)
        except BaseException:  # no memory for more rows
            self.weight.drop(row)
            raise
        assert row == same, "both tables are filled and emptied together"
        return row

    def taken(self, like: Float[Tensor, "b ..."]) -> tuple[Float[Tensor, "b ..."], Float[Tensor, "b ..."]]:
        """Weight and bias of each row of the batch, in the dtype of its activations."""
        rows = self.slots.index[self.batch.slots]
        return self.weight.values[rows].to(like.dtype), self.bias.values[rows].to(like.dtype)

    def drop(self, slot: int) -> None:
        """Free a slot's layer, if it has one."""
        row = int(self.slots.index[slot]) if slot < len(self.slots.index) else 0
        if row:
            self.slots.set(slot, 0)
            if row != self.identity_row:
                self.weight.drop(row)
                self.bias.drop(row)


class BankLinear(_HeadLayer):
    """A linear layer of the head, y = W_r x + c_r."""

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Apply each row's own layer."""
        if x.device.type == "cpu" and x.ndim == 2 and x.dtype == self.weight.values.dtype == torch.float32:
            return _affine_in_place(
                x, self.slots.index[self.batch.slots], self.weight.values, self.bias.values
            )
        return _affine(x, *self.taken(x))


class BankOutput(nn.Module):
    """The head's last layer, whose number of outputs differs by adapter; logits are padded with -inf."""

    def __init__(self, base_layer: nn.Linear, batch: Batch, dtype: torch.dtype) -> None:
        super().__init__()
        self.base_layer, self.batch, self.dtype = base_layer, batch, dtype
        self.of_size = {base_layer.out_features: BankLinear(base_layer, batch, dtype)}

    @property
    def tables(self) -> list[RowTable]:
        """Of all sizes."""
        return [table for layer in list(self.of_size.values()) for table in layer.tables]

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b l"]:
        """Apply each row's own layer, in groups of one size."""
        groups = self.batch.groups
        if len(groups) == 1:
            return self.of_size[next(iter(groups))](x)
        found = x.new_full((len(x), max(groups)), float("-inf"))
        slots = self.batch.slots
        try:
            for size, positions in groups.items():
                self.batch.slots = slots[positions]
                found[positions, :size] = self.of_size[size](x[positions])
        finally:
            self.batch.slots = slots
        return found

    def put(
        self, slot: int, weight: Float[Tensor, "o i"] | None = None, bias: Float[Tensor, " o"] | None = None
    ) -> None:
        """Give a slot an output layer of its own, or none: then it has the base's."""
        size = self.base_layer.out_features if weight is None else len(weight)
        if size not in self.of_size:
            base = self.base_layer
            empty = nn.Linear(base.in_features, size).to(base.weight)
            self.of_size[size] = BankLinear(empty.requires_grad_(False), self.batch, self.dtype)
        self.of_size[size].put(slot, weight, bias)

    def drop(self, slot: int) -> None:
        """Free a slot's layer."""
        for size, table in list(self.of_size.items()):
            table.drop(slot)
            if size != self.base_layer.out_features and not table.weight.n_taken:
                del self.of_size[size]


class BankHeadNorm(_HeadLayer):
    """A norm of the head, γ_r ⊙ n(x) + β_r."""

    base_layer: nn.LayerNorm

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Normalise, then scale and shift by row."""
        base = self.base_layer
        normal = nn.functional.layer_norm(x, base.normalized_shape, None, None, base.eps)
        weight, bias = (_rows(values, x) for values in self.taken(x))
        return torch.addcmul(bias, weight, normal)


def _affine(
    x: Float[Tensor, "b ..."], weight: Float[Tensor, "b i o"], bias: Float[Tensor, "b o"]
) -> Float[Tensor, "b ..."]:
    """x_r V_r + c_r for each row r of a batch, V = W transposed; x is (b, i) or (b, s, i)."""
    y = torch.baddbmm(bias[:, None], x.reshape(len(x), -1, x.shape[-1]), weight)
    return y.reshape(*x.shape[:-1], -1)


def _affine_in_place(
    x: Float32[Tensor, "b i"],
    rows: Int64[Tensor, " b"],
    weights: Float32[Tensor, "n i o"],
    biases: Float32[Tensor, "m o"],  # a table that grows before the other one has as yet more rows
) -> Float32[Tensor, "b o"]:
    """The same, V_r and c_r being rows of tables, without copying the weights out of theirs.

    x_r V = Σ_i x_ri V_i is a weighted sum of rows, which `embedding_bag` reads where they are. On a processor
    copying 64 poolers of MiniLM takes a sixth of the forward pass, and this a tenth of that.
    """
    n_rows, n_inputs, n_outputs = weights.shape
    flat = weights.reshape(n_rows * n_inputs, n_outputs)
    index = rows[:, None] * n_inputs + torch.arange(n_inputs, device=x.device)
    y = nn.functional.embedding_bag(index, flat, per_sample_weights=x.contiguous(), mode="sum")
    return y + biases[rows]
