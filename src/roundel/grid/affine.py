"""The min/max grid, and codes from a grid.

asymmetric:            lo = min(W, 0), hi = max(W, 0), s = (hi - lo) / n, z = -lo / s
symmetric, full range: s = M / m with M the extreme of larger size and s of opposite sign: the extreme is code 0
symmetric, classic:    s = max|W| / (m - 0.5)

A start keeps the zero point as a REAL number: tuning scales both ends of the range, and the place where the
rounding of the zero point flips then is where the formula of the paper has it. Groups whose values are all
equal get scale = |value|, so that they come out exact whatever the number of bits.
"""

from dataclasses import dataclass

import torch

from roundel.grid.groups import from_groups, to_groups
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.grid.two_level import Statistic, Tiles, concatenate


@dataclass(frozen=True)
class QParams:
    """A grid before tuning.

    Attributes:
        scale: `[out, G, 1]` fp32, already rounded to the storage type.
        zero: `[out, G, 1]` fp32. Where the scheme rounds zero points: real, in [0, n], and the stored zero point
            is its rounding. Else as stored.
        scale_tiles, zero_tiles: the stored form, where it has two levels.
    """

    scale: torch.Tensor
    zero: torch.Tensor
    scale_tiles: Tiles | None = None
    zero_tiles: Tiles | None = None

    def stored_zero(self, scheme: Scheme) -> torch.Tensor:
        """The zero points with which codes are made, `[out, G, 1]` fp32."""
        return self.zero.round() if scheme.round_zero else self.zero

    def quantize(self, weight: torch.Tensor, scheme: Scheme) -> QuantizedWeight:
        """Round `weight [out, in]` to nearest on this grid (RTN)."""
        groups = to_groups(weight.float(), scheme)
        codes = nearest_codes(groups, self.scale, self.stored_zero(scheme), scheme)
        return self.with_codes(codes, scheme, weight.shape[1])

    def with_codes(self, codes: torch.Tensor, scheme: Scheme, in_features: int) -> QuantizedWeight:
        """Grouped codes `[out, G, g]` fp32 on this grid, all in their stored types."""
        return QuantizedWeight(
            from_groups(codes, in_features).to(torch.uint8).contiguous(),
            self.stored_scale(scheme),
            self.stored_zero_points(scheme),
            scheme,
        )

    def stored_scale(self, scheme: Scheme) -> Statistic:
        """The scales as they are stored, `[out, G]`."""
        return self.scale_tiles or self.scale.squeeze(-1).to(scheme.torch_dtype)

    def stored_zero_points(self, scheme: Scheme) -> Statistic | None:
        """The zero points as they are stored, `[out, G]`; None on a symmetric grid."""
        if scheme.sym:
            return None
        dtype = torch.uint8 if scheme.round_zero else scheme.torch_dtype
        return self.zero_tiles or self.stored_zero(scheme).squeeze(-1).to(dtype)


def nearest_codes(
    groups: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    scheme: Scheme,
    offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """`clamp(round(W / s + z + V), 0, n)`, `[out, G, g]` fp32; V, a rounding offset, is optional."""
    position = groups / scale
    if offset is not None:
        position += offset
    if scheme.round_zero:
        # Rounding first keeps halves where they are: z is an integer.
        return position.round_().add_(zero).clamp_(0, scheme.levels)
    return position.add_(zero).round_().clamp_(0, scheme.levels)


def join_starts(parts: list[QParams]) -> QParams:
    """Grids of neighbouring groups as one."""
    scale_tiles = [p.scale_tiles for p in parts if p.scale_tiles]
    zero_tiles = [p.zero_tiles for p in parts if p.zero_tiles]
    return QParams(
        torch.cat([p.scale for p in parts], 1),
        torch.cat([p.zero for p in parts], 1),
        concatenate(scale_tiles) if scale_tiles else None,
        concatenate(zero_tiles) if zero_tiles else None,
    )


def minmax_start(weight: torch.Tensor, scheme: Scheme) -> QParams:
    """The grid that spans each group from its smallest to its largest weight.

    Args:
        weight: `[out, in]`, finite.
        scheme: which grid.
    """
    groups = to_groups(weight.float(), scheme)
    smallest = groups.amin(-1, keepdim=True)
    largest = groups.amax(-1, keepdim=True)
    if scheme.sym:
        scale = scheme.round_scale(_symmetric_scale(smallest, largest, scheme))
        return QParams(scale, torch.full_like(scale, scheme.midpoint))
    lo, hi = smallest.clamp(max=0), largest.clamp(min=0)
    constant = smallest == largest
    scale = torch.where(constant, largest.abs(), (hi - lo) / scheme.levels)
    scale = scheme.round_scale(scale)
    zero = torch.where(constant, (largest < 0).float(), (-lo / scale).clamp(0, scheme.levels))
    return QParams(scale, zero)


def _symmetric_scale(smallest: torch.Tensor, largest: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    extreme = torch.where(-smallest > largest, smallest, largest)
    full = scheme.sym_range == "full"
    scale = -extreme / scheme.midpoint if full else extreme.abs() / (scheme.midpoint - 0.5)
    return torch.where(smallest == largest, extreme.abs(), scale)
