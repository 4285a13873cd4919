"""Layers laid out for oneDNN: the same numbers, only where they may be, and only where they are faster."""

import pytest
import torch
from torch import nn

from hadamard_adapter.tuning import onednn
from hadamard_adapter.tuning.onednn import OneDnnLinear, is_faster, pack_linears

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")


def frozen(n_in: int = 24, n_out: int = 40, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(n_in, n_out, bias=bias).requires_grad_(False)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (7,), (300,), (2, 5), (0,)])
def test_a_layer_says_the_same_for_any_number_of_rows(shape: tuple[int, ...], bias: bool) -> None:
    layer = frozen(bias=bias)
    packed, x = OneDnnLinear(layer), torch.randn(*shape, layer.in_features)
    torch.testing.assert_close(packed(x), layer(x), atol=1e-6, rtol=1e-5)
    assert torch.equal(packed.weight, layer.weight)


@needs_onednn
def test_only_frozen_float32_linear_layers_are_packed_and_none_that_are_excepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onednn, "is_faster", lambda layer: True)
    model = nn.ModuleDict(
        {
            "plain": frozen(),
            "trains": nn.Linear(24, 24),
            "rounded": frozen().bfloat16(),
            "head": nn.Sequential(frozen()),
            "header": frozen(),
            "whole": frozen(),
            "norm": nn.LayerNorm(24).requires_grad_(False),
        }
    )
    assert pack_linears(model, but=["head", "whole"]) == 2
    assert [name for name, module in model.items() if isinstance(module, OneDnnLinear)] == ["plain", "header"]
    assert pack_linears(model, but=["head", "whole"]) == 0


def test_nothing_changes_where_it_is_not_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "is_faster", lambda layer: False)
    model = nn.Sequential(frozen())
    assert pack_linears(model) == 0 and type(model[0]) is nn.Linear


@needs_onednn
@pytest.mark.parametrize(("ours_s", "expected"), [(0.8, True), (0.95, False)])
def test_a_tenth_must_be_gained(ours_s: float, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_seconds", lambda call, x: ours_s if isinstance(call, OneDnnLinear) else 1.0)
    assert is_faster(frozen()) == expected


@needs_onednn
def test_a_layer_that_errs_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_seconds", lambda call, x: 0.1 if isinstance(call, OneDnnLinear) else 1.0)
    monkeypatch.setattr(OneDnnLinear, "forward", lambda self, x: x.new_zeros(len(x), self.out_features))
    assert not is_faster(frozen())
