"""Grids with minima: a scale and the value of code 0, chosen together.

    W^ = s q + m,    q = clamp(round((w - m) / s), 0, n)

minimises E(s, m) = sum_j h_j (s q_j + m - w_j)^2 as search.py does: a coarse pass over lower and upper ends of the
range, then rounds of refinement. For given codes E is quadratic in both s and m, and their best pair solves two
equations. Without search the range is the weights'.
"""

from dataclasses import dataclass

import torch

from roundel.grid.best_grid import choose_grids, grid_errors, sum_codes, take_chosen
from roundel.grid.scheme import Scheme
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
            scheme: one that stores minima.
        below: minima are never above zero.
        scale, minimum: `[rows, G, 1]`.
    """

    groups: torch.Tensor
    importance: torch.Tensor
    scheme: Scheme
    below: bool

    def __post_init__(self) -> None:
        lo, hi = self.groups.amin(-1, keepdim=True), self.groups.amax(-1, keepdim=True)
        if self.below:
            # Zero is in range: a group far above it would need a minimum that is none.
            lo, hi = lo.clamp(max=0), hi.clamp(min=0)
        self.scale, self.minimum = ((hi - lo) / self.scheme.levels).clamp_min(_SMALL), lo
        self.error = grid_errors(self.groups, self.importance, self.scheme, self.scale, self.minimum)

    def search(self) -> "MinimaFit":
        """Try other ranges, and refine the best."""
        levels = self.scheme.levels
        lo, hi = self.minimum, self.minimum + levels * self.scale
        shares = torch.tensor(range_shares(self.scheme.bits), dtype=torch.float32, device=lo.device)
        low, high = shares[:, None, None, None] * lo, shares[:, None, None, None] * hi
        scales = ((high - low[:, None]) / levels).flatten(0, 1)
        self._offer(scales, low.repeat_interleave(len(shares), 0))
        for _ in range(_ROUNDS):
            scale, minimum = self._best_for_present_codes()
            self._offer(scale[None], minimum[None])
        return self

    def _offer(self, scales: torch.Tensor, minima: torch.Tensor) -> None:
        """Take the best of the candidates `[C, rows, G, 1]` wherever it is strictly better."""
        scales = scales.clamp_min(_SMALL)
        choice = choose_grids(self.groups, self.importance, self.scheme, scales, minima, self.error)
        self.scale = take_chosen(choice, scales, self.scale)
        self.minimum = take_chosen(choice, minima, self.minimum)

    def _best_for_present_codes(self) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.importance
        codes, squares, products = sum_codes(self.groups, h, self.scheme, self.scale, self.minimum)
        weights = (self.groups * h).sum(-1, keepdim=True)
        scale, minimum = solve_pairs(squares, codes, h.sum(-1, keepdim=True), products, weights)
        if self.below:
            alone = products / squares.clamp_min(1e-30)
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
