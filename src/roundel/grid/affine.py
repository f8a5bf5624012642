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
from roundel.grid.super_blocks import SuperBlocks
from roundel.grid.two_level import Level, Statistic, concatenate


@dataclass(frozen=True)
class QParams:
    """A grid before tuning.

    Attributes:
        scale: `[out, G, 1]` fp32, already rounded to the storage type.
        zero: `[out, G, 1]` fp32. Where the scheme rounds zero points: real, in [0, n], and the stored zero point
            is its rounding. Else as stored. Where it has minima: the values of code 0.
        scale_level, zero_level: the stored form, where it has two levels.
    """

    scale: torch.Tensor
    zero: torch.Tensor
    scale_level: Level | None = None
    zero_level: Level | None = None

    def stored_zero(self, scheme: Scheme) -> torch.Tensor:
        """The zero points with which codes are made, `[out, G, 1]` fp32."""
        return self.zero.round() if scheme.round_zero else self.zero

    def code_zero(self, scheme: Scheme) -> torch.Tensor:
        """Where zero lies among the codes, `[out, G, 1]` fp32: what is added to W / s."""
        return zero_in_codes(self.scale, self.stored_zero(scheme), scheme)

    def nearest(self, scale: torch.Tensor, zero: torch.Tensor, scheme: Scheme) -> "QParams":
        """The nearest grid to `scale`, `zero [out, G, 1]` that can be stored as this one is; what cannot move stays.

        Codes of super-blocks move, what they are multiplied by does not.
        """
        if isinstance(self.scale_level, SuperBlocks):
            scales = self.scale_level.nearest(scale[..., 0], zero=False)
            minima = self.zero_level
            if isinstance(minima, SuperBlocks):
                minima = minima.nearest(zero[..., 0], zero=True)
                zero = minima.values().unsqueeze(-1)
            return QParams(scales.values().unsqueeze(-1), zero, scales, minima)
        if scheme.minima:
            zero = round_minima(zero, scheme)
        return QParams(scheme.round_scale(scale), zero, self.scale_level, self.zero_level)

    def quantize(self, weight: torch.Tensor, scheme: Scheme) -> QuantizedWeight:
        """Round `weight [out, in]` to nearest on this grid (RTN)."""
        groups = to_groups(weight.float(), scheme)
        codes = nearest_codes(groups, self.scale, self.code_zero(scheme), scheme)
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
        return self.scale_level or self.scale.squeeze(-1).to(scheme.torch_dtype)

    def stored_zero_points(self, scheme: Scheme) -> Statistic | None:
        """The zero points as they are stored, `[out, G]`; None on a symmetric grid."""
        if scheme.sym:
            return None
        dtype = torch.uint8 if scheme.round_zero else scheme.torch_dtype
        return self.zero_level or self.stored_zero(scheme).squeeze(-1).to(dtype)


def nearest_codes(
    groups: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    scheme: Scheme,
    offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """`clamp(round(W / s + z + V), 0, n)`, `[out, G, g]` fp32; V, a rounding offset, is optional.

    z is where zero lies among the codes (`zero_in_codes`).
    """
    position = groups / scale
    if offset is not None:
        position += offset
    return round_codes_(position, zero, scheme)


def round_codes_(position: torch.Tensor, zero: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """`clamp(round(u + z), 0, n)`, in place of u, the weights over their scales."""
    if scheme.round_zero:
        # Rounding first keeps halves where they are: z is an integer.
        return position.round_().add_(zero).clamp_(0, scheme.levels)
    return position.add_(zero).round_().clamp_(0, scheme.levels)


def zero_in_codes(scale: torch.Tensor, zero: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Where zero lies among the codes: stored zero points say it, minima m do by -m / s."""
    return -zero / scale if scheme.minima else zero


def decode_(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """The weights of codes, in place: `s (q - z)`, or `s q + m`; `zero` as stored."""
    return codes.mul_(scale).add_(zero) if scheme.minima else codes.sub_(zero).mul_(scale)


def round_minima(minima: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Round fp32 minima to the storage type."""
    largest = torch.finfo(scheme.torch_dtype).max
    return minima.clamp(-largest, largest).to(scheme.torch_dtype).float()


def join_starts(parts: list[QParams]) -> QParams:
    """Grids of neighbouring groups as one."""
    scale_level = [p.scale_level for p in parts if p.scale_level]
    zero_level = [p.zero_level for p in parts if p.zero_level]
    return QParams(
        torch.cat([p.scale for p in parts], 1),
        torch.cat([p.zero for p in parts], 1),
        concatenate(scale_level) if scale_level else None,
        concatenate(zero_level) if zero_level else None,
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
