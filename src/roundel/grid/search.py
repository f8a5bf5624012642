"""The searched grid: the range that rounds best, instead of the range that clips nothing.

Per group, minimise the weighted rounding error

    E(s, z) = sum_j h_j (s (q_j - z) - w_j)^2,    h_j = mean of x_j^2 over the calibration tokens

h is the diagonal of the layer's Hessian (1 where no data are given). A coarse pass tries other ranges:
every pair of a lower and an upper end on asymmetric grids, every size with either sign on symmetric ones;
mostly shrunken ones, and some wider than the weights (-1, 0, 1 at 2 bits fit a grid whose fourth point lies
outside).
Then rounds of refinement try neighbouring scales and zero points, and the scale that is best for the present
codes, which follows in closed form since E is quadratic in s. Candidates are compared on scales as they will
be stored, and the min/max grid is one of them: a searched start is never worse than it. All in fp32 (an fp16
search is worse than none at 8 bits).

On a CPU a kernel (grid_search.h) does all of this for one group after the other, with the bits that torch's operators
find here.

A fine pass over ranges alone, without refinement, takes two to three times as long and ends higher.

Rejected: exponents other than 2 (OmniQuant and FlexRound's release use 2.4). With h as the weight, 2 is the
layer's own loss, and the least-squares refit needs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from roundel.compiled import grids
from roundel.compiled.grids import GridTries
from roundel.grid.affine import QParams, minmax_start
from roundel.grid.best_grid import choose_grids, grid_errors, sum_codes, take_chosen
from roundel.grid.groups import importance_groups, to_groups
from roundel.grid.scheme import Scheme

_ROUNDS = 3
# Weights per chunk: intermediate tensors of this size stay in a core's second-level cache.
_CHUNK = 256 * 1024


def searched_start(weight: torch.Tensor, scheme: Scheme, diagonal: torch.Tensor | None = None) -> QParams:
    """Search each group's scale and zero point.

    Args:
        weight: `[out, in]`, finite.
        scheme: which grid.
        diagonal: `[in]`, the mean of the squared inputs, or None for an unweighted search.

    Returns:
        A start whose weighted rounding error is at most that of `minmax_start`, group by group.
    """
    importance = importance_groups(diagonal, weight, scheme)
    rows = max(1, _CHUNK // weight.shape[1])
    parts = [_search(part, importance, scheme) for part in weight.float().split(rows)]
    return QParams(torch.cat([p.scale for p in parts]), torch.cat([p.zero for p in parts]))


def _search(weight: torch.Tensor, importance: torch.Tensor, scheme: Scheme) -> QParams:
    groups, start, tries = to_groups(weight, scheme), minmax_start(weight, scheme), _tries(scheme)
    if grids.serve(groups):
        return QParams(*grids.search_grids(groups, importance, scheme, start.scale, start.zero, tries))
    best = _Best(groups, importance, scheme, start.scale, start.zero)
    _try_ranges(best, tries)
    for _ in range(tries.rounds):
        _try_neighbours(best, tries)
        _refit(best)
        _refit(best)
    return QParams(best.scale, best.zero)


@dataclass
class _Best:
    """The best grid so far of every group of one chunk."""

    groups: torch.Tensor  # [rows, G, g]
    importance: torch.Tensor  # [1, G, g]
    scheme: Scheme
    scale: torch.Tensor  # [rows, G, 1]
    zero: torch.Tensor  # [rows, G, 1]

    def __post_init__(self) -> None:
        self.error = grid_errors(self.groups, self.importance, self.scheme, self.scale, self.zero.round())

    def offer(self, scales: torch.Tensor, zeros: torch.Tensor) -> None:
        """Take the best of the candidates `[C, rows, G, 1]` wherever it is strictly better.

        Args:
            scales: as they would be stored.
            zeros: integers.
        """
        choice = choose_grids(self.groups, self.importance, self.scheme, scales, zeros, self.error)
        self.scale = take_chosen(choice, scales, self.scale)
        self.zero = take_chosen(choice, zeros, self.zero)


def range_shares(bits: int) -> tuple[float, ...]:
    """Lengths to try, as shares of the min/max range. Few levels want a tight range, or a much wider one;
    past 4 bits clipping hardly pays."""
    if bits <= 3:
        return (2.0, 1.4, 1.0, 0.8, 0.6, 0.42, 0.25, 0.1)
    if bits == 4:
        return (1.4, 1.15, 1.0, 0.85, 0.7, 0.5, 0.3)
    return (1.05, 1.0, 0.97, 0.93, 0.88, 0.8)


def _tries(scheme: Scheme) -> GridTries:
    shares = range_shares(scheme.bits)
    if scheme.sym and scheme.sym_range == "full":
        shares = tuple(share * sign for share in shares for sign in (1.0, -1.0))
    step = 0.1 if scheme.bits <= 4 else 0.02
    factors = (1 - 2 * step, 1 - step, 1.0, 1 + step, 1 + 2 * step)
    return GridTries(scheme.torch_dtype, shares, factors, zeros=not scheme.sym, rounds=_ROUNDS)


def _try_ranges(best: _Best, tries: GridTries) -> None:
    shares, levels = _column(tries.shares, best.scale), best.scheme.levels
    if not tries.zeros:
        scales = best.scheme.round_scale(best.scale * shares)
        best.offer(scales, best.zero.expand_as(scales))
        return
    low, high = shares * (-best.zero * best.scale), shares * ((levels - best.zero) * best.scale)
    scales = best.scheme.round_scale((high - low[:, None]).div_(levels))
    zeros = (-low[:, None] / scales).round_().clamp_(0, levels)
    best.offer(scales.flatten(0, 1), zeros.flatten(0, 1))


def _try_neighbours(best: _Best, tries: GridTries) -> None:
    shifts = _column((-1, 0, 1) if tries.zeros else (0,), best.scale)
    zeros = (best.zero.round() + shifts).clamp(0, best.scheme.levels)
    scales = best.scheme.round_scale(best.scale * _column(tries.factors, best.scale))
    best.offer(scales.repeat(len(shifts), 1, 1, 1), zeros.repeat_interleave(len(tries.factors), 0))


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """`[C, 1, 1, 1]`, a number for each candidate."""
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None, None, None]


def _refit(best: _Best) -> None:
    zero = best.zero.round()
    _, squares, products = sum_codes(best.groups, best.importance, best.scheme, best.scale, zero)
    scale = best.scheme.round_scale(torch.where(squares > 0, products / squares, best.scale))
    best.offer(scale[None], zero[None])
