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


@dataclass(frozen=True)
class Start:
    """A grid before tuning.

    Attributes:
        scale: `[out, G, 1]` fp32, already rounded to the storage type.
        zero: `[out, G, 1]` fp32, real, in [0, n]; the stored zero point is its rounding.
    """

    scale: torch.Tensor
    zero: torch.Tensor

    def quantize(self, weight: torch.Tensor, scheme: Scheme) -> QuantizedWeight:
        """Round `weight [out, in]` to nearest on this grid (RTN)."""
        groups = to_groups(weight.float(), scheme)
        zero = self.zero.round()
        codes = nearest_codes(groups, self.scale, zero, scheme.levels)
        return quantized_weight(codes, self.scale, zero, scheme, weight.shape[1])


def nearest_codes(
    groups: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    levels: int,
    offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """`clamp(round(W / s + V) + z, 0, n)`, `[out, G, g]` fp32; V, a rounding offset, is optional."""
    position = groups / scale
    if offset is not None:
        position += offset
    return position.round_().add_(zero).clamp_(0, levels)


def quantized_weight(
    codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, scheme: Scheme, in_features: int
) -> QuantizedWeight:
    """Wrap grouped codes `[out, G, g]` and statistics `[out, G, 1]`, all fp32, in their stored types."""
    return QuantizedWeight(
        codes=from_groups(codes, in_features).to(torch.uint8).contiguous(),
        scale=scale.squeeze(-1).to(scheme.torch_dtype),
        zero=None if scheme.sym else zero.squeeze(-1).to(torch.uint8),
        scheme=scheme,
    )


def minmax_start(weight: torch.Tensor, scheme: Scheme) -> Start:
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
        return Start(scale, torch.full_like(scale, scheme.midpoint))
    lo, hi = smallest.clamp(max=0), largest.clamp(min=0)
    constant = smallest == largest
    scale = torch.where(constant, largest.abs(), (hi - lo) / scheme.levels)
    scale = scheme.round_scale(scale)
    zero = torch.where(constant, (largest < 0).float(), (-lo / scale).clamp(0, scheme.levels))
    return Start(scale, zero)


def _symmetric_scale(smallest: torch.Tensor, largest: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    extreme = torch.where(-smallest > largest, smallest, largest)
    full = scheme.sym_range == "full"
    scale = -extreme / scheme.midpoint if full else extreme.abs() / (scheme.midpoint - 0.5)
    return torch.where(smallest == largest, extreme.abs(), scale)
