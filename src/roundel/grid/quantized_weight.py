"""`QuantizedWeight`: the only truth about a quantized Linear.

Integer codes and statistics in the precision in which they are stored. Dequantized weights, bit counts and
containers all derive from it, so that what is tuned, measured and written are the same numbers.
"""

from dataclasses import dataclass

import torch

from roundel.errors import FormatError
from roundel.grid.groups import from_groups, to_groups
from roundel.grid.scheme import Scheme


@dataclass(frozen=True)
class QuantizedWeight:
    """One Linear's weight as integers.

    Attributes:
        codes: `[out, in]` uint8, each in [0, 2^bits - 1].
        scale: `[out, G]` in `scheme.scale_dtype`; a symmetric full-range scale may be negative.
        zero: `[out, G]` uint8, or None for a symmetric grid (then 2^(bits-1)).
        scheme: the grid.

    Raises:
        FormatError: the tensors do not fit together.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    scheme: Scheme

    def __post_init__(self) -> None:
        out, width = self.codes.shape
        wanted = (out, self.scheme.groups(width))
        if self.scale.shape != wanted:
            raise FormatError(f"scales are {tuple(self.scale.shape)}; codes {out}x{width} want {wanted}")
        if self.scale.dtype != self.scheme.torch_dtype:
            raise FormatError(f"scales are {self.scale.dtype}; the scheme says {self.scheme.scale_dtype}")
        if (self.zero is None) != self.scheme.sym:
            raise FormatError("a symmetric grid stores no zero points, an asymmetric one does")
        if self.zero is not None and self.zero.shape != wanted:
            raise FormatError(f"zero points are {tuple(self.zero.shape)}; wanted {wanted}")

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.codes.shape[0], self.codes.shape[1]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """`scale * (code - zero)`, computed in fp32 and then rounded once to `dtype`: `[out, in]`."""
        groups = to_groups(self.codes, self.scheme).float()
        zero = self.scheme.midpoint if self.zero is None else self.zero.float().unsqueeze(-1)
        weight = groups.sub_(zero).mul_(self.scale.float().unsqueeze(-1))
        return from_groups(weight, self.shape[1]).to(dtype).contiguous()

    def stored_bits(self) -> int:
        """Bits of codes, scales and zero points together, densely packed."""
        out, width = self.shape
        per_group = torch.finfo(self.scale.dtype).bits + (0 if self.zero is None else self.scheme.bits)
        return out * (width * self.scheme.bits + self.scheme.groups(width) * per_group)

    def bits_per_weight(self) -> float:
        """`stored_bits` over the number of weights, as papers count it (4 bit, g128, asymmetric: 4.16)."""
        return self.stored_bits() / self.codes.numel()

    @property
    def outlier_share(self) -> float:
        """Share of the weights that are stored beside the grid: an affine grid holds them all."""
        return 0.0

    def to(self, device: torch.device) -> "QuantizedWeight":
        """The same on another device."""
        zero = None if self.zero is None else self.zero.to(device)
        return QuantizedWeight(self.codes.to(device), self.scale.to(device), zero, self.scheme)

    def equals(self, other: "QuantizedWeight") -> bool:
        """Same integers, same statistics, bit for bit."""
        if self.scheme != other.scheme or self.shape != other.shape:
            return False
        same_zero = (self.zero is None) == (other.zero is None) and (
            self.zero is None or other.zero is None or torch.equal(self.zero, other.zero)
        )
        return same_zero and torch.equal(self.codes, other.codes) and torch.equal(self.scale, other.scale)
