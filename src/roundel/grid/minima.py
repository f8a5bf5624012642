"""Grids with minima: a scale and the value of code 0, chosen together.

    W^ = s q + m,    q = clamp(round((w - m) / s), 0, n)

minimises E(s, m) = sum_j h_j (s q_j + m - w_j)^2 as search.py does: a coarse pass over lower and upper ends of the
range, then rounds of refinement. For given codes E is quadratic in both s and m, and their best pair solves two
equations. Without search the range is the weights'.
"""

from dataclasses import dataclass

import torch

from roundel.grid.search import range_shares

_ROUNDS = 4
# Least size of a scale, and scale of a group whose weights are all one value: the smallest normal fp16.
_SMALL = 2.0**-14


@dataclass
class MinimaFit:
    """The best scales and minima so far, in fp32.

    Attributes:
        groups: `[rows, G, g]` fp32.
        importance: `[1, G, g]`.
        levels: n.
        below: minima are never above zero.
        scale, minimum: `[rows, G, 1]`.
    """

    groups: torch.Tensor
    importance: torch.Tensor
    levels: int
    below: bool

    def __post_init__(self) -> None:
        lo, hi = self.groups.amin(-1, keepdim=True), self.groups.amax(-1, keepdim=True)
        if self.below:
            # Zero is in range: a group far above it would need a minimum that is none.
            lo, hi = lo.clamp(max=0), hi.clamp(min=0)
        self.scale, self.minimum = ((hi - lo) / self.levels).clamp_min(_SMALL), lo
        self.error = self.errors(self.scale, self.minimum)

    def codes(self, scale: torch.Tensor, minimum: torch.Tensor) -> torch.Tensor:
        """The nearest codes, `[rows, G, g]` fp32."""
        return (self.groups / scale).add_(-minimum / scale).round_().clamp_(0, self.levels)

    def errors(self, scale: torch.Tensor, minimum: torch.Tensor) -> torch.Tensor:
        """E of every group, `[rows, G, 1]`."""
        error = self.codes(scale, minimum).mul_(scale).add_(minimum).sub_(self.groups)
        return error.square_().mul_(self.importance).sum(-1, keepdim=True)

    def search(self, bits: int) -> "MinimaFit":
        """Try other ranges, and refine the best."""
        lo, hi = self.minimum, self.minimum + self.levels * self.scale
        for low_share in range_shares(bits):
            for high_share in range_shares(bits):
                self._offer((high_share * hi - low_share * lo) / self.levels, low_share * lo)
        for _ in range(_ROUNDS):
            self._offer(*self._best_for_present_codes())
        return self

    def _offer(self, scale: torch.Tensor, minimum: torch.Tensor) -> None:
        """Take the candidate wherever it is strictly better."""
        scale = scale.clamp_min(_SMALL)
        error = self.errors(scale, minimum)
        better = error < self.error
        self.scale = torch.where(better, scale, self.scale)
        self.minimum = torch.where(better, minimum, self.minimum)
        self.error = torch.where(better, error, self.error)

    def _best_for_present_codes(self) -> tuple[torch.Tensor, torch.Tensor]:
        codes = self.codes(self.scale, self.minimum)
        h = self.importance
        weighted = codes * h
        sums = (
            h.sum(-1, keepdim=True),
            weighted.sum(-1, keepdim=True),
            (weighted * codes).sum(-1, keepdim=True),
        )
        w, qw = (self.groups * h).sum(-1, keepdim=True), (weighted * self.groups).sum(-1, keepdim=True)
        scale, minimum = solve_pairs(sums[2], sums[1], sums[0], qw, w)
        if self.below:
            alone = qw / sums[2].clamp_min(1e-30)
            scale = torch.where(minimum > 0, alone, scale)
            minimum = minimum.clamp(max=0)
        sound = torch.isfinite(scale) & torch.isfinite(minimum) & (scale > 0)
        return torch.where(sound, scale, self.scale), torch.where(sound, minimum, self.minimum)


def solve_pairs(
    aa: torch.Tensor, ab: torch.Tensor, bb: torch.Tensor, aw: torch.Tensor, bw: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, y that minimise `sum (x a + y b - w)^2` from the sums of products; not finite where there is no one pair."""
    # Sums of squares lose half of their digits in the difference.
    aa, ab, bb, aw, bw = (x.double() for x in (aa, ab, bb, aw, bw))
    below = aa * bb - ab * ab
    x, y = (aw * bb - bw * ab) / below, (bw * aa - aw * ab) / below
    return x.float(), y.float()
