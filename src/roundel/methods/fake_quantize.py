"""The one differentiable rounding of all learned methods, with straight-through gradients in closed form.

    W^ = s (clamp(round(u + V) + z, 0, n) - z),   u = W / (s D)

V is an additive offset (SignRound), log D an element-wise division (FlexRound, LRQ); either may be absent. With
r = round(u + V) + z and inside = [0 <= r <= n], q = clamp(r):

    d/dV = s inside     d/dlog D = -s u inside     d/ds = (q - z) - u inside     d/dz = s (inside - 1)

Where a minimum m is stored in place of z, W^ = s clamp(round(u + V - m / s), 0, n) + m:

    d/ds = q - (u - m / s) inside     d/dm = 1 - inside

Autograd would keep seven tensors of the weight's size, for all of a block's Linears, which wait for their gradients at
the same time. This keeps nothing beside the inputs, which are there anyway, and computes r again: a forward pass that
writes down less is faster by as much.
"""

from dataclasses import dataclass

import torch

from roundel.grid.affine import decode_, zero_in_codes
from roundel.grid.lanes import sum_groups
from roundel.grid.scheme import Scheme


def fake_quantize(
    groups: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    scheme: Scheme,
    offset: torch.Tensor | None,
    log_divisor: torch.Tensor | None,
) -> torch.Tensor:
    """Round weights to their grid.

    Args:
        groups: `[out, G, g]` fp32, the weights.
        scale: `[out, G, 1]`, as stored.
        zero: `[out, G, 1]`, as stored.
        scheme: which grid.
        offset: V, `[out, G, g]` in codes.
        log_divisor: log D, `[out, G, g]`.

    Returns:
        `[out, G, g]`, differentiable in scale, zero, offset and log_divisor.
    """
    weight: torch.Tensor = _FakeQuantize.apply(groups, scale, zero, offset, log_divisor, scheme)
    return weight


@dataclass(frozen=True)
class Wanted:
    """Whose gradients are asked for."""

    scale: bool = False
    zero: bool = False
    offset: bool = False
    divisor: bool = False


@dataclass(frozen=True)
class Gradients:
    """Of scale and zero point, `[out, G, 1]`, of V and log D, `[out, G, g]`; None: nobody asked."""

    scale: torch.Tensor | None = None
    zero: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    divisor: torch.Tensor | None = None


# In place wherever possible: of a wide layer each copy is hundreds of megabytes.
def rounding_gradients(
    groups: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    scheme: Scheme,
    offset: torch.Tensor | None,
    log_divisor: torch.Tensor | None,
    grad: torch.Tensor,
    wanted: Wanted,
) -> Gradients:
    """The gradients of what `fake_quantize` was given, from `grad [out, G, g]`, that of its result."""
    grad_scale = grad_zero = grad_offset = grad_divisor = None
    position = _position(groups, scale, log_divisor)
    code_zero = zero_in_codes(scale, zero, scheme)
    rounded = _round(position.clone() if offset is None else position + offset, code_zero, scheme)
    inside = (rounded >= 0).logical_and_(rounded <= scheme.levels)
    position.mul_(inside)
    if wanted.scale:
        # (q - z) - u inside
        rounded.clamp_(0, scheme.levels).sub_(code_zero * inside if scheme.minima else zero).sub_(position)
        grad_scale = sum_groups(rounded.mul_(grad))
    del rounded
    if wanted.divisor:
        grad_divisor = position.mul_(grad).mul_(-scale)
    del position
    if wanted.offset or wanted.zero:
        passed = grad * inside
        if wanted.zero:
            moved = sum_groups(grad) - sum_groups(passed)
            grad_zero = moved if scheme.minima else -moved * scale
        grad_offset = passed.mul_(scale) if wanted.offset else None
    return Gradients(grad_scale, grad_zero, grad_offset, grad_divisor)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def,override]
        ctx,
        groups: torch.Tensor,
        scale: torch.Tensor,
        zero: torch.Tensor,
        offset: torch.Tensor | None,
        log_divisor: torch.Tensor | None,
        scheme: Scheme,
    ) -> torch.Tensor:
        ctx.save_for_backward(groups, scale, zero, offset, log_divisor)
        ctx.scheme = scheme
        position = _position(groups, scale, log_divisor)
        if offset is not None:
            position += offset
        codes = _round(position, zero_in_codes(scale, zero, scheme), scheme).clamp_(0, scheme.levels)
        return decode_(codes, scale, zero, scheme)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # type: ignore[no-untyped-def,override]
        groups, scale, zero, offset, log_divisor = ctx.saved_tensors
        found = rounding_gradients(
            groups, scale, zero, ctx.scheme, offset, log_divisor, grad, Wanted(*ctx.needs_input_grad[1:5])
        )
        return None, found.scale, found.zero, found.offset, found.divisor, None


def _position(groups: torch.Tensor, scale: torch.Tensor, log_divisor: torch.Tensor | None) -> torch.Tensor:
    """u."""
    return groups / (scale if log_divisor is None else divided_scale(scale, log_divisor))


def _round(shifted: torch.Tensor, zero: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """r from u + V, in place."""
    return shifted.round_().add_(zero) if scheme.round_zero else shifted.add_(zero).round_()


def divided_scale(scale: torch.Tensor, log_divisor: torch.Tensor) -> torch.Tensor:
    """s D, what a weight is divided by before it is rounded: `[out, G, g]`."""
    return scale * log_divisor.exp()


def straight_through(value: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """The rounded numbers, bit for bit, with the gradient of the others."""
    return rounded.detach() + (value - value.detach())
