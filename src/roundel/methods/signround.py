"""SignRound and AutoRound: learned rounding offsets and range factors (arXiv 2309.05516, eq. 3 to 5).

    s  = fp16(s0 (beta (n - z0) + alpha z0) / n)       z = round(alpha z0 s0 / s)
    W^ = s (clamp(round(W / s + V) + z, 0, n) - z)

V (one per weight, from 0) moves a weight towards its other neighbour on the grid; alpha and beta (one per
group, from 1) move the lower and the upper end of the range. (s0, z0) is the start, z0 real; with
lo = -z0 s0 and hi = (n - z0) s0 this is the paper's s = (beta hi - alpha lo) / n, z = round(-alpha lo / s).
Rounding passes gradients straight through. SignRound tunes V alone, AutoRound all three.

On a grid with minima, m = alpha m0 and s = (beta (m0 + n s0) - alpha m0) / n. In super-blocks the codes of s and m are
what moves, to the nearest of what their scales, which stay, can say.

Where the grid is not the scheme's to move (statistics on two levels, real zero points), V is tuned alone, on
W^ = s (clamp(round(W / s + z + V), 0, n) - z); outliers are added as they are.

A symmetric grid has one factor, beta, on its size. The reference recomputes which end is the extreme in
every step, so a shrinking extreme can flip the sign of all codes of its group; here the sign stays.
"""

import torch
from torch import nn

from roundel.grid.affine import QParams
from roundel.grid.outliers import Outliers
from roundel.grid.scheme import Scheme
from roundel.methods.fake_quantize import straight_through
from roundel.methods.learned_rounding import descend, offset_gradients, round_learned
from roundel.methods.moved_range import moved_range
from roundel.methods.optimizer import SignSGD
from roundel.methods.parametrization import Parametrization


class RoundingOffsets(Parametrization):
    """The parametrization of one Linear.

    Args:
        weight, start, scheme, outliers: as for every parametrization.
        lr: step size of V, in codes.
        minmax_lr: step size of alpha and beta; None leaves them at 1 (SignRound).
        minmax_limit: largest alpha or beta.
    """

    offset: nn.Parameter

    def __init__(
        self,
        weight: torch.Tensor,
        start: QParams,
        scheme: Scheme,
        *,
        lr: float,
        minmax_lr: float | None,
        minmax_limit: float,
        outliers: Outliers | None = None,
    ) -> None:
        super().__init__(weight, start, scheme, outliers)
        self.lr, self.minmax_lr, self.minmax_limit = lr, minmax_lr, minmax_limit
        tune_range = minmax_lr is not None
        self.offset = nn.Parameter(torch.zeros_like(self.groups))  # V
        self.low = nn.Parameter(torch.ones_like(start.scale), requires_grad=tune_range and not scheme.sym)
        self.high = nn.Parameter(torch.ones_like(start.scale), requires_grad=tune_range)
        self._grid: tuple[torch.Tensor, torch.Tensor] | None = None  # of a step under way, with its graph

    def parameter_groups(self) -> list[dict[str, object]]:
        """V at `lr`, alpha and beta at `minmax_lr`."""
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

    def grid(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The start with its ends moved by alpha and beta."""
        start, n = self.start, self.scheme.levels
        if not self.high.requires_grad:
            return start.scale, start.stored_zero(self.scheme)
        if self.scheme.sym:
            return self._stored(start.scale * self.high, start.zero)
        if self.scheme.minima:
            low = start.zero * self.low
            return self._stored(((start.zero + n * start.scale) * self.high - low) / n, low)
        return moved_range(self.low, self.high, start.scale, start.zero, self.scheme)

    def begin_step(self, dtype: torch.dtype) -> torch.Tensor:
        """As `forward`, without a graph over anything of the weight's size."""
        self._grid = self.grid()
        scale, zero = (x.detach() for x in self._grid)
        # Outliers are added before anything is rounded to the type.
        rounded = dtype if self.outliers is None else torch.float32
        weight = round_learned(
            self.groups, scale, zero, self.scheme, self.offset.detach(), self.in_features, rounded
        )
        return self.with_outliers(weight).to(dtype)

    def end_step(self, gradient: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        """V takes its step here if that is a signed one; alpha and beta get their gradients."""
        assert self._grid is not None
        grid, self._grid = self._grid, None
        scale, zero = (x.detach() for x in grid)
        ranges = any(x.requires_grad for x in grid)
        if isinstance(optimizer, SignSGD):
            step = optimizer.step_size(self.offset)
            found = descend(
                self.groups, scale, zero, self.scheme, self.offset.detach(), gradient, step, ranges=ranges
            )
        else:
            self.offset.grad, found = offset_gradients(
                self.groups, scale, zero, self.scheme, self.offset.detach(), gradient, ranges=ranges
            )
        if found is not None:
            learned = [(x, grad) for x, grad in zip(grid, found, strict=True) if x.requires_grad]
            torch.autograd.backward([x for x, _ in learned], [grad for _, grad in learned])

    def _stored(self, scale: torch.Tensor, zero: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The nearest that the start's own form can store."""
        nearest = self.start.nearest(scale.detach(), zero.detach(), self.scheme)
        return straight_through(scale, nearest.scale), straight_through(zero, nearest.zero)
