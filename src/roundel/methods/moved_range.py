"""Scale and zero point of ranges whose ends have moved (AutoRound, arXiv 2309.05516, eq. 4), with their gradients.

    t = (beta (n - z0) + alpha z0) / n      s = stored(s0 t)      u = alpha z0 s0 / s      z = clamp(round(u), 0, n)

Both roundings, and the clamp, pass gradients straight through. With S = dL/ds + dL/dz du/ds = dL/ds - u / s dL/dz:

    dL/dbeta = S s0 (n - z0) / n            dL/dalpha = z0 (S s0 / n + dL/dz s0 / s)

In every step of every Linear there are as many of them as groups, and autograd would walk some twenty small operations
for each way.
"""

import torch

from roundel.grid.scheme import Scheme


def moved_range(
    low: torch.Tensor, high: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, scheme: Scheme
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale, as stored, and integer zero point, differentiable in `low` and `high`.

    Args:
        low, high: alpha and beta, `[out, G, 1]`.
        scale, zero: s0 and z0, the start's, `[out, G, 1]`; z0 may be real.
        scheme: which grid.
    """
    found: tuple[torch.Tensor, torch.Tensor] = _MovedRange.apply(low, high, scale, zero, scheme)
    return found


class _MovedRange(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def,override]
        ctx, low: torch.Tensor, high: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, scheme: Scheme
    ) -> tuple[torch.Tensor, torch.Tensor]:
        n, below = scheme.levels, low * zero
        stretch = (n - zero).mul_(high).add_(below).div_(n)
        stored = scheme.round_scale(stretch.mul_(scale))
        position = below.mul_(scale).div_(stored)
        ctx.save_for_backward(scale, zero, stored, position)
        ctx.levels = n
        return stored, position.round().clamp_(0, n)

    # The formulas above, with per_scale = dL/dz / s.
    @staticmethod
    def backward(ctx, grad_scale: torch.Tensor, grad_zero: torch.Tensor):  # type: ignore[no-untyped-def,override]
        scale, zero, stored, position = ctx.saved_tensors
        per_scale = grad_zero / stored
        of_stretch = torch.addcmul(grad_scale, per_scale, position, value=-1).mul_(scale).div_(ctx.levels)
        of_high = (ctx.levels - zero).mul_(of_stretch)
        of_low = of_stretch.addcmul_(per_scale, scale).mul_(zero)
        return of_low, of_high, None, None, None
