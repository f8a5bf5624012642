"""Scale and zero point chosen jointly, for grids with real zero points or with two-level statistics.

A group's range fixes its scale s = (hi - lo) / n and, real, its zero point z = -lo / s. Once both are rounded to
a coarse second-level grid, the nearest scale and the nearest zero point are seldom the best pair: an error of z
shifts the whole group by s times as much, and another scale may fit the zero point that is to be had. So each
group tries scales and zero points around the nearest ones and keeps the pair with the smallest

    E(s, z) = sum_j h_j (s (q_j - z) - w_j)^2

and each tile tries shorter ranges for its zero points, since a few far ones would cost all the others their
resolution. On two blocks of SmolLM2-135M, 4 bit, groups of 16 in tiles of 16 at 3 bit, this lowers the weighted
rounding error to 0.35 of the nearest pair's (0.46 with 3-bit codes), below that of 16-bit min/max statistics.

Without search only the nearest ones are taken, which is the reference's rule, with the zero point computed from
the scale that is stored.
"""

import torch

from roundel.compiled import two_level as kernel
from roundel.grid.affine import QParams, join_starts
from roundel.grid.best_grid import choose_grids
from roundel.grid.groups import importance_groups, to_groups
from roundel.grid.lanes import sum_groups
from roundel.grid.scheme import Scheme
from roundel.grid.statistic_grids import POINT, LevelStatistic, PlainStatistic, StatisticGrid, least_step
from roundel.grid.two_level import Tiles

# Codes to either side of the nearest that are tried.
_SCALE_REACH = 2
_ZERO_REACH = 1
# Ranges of a tile's zero points that are tried, as shares of the whole one.
_ZERO_RANGES = (1.0, 0.8, 0.6)
# Scale of nothing but zeros: the smallest normal fp16, so that a zero point's rounding comes to nothing.
_SMALL = 2.0**-14
# Least scale on two levels, as a share of the largest of its tile.
_LEAST_SHARE = 1 / 32
# Farthest that a real zero point in 16 bits may lie from the codes: from there on it is no longer fine enough.
# (On two levels, twice the range of the codes: farther ones would cost their tile its resolution.)
_FARTHEST_PLAIN = 256


def joint_start(
    weight: torch.Tensor, scheme: Scheme, diagonal: torch.Tensor | None, *, search: bool
) -> QParams:
    """Fit every group's scale and zero point, as stored.

    Args:
        weight: `[out, in]`, finite.
        scheme: with real zero points or a second level.
        diagonal: `[in]`, importance of each input channel, or None.
        search: try pairs around the nearest one; off: the reference's rule.
    """
    groups = to_groups(weight.float(), scheme)
    importance = importance_groups(diagonal, weight, scheme)[0]
    parts = []
    for index in range(groups.shape[1]):
        if kernel.serve(groups, scheme):
            columns = groups[:, index].t().contiguous()
            parts.append(_by_kernel(columns, importance[index], scheme, search=search))
            continue
        group = _pad_rows(groups[:, index], scheme.tile_rows if scheme.two_level else 1)
        parts.append(_Fit(group, importance[index], scheme, search).start(weight.shape[0]))
    return join_starts(parts)


def joint_tries(scheme: Scheme, *, search: bool) -> kernel.TwoLevelTries:
    """What is tried on two levels, for the kernels."""
    return kernel.TwoLevelTries(
        scale_reach=_SCALE_REACH if search else 0,
        zero_reach=_ZERO_REACH if search else 0,
        zero_ranges=_ZERO_RANGES if search else (1.0,),
        least_share=_LEAST_SHARE,
        small=_SMALL,
        point=POINT,
        least_step=least_step(scheme.torch_dtype),
    )


def _by_kernel(columns: torch.Tensor, importance: torch.Tensor, scheme: Scheme, *, search: bool) -> QParams:
    """The fit of one column group `[g, out]`."""
    scale, zero = kernel.fit(columns, importance, scheme, joint_tries(scheme, search=search))
    scale_level, zero_level = (
        Tiles(found.codes, found.step, found.offset, bits, scheme.tile_rows)
        for found, bits in ((scale, scheme.scale_bits), (zero, scheme.zero_bits))
        if bits is not None
    )
    return QParams(scale.values.view(-1, 1, 1), zero.values.view(-1, 1, 1), scale_level, zero_level)


def _pad_rows(group: torch.Tensor, rows: int) -> torch.Tensor:
    """`[out, g]` to `[P, g]`, P a multiple of `rows`: the last row again, which changes no tile's range."""
    missing = -len(group) % rows
    return torch.cat([group, group[-1:].expand(missing, -1)]) if missing else group.contiguous()


class _Fit:
    """The fit of one column group, `group [P, g]`.

    Candidates are `[S, K, L, P]`: S ranges of the zero points' tiles, K scales, L zero points for each, P rows.
    """

    def __init__(self, group: torch.Tensor, importance: torch.Tensor, scheme: Scheme, search: bool) -> None:
        self.group, self.importance, self.scheme, self.search = group, importance, scheme, search
        smallest, largest = group.amin(1), group.amax(1)
        if scheme.sym:
            scale = torch.maximum(-smallest, largest) / (scheme.midpoint - 0.5)
        else:
            if scheme.round_zero:
                smallest, largest = smallest.clamp(max=0), largest.clamp(min=0)
            scale = (largest - smallest) / scheme.levels
        self.middle = (smallest + largest) / 2
        # A group of one value is exact if that value, not the middle between two codes, is on a code.
        self.centre = torch.where(scale > 0, scheme.levels / 2, scheme.levels // 2)
        self.scale = _sound_scales(scale, self.middle, scheme)

    def start(self, out: int) -> QParams:
        """The best pair of every row, tile by tile, for the first `out` rows."""
        scales = self._scale_grid()
        scale = scales.around(self.scale[None], _SCALE_REACH if self.search else 0)[0, :, 0]  # [K, P]
        zeros = self._zero_grid(scales)
        zero = self._zeros(scale, zeros)  # [S, K, L, P]
        error, choice = self._best(scale, zero)
        chosen_scale = scale.gather(0, choice // zero.shape[2])
        chosen_zero = zero.flatten(1, 2).gather(1, choice[:, None])[:, 0]
        if len(error) > 1:
            # The range that is best for a tile as a whole.
            tiles = sum_groups(error.view(len(error), -1, self.scheme.tile_rows))[..., 0].argmin(0)  # [T]
            rows = tiles.repeat_interleave(self.scheme.tile_rows)[None]
            chosen_scale, chosen_zero = chosen_scale.gather(0, rows), chosen_zero.gather(0, rows)
            zeros = zeros.pick(tiles)
        return QParams(
            chosen_scale[0, :out].view(-1, 1, 1),
            chosen_zero[0, :out].view(-1, 1, 1),
            scales.tiles(chosen_scale, out),
            zeros.tiles(chosen_zero, out),
        )

    def _scale_grid(self) -> StatisticGrid:
        if self.scheme.scale_bits is None:
            return PlainStatistic(self.scheme, positive=True)
        return LevelStatistic.spanning(self.scale, self.scheme, self.scheme.scale_bits)

    def _zero_grid(self, scales: StatisticGrid) -> StatisticGrid:
        scheme = self.scheme
        if scheme.zero_bits is None:
            return PlainStatistic(scheme, positive=False)
        wanted = self._zero_for(scales.around(self.scale[None], 0)[0, 0])[0]
        shares = _ZERO_RANGES if self.search else (1.0,)
        return LevelStatistic.spanning(wanted, scheme, scheme.zero_bits, shares, symmetric=scheme.zero_sym)

    def _zeros(self, scale: torch.Tensor, zeros: StatisticGrid) -> torch.Tensor:
        """Zero points to try for every scale `[K, P]`: `[S, K, L, P]`."""
        reach = _ZERO_REACH if self.search else 0
        if self.scheme.sym:
            return torch.full_like(scale, self.scheme.midpoint)[None, :, None]
        if self.scheme.round_zero:
            nearest = self._zero_for(scale).round()[:, None]
            steps = torch.arange(-reach, reach + 1, device=scale.device)[:, None]
            return (nearest + steps).clamp(0, self.scheme.levels)[None]
        return zeros.around(self._zero_for(scale), reach).transpose(1, 2)

    def _zero_for(self, scale: torch.Tensor) -> torch.Tensor:
        """The zero point that puts the middle of the codes on the middle of the range."""
        return self.centre - self.middle / scale

    def _best(self, scale: torch.Tensor, zero: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The least E for each range of the zero points, and the number of its pair among K x L, `[S, P]` each."""
        scales = scale[:, None].expand_as(zero[0]).flatten(0, 1)
        rows, importance = self.group[:, None], self.importance[None, None]
        found = []
        for zeros in zero.flatten(1, 2):
            error = torch.full_like(self.scale, torch.inf)[:, None, None]
            choice = choose_grids(
                rows, importance, self.scheme, scales[..., None, None], zeros[..., None, None], error
            )
            found.append((error.flatten(), choice.flatten().clamp_min(0)))
        errors, choices = zip(*found, strict=True)
        return torch.stack(errors), torch.stack(choices).to(torch.int64)


def _sound_scales(scale: torch.Tensor, middle: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Scales with which no row spoils its tile.

    A group that is a single value is content with any scale: it takes the largest of its tile, or the value
    itself where the whole tile is of that kind. A group that is almost one gets a scale that is coarse for it
    but fine beside the others': a tiny one would stretch the tile's grid of scales, and its zero point,
    -lo / scale, would be so far away that the tile's other zero points all fell on one code.
    """
    tiles = scale.view(-1, scheme.tile_rows if scheme.scale_bits is not None else 1)
    middle = middle.abs().view_as(tiles)
    largest = tiles.amax(1, keepdim=True)
    own = torch.where(middle > 0, middle, _SMALL).amax(1, keepdim=True)
    tiles = torch.where(tiles > 0, tiles, torch.where(largest > 0, largest, own))
    if scheme.scale_bits is not None:
        tiles = torch.maximum(tiles, _LEAST_SHARE * largest)
    if not scheme.round_zero:
        farthest = _FARTHEST_PLAIN if scheme.zero_bits is None else 2 * scheme.levels
        tiles = torch.maximum(tiles, middle / farthest)
    return tiles.flatten()
