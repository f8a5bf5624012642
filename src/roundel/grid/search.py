"""The searched grid: the range that rounds best, instead of the range that clips nothing.

Per group, minimise the weighted rounding error

    E(s, z) = sum_j h_j (s (q_j - z) - w_j)^2,    h_j = mean of x_j^2 over the calibration tokens

h is the diagonal of the layer's Hessian (1 where no data are given). Asymmetric grids try every pair of a
shrunken lower and a shrunken upper end; symmetric ones every shrunken size with either sign. Given the codes,
E is quadratic in s, so the best scale follows in closed form (weighted least squares); two such refits end
the search. Candidates are compared on scales as they will be stored, and the min/max grid is one of them: a
searched start is never worse than it. All in fp32 (an fp16 search is worse than none at 8 bits).

Rejected: exponents other than 2 (OmniQuant and FlexRound's release use 2.4). With h as the weight, 2 is the
layer's own loss, and the least-squares refit needs it.
"""

from dataclasses import dataclass

import torch

from roundel.grid.affine import Start, minmax_start, nearest_codes
from roundel.grid.groups import importance_groups, to_groups
from roundel.grid.scheme import Scheme

# bits: (candidates per end of the range, smallest share of the range tried). Few levels pay for finer steps
# and want a tighter range; past 4 bits clipping hardly pays.
_STEPS = {2: (16, 0.25), 3: (12, 0.35), 4: (10, 0.5)}
_STEPS_ABOVE = (8, 0.75)
_REFITS = 2
# Weights per chunk: intermediate tensors of this size stay in a core's second-level cache.
_CHUNK = 128 * 1024


def searched_start(weight: torch.Tensor, scheme: Scheme, diagonal: torch.Tensor | None = None) -> Start:
    """Search each group's scale and zero point.

    Args:
        weight: `[out, in]`, finite.
        scheme: which grid.
        diagonal: `[in]`, the mean of the squared inputs, or None for an unweighted search.

    Returns:
        A start whose weighted rounding error is at most that of `minmax_start`, group by group.
    """
    if diagonal is None:
        diagonal = torch.ones(weight.shape[1], device=weight.device)
    # Channels that never fire must not make a group's error zero for every candidate.
    diagonal = diagonal.float() / diagonal.mean().clamp_min(1e-30) + 1e-6
    importance = importance_groups(diagonal, scheme)
    rows = max(1, _CHUNK // weight.shape[1])
    parts = [_search(part, importance, scheme) for part in weight.float().split(rows)]
    return Start(torch.cat([p.scale for p in parts]), torch.cat([p.zero for p in parts]))


def _search(weight: torch.Tensor, importance: torch.Tensor, scheme: Scheme) -> Start:
    groups = to_groups(weight, scheme)
    start = minmax_start(weight, scheme)
    best = _Best(groups, importance, scheme, start.scale, start.zero)
    if scheme.sym:
        _try_symmetric(best, start)
    else:
        _try_ranges(best, start)
    for _ in range(_REFITS):
        _refit(best)
    return Start(best.scale, best.zero)


@dataclass
class _Best:
    """The best grid so far of every group of one chunk."""

    groups: torch.Tensor  # [rows, G, g]
    importance: torch.Tensor  # [1, G, g]
    scheme: Scheme
    scale: torch.Tensor  # [rows, G, 1]
    zero: torch.Tensor  # [rows, G, 1]

    def __post_init__(self) -> None:
        self.error = self._error(self.scale, self.zero.round())

    def _error(self, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        error = nearest_codes(self.groups, scale, zero, self.scheme.levels)
        error.sub_(zero).mul_(scale).sub_(self.groups).square_().mul_(self.importance)
        return error.sum(-1, keepdim=True)

    def offer(self, scale: torch.Tensor, zero: torch.Tensor) -> None:
        """Take the candidate (integer zero point) wherever it is strictly better."""
        scale = self.scheme.round_scale(scale)
        error = self._error(scale, zero)
        better = error < self.error
        self.scale = torch.where(better, scale, self.scale)
        self.zero = torch.where(better, zero, self.zero)
        self.error = torch.where(better, error, self.error)


def _shares(bits: int) -> list[float]:
    steps, smallest = _STEPS.get(bits, _STEPS_ABOVE)
    return torch.linspace(1.0, smallest, steps).tolist()


def _try_ranges(best: _Best, start: Start) -> None:
    levels = best.scheme.levels
    lo, hi = -start.zero * start.scale, (levels - start.zero) * start.scale
    for low_share in _shares(best.scheme.bits):
        for high_share in _shares(best.scheme.bits):
            scale = (high_share * hi - low_share * lo) / levels
            rounded = best.scheme.round_scale(scale)
            best.offer(scale, (-low_share * lo / rounded).round_().clamp_(0, levels))


def _try_symmetric(best: _Best, start: Start) -> None:
    steps, smallest = _STEPS.get(best.scheme.bits, _STEPS_ABOVE)
    signs = (1.0, -1.0) if best.scheme.sym_range == "full" else (1.0,)
    for share in torch.linspace(1.1, smallest, 4 * steps).tolist():
        for sign in signs:
            best.offer(start.scale * (share * sign), start.zero)


def _refit(best: _Best) -> None:
    steps = nearest_codes(best.groups, best.scale, best.zero.round(), best.scheme.levels)
    steps -= best.zero.round()
    weighted = steps * best.importance
    top = (weighted * best.groups).sum(-1, keepdim=True)
    bottom = (weighted * steps).sum(-1, keepdim=True)
    best.offer(torch.where(bottom > 0, top / bottom, best.scale), best.zero.round())
