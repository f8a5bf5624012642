"""SignRound and AutoRound: learned rounding offsets and range factors (arXiv 2309.05516, eq. 3 to 5).

    s  = fp16(s0 (beta (n - z0) + alpha z0) / n)       z = round(alpha z0 s0 / s)
    W^ = s (clamp(round(W / s + V) + z, 0, n) - z)

V (one per weight, from 0) moves a weight towards its other neighbour on the grid; alpha and beta (one per
group, from 1) move the lower and the upper end of the range. (s0, z0) is the start, z0 real; with
lo = -z0 s0 and hi = (n - z0) s0 this is the paper's s = (beta hi - alpha lo) / n, z = round(-alpha lo / s).
Rounding passes gradients straight through. SignRound tunes V alone, AutoRound all three.

Where the grid is not the scheme's to move (statistics on two levels, real zero points), V is tuned alone, on
W^ = s (clamp(round(W / s + z + V), 0, n) - z); outliers are added as they are.

A symmetric grid has one factor, beta, on its size. The reference recomputes which end is the extreme in
every step, so a shrinking extreme can flip the sign of all codes of its group; here the sign stays.
"""

from dataclasses import replace

import torch
from torch import nn

from roundel.grid import Outliers, QuantizedWeight, Scheme, Start
from roundel.grid.affine import nearest_codes
from roundel.grid.groups import from_groups, to_groups
from roundel.methods.parametrization import Parametrization


class RoundingOffsets(Parametrization):
    """The parametrization of one Linear.

    Args:
        weight: `[out, in]` fp32, finite; what step 0 rounds.
        start: the grid at step 0.
        scheme: which grid.
        lr: step size of V, in codes.
        minmax_lr: step size of alpha and beta; None leaves them at 1 (SignRound).
        minmax_limit: largest alpha or beta.
        outliers: weights beside the grid, which stay.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        start: Start,
        scheme: Scheme,
        *,
        lr: float,
        minmax_lr: float | None,
        minmax_limit: float,
        outliers: Outliers | None = None,
    ) -> None:
        super().__init__()
        self.scheme = scheme
        self.lr, self.minmax_lr, self.minmax_limit = lr, minmax_lr, minmax_limit
        tune_range = minmax_lr is not None
        self.in_features = weight.shape[1]
        self.groups = to_groups(weight, scheme)  # [out, G, g]
        self.start, self.outliers = start, outliers
        self.offset = nn.Parameter(torch.zeros_like(self.groups))  # V
        self.low = nn.Parameter(torch.ones_like(start.scale), requires_grad=tune_range and not scheme.sym)
        self.high = nn.Parameter(torch.ones_like(start.scale), requires_grad=tune_range)

    def forward(self) -> torch.Tensor:
        """The fake-quantized weight `[out, in]`, differentiable in V, alpha and beta."""
        scale, zero = self._grid()
        weight = _FakeQuantize.apply(self.groups, self.offset, scale, zero, self.scheme)
        weight = from_groups(weight, self.in_features)
        if self.outliers is None:
            return weight
        return weight + self.outliers.add_to(torch.zeros_like(weight))

    def parameter_groups(self) -> list[dict[str, object]]:
        """V with its own step size, then the range factors that are tuned with theirs."""
        groups: list[dict[str, object]] = [{"params": [self.offset], "lr": self.lr}]
        ranges = [p for p in (self.low, self.high) if p.requires_grad]
        if ranges:
            groups.append({"params": ranges, "lr": self.minmax_lr})
        return groups

    @torch.no_grad()
    def project(self) -> None:
        """After an optimizer step: alpha and beta back into [0, limit]."""
        for factor in (self.low, self.high):
            if factor.requires_grad:
                factor.clamp_(0.0, self.minmax_limit)

    @torch.no_grad()
    def export(self) -> QuantizedWeight:
        """The integers of the present parameters; dequantized they equal `forward()` exactly."""
        scale, zero = self._grid()
        codes = nearest_codes(self.groups, scale, zero, self.scheme, self.offset)
        grid = Start(scale, zero, self.start.scale_tiles, self.start.zero_tiles)
        return replace(grid.with_codes(codes, self.scheme, self.in_features), outliers=self.outliers)

    def _grid(self) -> tuple[torch.Tensor, torch.Tensor]:
        start, n = self.start, self.scheme.levels
        if not self.high.requires_grad:
            return start.scale, start.stored_zero(self.scheme)
        if self.scheme.sym:
            return _round_scale_ste(start.scale * self.high, self.scheme), start.zero
        stretch = (self.high * (n - start.zero) + self.low * start.zero) / n
        scale = _round_scale_ste(start.scale * stretch, self.scheme)
        zero = self.low * start.zero * start.scale / scale
        return scale, zero + (zero.round().clamp(0, n) - zero).detach()


def _round_scale_ste(scale: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    return scale + (scheme.round_scale(scale.detach()) - scale.detach())


class _FakeQuantize(torch.autograd.Function):
    """`s (clamp(round(W/s + V) + z, 0, n) - z)` with straight-through gradients in closed form.

    With r = round(W/s + V) + z and inside = [0 <= r <= n]:

        d/dV = s inside      d/ds = (q - z) - inside W/s      d/dz = s (inside - 1)

    Autograd would keep seven tensors of the weight's size and walk over them one by one; this keeps two,
    d/ds among them.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def,override]
        ctx,
        groups: torch.Tensor,
        offset: torch.Tensor,
        scale: torch.Tensor,
        zero: torch.Tensor,
        scheme: Scheme,
    ) -> torch.Tensor:
        position = groups / scale
        if scheme.round_zero:
            unclamped = (position + offset).round_().add_(zero)
        else:
            unclamped = (position + offset).add_(zero).round_()
        steps = unclamped.clamp(0, scheme.levels)
        inside = steps == unclamped
        steps.sub_(zero)
        weight = steps * scale
        slope = steps.sub_(position.mul_(inside)) if ctx.needs_input_grad[2] else None
        ctx.save_for_backward(scale, inside, slope)
        return weight

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # type: ignore[no-untyped-def,override]
        scale, inside, slope = ctx.saved_tensors
        passed = grad * inside
        grad_scale = grad_zero = None
        if ctx.needs_input_grad[2]:
            grad_scale = (grad * slope).sum(-1, keepdim=True)
        if ctx.needs_input_grad[3]:
            grad_zero = (passed.sum(-1, keepdim=True) - grad.sum(-1, keepdim=True)) * scale
        return None, passed.mul_(scale), grad_scale, grad_zero, None
