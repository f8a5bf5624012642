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

import torch

from roundel.grid.affine import decode_, zero_in_codes
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


class _FakeQuantize(torch.autograd.Function):
    # In place wherever possible: of a wide layer each copy is hundreds of megabytes.
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
        scheme: Scheme = ctx.scheme
        _, needs_scale, needs_zero, needs_offset, needs_divisor, _ = ctx.needs_input_grad
        grad_scale = grad_zero = grad_offset = grad_divisor = None
        position = _position(groups, scale, log_divisor)
        code_zero = zero_in_codes(scale, zero, scheme)
        rounded = _round(position.clone() if offset is None else position + offset, code_zero, scheme)
        inside = (rounded >= 0).logical_and_(rounded <= scheme.levels)
        position.mul_(inside)
        if needs_scale:
            # (q - z) - u inside
            rounded.clamp_(0, scheme.levels).sub_(code_zero * inside if scheme.minima else zero).sub_(
                position
            )
            grad_scale = rounded.mul_(grad).sum(-1, keepdim=True)
        del rounded
        if needs_divisor:
            grad_divisor = position.mul_(grad).mul_(-scale)
        del position
        if needs_offset or needs_zero:
            passed = grad * inside
            if needs_zero:
                moved = grad.sum(-1, keepdim=True) - passed.sum(-1, keepdim=True)
                grad_zero = moved if scheme.minima else -moved * scale
            grad_offset = passed.mul_(scale) if needs_offset else None
        return None, grad_scale, grad_zero, grad_offset, grad_divisor, None


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
