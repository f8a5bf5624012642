"""What every search for grids asks of the weights: which of several grids is best, and what its codes sum up to.

    E(s, z) = sum_j h_j (w^_j - w_j)^2

with w^ the nearest weights on the grid and h the importance of the input channels. By a kernel in one pass over the
weights, or by torch's operators, which find the same bits. Weights are multiplied by 1 / s: only one in the middle
between two codes, which err alike, may get another code than division would give it.
"""

import torch

from roundel.compiled import grids
from roundel.grid.affine import decode_, round_codes_, zero_in_codes
from roundel.grid.lanes import sum_groups
from roundel.grid.scheme import Scheme


def grid_errors(
    groups: torch.Tensor, importance: torch.Tensor, scheme: Scheme, scale: torch.Tensor, zero: torch.Tensor
) -> torch.Tensor:
    """E of one grid, `[out, G, 1]`.

    Args:
        groups: `[out, G, g]` fp32.
        importance: `[1, G, g]`.
        scheme: says what scales and zero points mean.
        scale, zero: `[out, G, 1]`, as stored.
    """
    error = torch.full_like(scale, torch.inf)
    choose_grids(groups, importance, scheme, scale[None], zero[None], error)
    return error


def choose_grids(
    groups: torch.Tensor,
    importance: torch.Tensor,
    scheme: Scheme,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    error: torch.Tensor,
) -> torch.Tensor:
    """Which of several grids is best for every group.

    Args:
        groups, importance, scheme: as for `grid_errors`.
        scales, zeros: `[C, out, G, 1]`.
        error: `[out, G, 1]`: E of what is there already; E of the best, then.

    Returns:
        `[out, G, 1]` int32: the number of the first of the best; -1 where none has less error than what is there.
    """
    if grids.serve(groups):
        return grids.choose_grids(groups, importance, scheme, scales, zeros, error)
    choice = torch.full(error.shape, -1, dtype=torch.int32, device=error.device)
    for number, (scale, zero) in enumerate(zip(scales, zeros, strict=True)):
        codes = _codes(groups, scale, zero, scheme)
        missed = decode_(codes, scale, zero, scheme).sub_(groups).square_().mul_(importance)
        found = sum_groups(missed)
        better = found < error
        error.copy_(torch.where(better, found, error))
        choice.masked_fill_(better, number)
    return choice


def take_chosen(choice: torch.Tensor, candidates: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """The chosen ones of `candidates [C, out, G, 1]`; `present [out, G, 1]` where none is chosen."""
    chosen = candidates.gather(0, choice.clamp_min(0).to(torch.int64)[None])[0]
    return torch.where(choice < 0, present, chosen)


def sum_codes(
    groups: torch.Tensor, importance: torch.Tensor, scheme: Scheme, scale: torch.Tensor, zero: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums over the nearest codes of each group, `[out, G, 1]` each: of h a, h a^2 and h a w.

    a is the distance of the code from the zero point, or the code where there are minima. Arguments are those of
    `grid_errors`.
    """
    if grids.serve(groups):
        return grids.sum_codes(groups, importance, scheme, scale, zero)
    a = _codes(groups, scale, zero, scheme)
    if not scheme.minima:
        a -= zero
    weighted = a * importance
    return sum_groups(weighted), sum_groups(weighted * a), sum_groups(weighted * groups)


def _codes(groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    return round_codes_(groups * (1.0 / scale), zero_in_codes(scale, zero, scheme), scheme)
