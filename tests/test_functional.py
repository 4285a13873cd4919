"""The operation itself: exact at zero, right in value, wide in half precision."""

import pytest
import torch
from jaxtyping import TypeCheckError

from hadamard_adapter import hadamard

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_offsets_give_back_the_input_bit_for_bit(dtype):
    x, zero = random(2, 3, 5).to(dtype), torch.zeros(5)
    for scale in (None, zero):
        for shift in (None, zero):
            assert torch.equal(hadamard(x, scale, shift), x)


def test_the_values_are_those_of_the_equation():
    x, scale, shift = random(2, 3, 5), random(5, seed=1), random(5, seed=2)
    expected = x * (1 + scale) + shift
    torch.testing.assert_close(hadamard(x, scale, shift), expected)
    torch.testing.assert_close(hadamard(x, scale=scale), x * (1 + scale))
    torch.testing.assert_close(hadamard(x, shift=shift), x + shift)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset_dtype", [torch.float32, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype, offset_dtype):
    x = random(64, 32).to(dtype)
    scale, shift = torch.full((32,), 0.003, dtype=offset_dtype), random(32, seed=1).to(offset_dtype)
    exact = x.double() * (1 + scale.double()) + shift.double()
    error = (hadamard(x, scale, shift).double() - exact).abs()
    assert (error <= 0.501 * torch.finfo(dtype).eps * exact.abs() + torch.finfo(dtype).tiny).all()
    assert not torch.equal(hadamard(x, scale), x)  # in bfloat16, 1 + 0.003 is 1


def test_shapes_and_types_are_checked_while_the_tests_run():
    assert hadamard(random(2, 3), scale=random(3)).shape == (2, 3)
    for wrong in (random(4), torch.zeros(3, dtype=torch.long), 1.0):
        with pytest.raises(TypeCheckError, match="parameter 'scale'"):
            hadamard(random(2, 3), scale=wrong)


def test_rows_may_have_offsets_of_their_own():
    x, scale = random(4, 3, 5), random(4, 1, 5, seed=1)
    for row in range(4):
        assert torch.equal(hadamard(x, scale)[row], hadamard(x[row], scale[row]))


def test_gradients_are_those_of_the_equation():
    x, scale, shift = (random(3, 4, seed=seed, dtype=torch.float64) for seed in range(3))
    inputs = [value.requires_grad_() for value in (x, scale[0].detach(), shift[0].detach())]
    assert torch.autograd.gradcheck(hadamard, inputs)
