"""The one differentiable rounding of all learned methods, with straight-through gradients in closed form.

    W^ = s (clamp(round(u + V) + z, 0, n) - z),   u = W / (s D)

V is an additive offset (SignRound), log D an element-wise division (FlexRound, LRQ); either may be absent. With
r = round(u + V) + z and inside = [0 <= r <= n], q = clamp(r):

    d/dV = s inside     d/dlog D = -s u inside     d/ds = (q - z) - u inside     d/dz = s (inside - 1)

Autograd would keep seven tensors of the weight's size and walk over them one by one; this keeps two or three,
d/ds among them.
"""

import torch

from roundel.grid import Scheme


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
        position = groups / (scale if log_divisor is None else divided_scale(scale, log_divisor))
        unclamped = position.clone() if offset is None else position + offset
        if scheme.round_zero:
            unclamped.round_().add_(zero)
        else:
            unclamped.add_(zero).round_()
        # In place wherever possible: of a wide layer each copy is hundreds of megabytes.
        inside = (unclamped >= 0).logical_and_(unclamped <= scheme.levels)
        steps = unclamped.clamp_(0, scheme.levels).sub_(zero)
        weight = steps * scale
        moving = position.mul_(inside)  # u inside
        _, needs_scale, _, _, needs_divisor, _ = ctx.needs_input_grad
        slope = steps.sub_(moving) if needs_scale else None
        ctx.save_for_backward(scale, inside, slope, moving if needs_divisor else None)
        return weight

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # type: ignore[no-untyped-def,override]
        scale, inside, slope, moving = ctx.saved_tensors
        _, needs_scale, needs_zero, needs_offset, needs_divisor, _ = ctx.needs_input_grad
        grad_scale = grad_zero = grad_offset = grad_divisor = None
        if needs_scale:
            grad_scale = (grad * slope).sum(-1, keepdim=True)
        if needs_divisor:
            grad_divisor = (grad * moving).mul_(-scale)
        if needs_offset or needs_zero:
            passed = grad * inside
            if needs_zero:
                grad_zero = (passed.sum(-1, keepdim=True) - grad.sum(-1, keepdim=True)) * scale
            grad_offset = passed.mul_(scale) if needs_offset else None
        return None, grad_scale, grad_zero, grad_offset, grad_divisor, None


def divided_scale(scale: torch.Tensor, log_divisor: torch.Tensor) -> torch.Tensor:
    """s D, what a weight is divided by before it is rounded: `[out, G, g]`."""
    return scale * log_divisor.exp()


def round_scale_straight_through(scale: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Scales rounded to their stored type, with the gradient of the unrounded ones."""
    return scale + (scheme.round_scale(scale.detach()) - scale.detach())
