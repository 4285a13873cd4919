"""Exact folds: an adapter disappears into the weight and bias of the projection it stands at."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["fold"]


def fold(
    weight: Float[Tensor, "*axes"],
    bias: Float[Tensor, " o"] | None,
    in_scale: Float[Tensor, " i"] | None = None,
    in_shift: Float[Tensor, " i"] | None = None,
    out_scale: Float[Tensor, " o"] | None = None,
    out_shift: Float[Tensor, " o"] | None = None,
    out_axis: int = 0,
) -> tuple[Float[Tensor, "*axes"], Float[Tensor, " o"] | None]:
    """Returns the weight and bias of the projection that does what projection and adapters did.

        y  = (1 + s_out) ⊙ (W ((1 + s_in) ⊙ x + b_in) + c) + b_out
        W' = diag(1 + s_out) W diag(1 + s_in)
        c' = (1 + s_out) ⊙ (c + W b_in) + b_out

    Computed in float32 or wider and rounded once.

    Args:
        weight: W, of shape (o, i) or (o, i, *kernel), or (i, o) with out_axis=1 (GPT-2's Conv1D).
        bias: c, or None.
        in_scale, in_shift: Offset of the input scale from one, and the input shift; None for zero.
        out_scale, out_shift: The same of the output.
        out_axis: The axis of W that counts outputs, 0 or 1.

    Returns:
        (W', c') in W's dtype. c' is None only if nothing shifts and c is None.

    Example:
        >>> fold(torch.eye(2), None, out_scale=torch.tensor([1.0, 0.0]))[0]
        tensor([[2., 0.],
                [0., 1.]])
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    new_weight, new_bias = weight.to(wide), None if bias is None else bias.to(wide)

    def along(vector: Float[Tensor, " n"], axis: int) -> Float[Tensor, "..."]:
        return vector.to(wide).view([-1 if at == axis else 1 for at in range(weight.ndim)])

    if in_shift is not None:
        others = [axis for axis in range(weight.ndim) if axis != out_axis]
        carried = (new_weight * along(in_shift, 1 - out_axis)).sum(others)
        new_bias = carried if new_bias is None else new_bias + carried
    if in_scale is not None:
        new_weight = new_weight * (1 + along(in_scale, 1 - out_axis))
    if out_scale is not None:
        new_weight = new_weight * (1 + along(out_scale, out_axis))
        new_bias = None if new_bias is None else new_bias * (1 + out_scale.to(wide))
    if out_shift is not None:
        new_bias = out_shift.to(wide) if new_bias is None else new_bias + out_shift.to(wide)
    return new_weight.to(weight.dtype), None if new_bias is None else new_bias.to(weight.dtype)
