"""The idea, in one function: an element-wise scale and shift, kept as offsets from the identity."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["hadamard"]


def hadamard(
    x: Float[Tensor, "*shape"],
    scale: Float[Tensor, "*#shape"] | None = None,
    shift: Float[Tensor, "*#shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """Returns x with every feature scaled and shifted.

        y = (1 + scale) ⊙ x + shift = x + scale ⊙ x + shift

    Computed in float32 (or wider, if x is) and rounded once to x's dtype: in bfloat16, 1 + 0.003 is 1, so a
    scale that were applied in half precision would be lost.

    Args:
        x: The activations, of any floating dtype.
        scale: Offset of the scale from one; None stands for zero. Broadcasts against x.
        shift: The shift; None stands for zero. Broadcasts against x.

    Returns:
        The adapted activations, of x's shape and dtype. Zeros (or None) give back x itself, bit for bit.

    Source: Chen et al., CIKM 2023 (arXiv 2407.11033), with w = 1 + scale and b = shift.

    Example:
        >>> hadamard(torch.tensor([1.0, 2.0]), scale=torch.tensor([0.0, 0.5]), shift=torch.tensor([1.0, 0.0]))
        tensor([2., 3.])
    """
    if scale is None and shift is None:
        return x
    wide = torch.promote_types(x.dtype, torch.float32)
    if scale is None:
        assert shift is not None
        return (x + shift.to(wide)).to(x.dtype)
    factor = 1 + scale.to(wide)
    # x is promoted inside the operation, so that backward keeps it as it came and not twice as large.
    if shift is None:
        return (x * factor).to(x.dtype)
    return torch.addcmul(shift.to(wide), x, factor).to(x.dtype)
