"""Static ranges from calibration data: min/max, percentile, or least squared error.

Two passes at most. The first finds the extremes; percentiles and squared errors come from a histogram between them,
filled in the second.
"""

import torch

from roundel.activations.options import ActivationOptions
from roundel.activations.rounding import grid_of_range
from roundel.activations.scheme import ActivationScheme, StaticGrid
from roundel.system.ranks import Ranks

_BINS = 4096
# Ends of a range that are tried for the least squared error, as shares of the extremes.
_SHARES = 40
_LEAST_SHARE = 0.2


class RangeObserver:
    """Collects the values of one tensor that comes by in parts."""

    def __init__(self) -> None:
        self.lo = self.hi = 0.0  # zero is always inside
        self.histogram: torch.Tensor | None = None

    def extremes(self, x: torch.Tensor) -> None:
        """First pass."""
        lo, hi = x.aminmax()
        self.lo, self.hi = min(self.lo, float(lo)), max(self.hi, float(hi))

    def count(self, x: torch.Tensor) -> None:
        """Second pass."""
        if self.lo == self.hi:
            return
        found = torch.histc(x.float(), _BINS, self.lo, self.hi).double().cpu()
        self.histogram = found if self.histogram is None else self.histogram + found

    def reduce_extremes(self, ranks: Ranks) -> None:
        """Between the passes: count what other ranks have seen."""
        ends = ranks.max(torch.tensor([-self.lo, self.hi], dtype=torch.float64))
        self.lo, self.hi = -float(ends[0]), float(ends[1])

    def reduce_counts(self, ranks: Ranks) -> None:
        """After the second pass: the same."""
        if self.lo == self.hi or ranks.size == 1:
            return
        found = torch.zeros(_BINS, dtype=torch.float64) if self.histogram is None else self.histogram
        self.histogram = ranks.sum(found)

    def grid(self, options: ActivationOptions) -> StaticGrid:
        """The grid by the rule of `act_range`."""
        scheme = options.activations.inputs
        assert scheme is not None
        lo, hi = self.lo, self.hi
        if self.histogram is not None and options.act_range == "percentile":
            lo, hi = self._percentile(options.act_percentile / 100)
        elif self.histogram is not None and options.act_range == "mse":
            lo, hi = self._least_error(scheme)
        scale, zero = grid_of_range(
            torch.tensor(lo, dtype=torch.float32), torch.tensor(hi, dtype=torch.float32), scheme
        )
        return StaticGrid(float(scale), int(zero))

    def _centres(self) -> torch.Tensor:
        width = (self.hi - self.lo) / _BINS
        return self.lo + width * (torch.arange(_BINS, dtype=torch.float64) + 0.5)

    def _percentile(self, share: float) -> tuple[float, float]:
        assert self.histogram is not None
        below = self.histogram.cumsum(0) / self.histogram.sum()
        centres = self._centres()
        lo = float(centres[int((below >= 1 - share).nonzero()[0])])
        hi = float(centres[int((below >= share).nonzero()[0])])
        return min(lo, 0.0), max(hi, 0.0)

    def _least_error(self, scheme: ActivationScheme) -> tuple[float, float]:
        """Try shares of either end; of both together where the grid is symmetric."""
        assert self.histogram is not None
        centres, weights = self._centres().float(), self.histogram.float()
        shares = torch.linspace(_LEAST_SHARE, 1, _SHARES, dtype=torch.float32)
        low, high = (
            (shares, shares)
            if scheme.sym
            else (g.flatten() for g in torch.meshgrid(shares, shares, indexing="ij"))
        )
        ends = torch.stack([low * self.lo, high * self.hi], 1)
        errors = []
        for part in ends.split(64):
            scale, zero = grid_of_range(part[:, :1], part[:, 1:], scheme)
            codes = (centres / scale).add_(zero).round_().clamp_(-scheme.midpoint, scheme.midpoint - 1)
            errors.append((codes.sub_(zero).mul_(scale) - centres).square_() @ weights)
        best = ends[int(torch.cat(errors).argmin())]
        return float(best[0]), float(best[1])
