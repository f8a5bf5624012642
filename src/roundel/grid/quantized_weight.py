"""`QuantizedWeight`: the only truth about a quantized Linear.

Integer codes, statistics and outliers in the precision in which they are stored. Dequantized weights, bit
counts and containers all derive from it, so that what is tuned, measured and written are the same numbers.
"""

from dataclasses import dataclass

import torch

from roundel.errors import FormatError
from roundel.grid.block_types import BlockType
from roundel.grid.groups import from_groups, to_groups
from roundel.grid.outliers import Outliers
from roundel.grid.scheme import Scheme
from roundel.grid.super_blocks import SuperBlocks
from roundel.grid.two_level import Statistic, Tiles, equal, statistic_values


@dataclass(frozen=True)
class QuantizedWeight:
    """One Linear's weight as integers.

    Attributes:
        codes: `[out, in]` uint8, each in [0, 2^bits - 1].
        scale: `[out, G]`: in `scheme.scale_dtype` (a symmetric full-range one may be negative), or on two levels.
        zero: `[out, G]`: uint8, or real in `scheme.scale_dtype`, or on two levels; None for a symmetric grid
            (then 2^(bits-1)). Of a scheme with minima: the values of code 0.
        scheme: the grid.
        outliers: weights kept beside the grid, or None.
        order: `[in]` int64, column k of the codes belongs to input channel `order[k]`; None = as they come.

    Raises:
        FormatError: the tensors do not fit together.
    """

    codes: torch.Tensor
    scale: Statistic
    zero: Statistic | None
    scheme: Scheme
    outliers: Outliers | None = None
    order: torch.Tensor | None = None

    def __post_init__(self) -> None:
        out, width = self.codes.shape
        wanted = (out, self.scheme.groups(width))
        if (self.zero is None) != self.scheme.sym:
            raise FormatError("a symmetric grid stores no zero points, an asymmetric one does")
        self._check("scales", self.scale, wanted, self.scheme.scale_bits, self.scheme.torch_dtype)
        if self.zero is not None:
            plain = torch.uint8 if self.scheme.round_zero else self.scheme.torch_dtype
            self._check("zero points", self.zero, wanted, self.scheme.zero_bits, plain)
        if self.order is not None and self.order.shape != (width,):
            raise FormatError(f"the order of columns is {tuple(self.order.shape)}; expected ({width},)")

    def _check(
        self, what: str, found: Statistic, shape: tuple[int, int], bits: int | None, plain: torch.dtype
    ) -> None:
        codes = found if isinstance(found, torch.Tensor) else found.codes
        if codes.shape != shape:
            raise FormatError(
                f"{what} are {tuple(codes.shape)}; codes {tuple(self.codes.shape)} want {shape}"
            )
        block = self.scheme.block_type
        if block is not None and block.groups > 1:
            self._check_blocks(what, found, block)
            return
        if isinstance(found, SuperBlocks) or (found.bits if isinstance(found, Tiles) else None) != bits:
            raise FormatError(f"{what} do not have the second level that the scheme says ({bits} bits)")
        dtype = found.scale.dtype if isinstance(found, Tiles) else found.dtype
        wanted = self.scheme.torch_dtype if isinstance(found, Tiles) else plain
        if dtype != wanted:
            raise FormatError(f"{what} are {dtype}; the scheme says {wanted}")

    def _check_blocks(self, what: str, found: Statistic, block: BlockType) -> None:
        blocks = self.shape[1] // block.block
        if (
            not isinstance(found, SuperBlocks)
            or (found.bits, found.signed) != (block.scale_bits, not block.minima)
            or (found.scale.shape[1], found.scale.dtype) != (blocks, self.scheme.torch_dtype)
        ):
            raise FormatError(
                f"{what} are not in the {blocks} super-blocks a row that {self.scheme.type} says"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.codes.shape[0], self.codes.shape[1]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """`scale * (code - zero)`, or `scale * code + minimum`, plus outliers: `[out, in]`.

        Computed in fp32 and rounded once to `dtype`.
        """
        groups = to_groups(self.codes, self.scheme).float()
        scale = statistic_values(self.scale).unsqueeze(-1)
        zero = self.scheme.midpoint if self.zero is None else statistic_values(self.zero).unsqueeze(-1)
        groups = groups.mul_(scale).add_(zero) if self.scheme.minima else groups.sub_(zero).mul_(scale)
        weight = from_groups(groups, self.shape[1]).contiguous()
        if self.outliers is not None:
            weight = self.outliers.add_to(weight)
        if self.order is not None:
            weight = torch.empty_like(weight).index_copy_(1, self.order, weight)
        return weight.to(dtype)

    def stored_bits(self) -> int:
        """Bits of everything that is stored of this weight, packed as Roundel's own container packs it."""
        bits = self.scheme.stored_bits(*self.shape)
        if self.outliers is not None:
            bits += self.outliers.stored_bits()
        return bits + (0 if self.order is None else order_bits(self.shape[1]))

    def bits_per_weight(self) -> float:
        """`stored_bits` over the number of weights (4 bit, g128, asymmetric: 4.16)."""
        return self.stored_bits() / self.codes.numel()

    def paper_bits(self) -> float:
        """Average bits as SpQR's paper counts them: `Scheme.paper_bits` plus 32 per outlier.

        Counts of outliers per row, the order of columns and incomplete groups are left out.
        """
        return self.scheme.paper_bits(self.shape[1]) + 32 * self.outlier_share

    @property
    def outlier_share(self) -> float:
        """Share of the weights that are stored beside the grid."""
        return 0.0 if self.outliers is None else self.outliers.count / self.codes.numel()

    def to(self, device: torch.device) -> "QuantizedWeight":
        """The same on another device."""
        return QuantizedWeight(
            self.codes.to(device),
            self.scale.to(device),
            None if self.zero is None else self.zero.to(device),
            self.scheme,
            None if self.outliers is None else self.outliers.to(device),
            None if self.order is None else self.order.to(device),
        )

    def equals(self, other: "QuantizedWeight") -> bool:
        """Same integers, statistics and outliers, bit for bit."""
        if self.scheme != other.scheme or not torch.equal(self.codes, other.codes):
            return False
        if (self.outliers is None) != (other.outliers is None):
            return False
        if (
            self.outliers is not None
            and other.outliers is not None
            and not self.outliers.equals(other.outliers)
        ):
            return False
        same_statistics = equal(self.scale, other.scale) and equal(self.zero, other.zero)
        return same_statistics and equal(self.order, other.order)


def order_bits(in_features: int) -> int:
    """Bits of a stored order of columns."""
    return in_features * (16 if in_features <= 2**16 else 32)
