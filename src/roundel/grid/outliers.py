"""Sparse outliers: the few weights whose rounding error is worth 16 bits more.

Kept as compressed sparse rows. A value is the DIFFERENCE between the weight and its dequantized code, so a
reader adds it to the dequantized matrix without knowing what the code below was (SpQR, arXiv 2306.03078; its
release stores the whole weight, which lands on top of a code that does not dequantize to zero).

Two stored forms, whichever is smaller:

    wide    16-bit positions, one 16-bit count per row:                      32 n + 16 out           bits
    narrow  8-bit positions within segments of 256 columns, 8-bit counts:    24 n + 8 out ceil(in / 256) bits
"""

from dataclasses import dataclass

import torch

from roundel.errors import FormatError

SEGMENT = 256
_WIDEST = 2**16


@dataclass(frozen=True)
class Outliers:
    """Outliers of one weight `[out, in]`, sorted by row, then by column.

    Attributes:
        counts: `[out]` int32, outliers per row.
        columns: `[n]` int32, in the order in which the codes are stored.
        values: `[n]` fp16, the weight minus its dequantized code.
        width: in.
    """

    counts: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor
    width: int

    @classmethod
    def where(cls, mask: torch.Tensor, difference: torch.Tensor) -> "Outliers":
        """Those weights of `difference [out, in]` where `mask [out, in]` is set."""
        rows, columns = mask.nonzero(as_tuple=True)
        counts = rows.bincount(minlength=len(mask))  # a sum over the mask would be one over a copy in int64
        largest = torch.finfo(torch.float16).max
        values = difference[rows, columns].clamp(-largest, largest).to(torch.float16)
        return cls(counts.to(torch.int32), columns.to(torch.int32), values, mask.shape[1])

    @property
    def count(self) -> int:
        """n, their number."""
        return self.values.numel()

    def add_to(self, weight: torch.Tensor) -> torch.Tensor:
        """Add the outliers to `weight [out, in]` fp32, in place."""
        weight[self._rows(), self.columns.long()] += self.values.float()
        return weight

    def _rows(self) -> torch.Tensor:
        return torch.arange(len(self.counts), device=self.counts.device).repeat_interleave(self.counts.long())

    def narrow(self) -> bool:
        """Whether 8-bit positions are the stored form."""
        return _narrow(self.count, len(self.counts), self.width, self._fullest_segment())

    def stored_bits(self) -> int:
        """Bits of positions, counts and values in the smaller form."""
        return _form_bits(self.count, len(self.counts), self.width, self.narrow())

    def _fullest_segment(self) -> int:
        return int(self.segment_counts().max()) if self.count else 0

    def segment_counts(self) -> torch.Tensor:
        """`[out, ceil(in / 256)]` int64, outliers per row and segment of 256 columns."""
        segments = -(-self.width // SEGMENT)
        flat = self._rows() * segments + self.columns.long() // SEGMENT
        return torch.bincount(flat, minlength=len(self.counts) * segments).view(-1, segments)

    def to(self, device: torch.device) -> "Outliers":
        """The same on another device."""
        return Outliers(self.counts.to(device), self.columns.to(device), self.values.to(device), self.width)

    def equals(self, other: "Outliers") -> bool:
        """Same places, same values, bit for bit."""
        pairs = ((self.counts, other.counts), (self.columns, other.columns), (self.values, other.values))
        return self.width == other.width and all(torch.equal(a, b) for a, b in pairs)


def outlier_bits(count: int, out: int, width: int) -> int:
    """Bits that `count` outliers of a weight `[out, width]` take, if no segment holds 256 of them."""
    return _form_bits(count, out, width, _narrow(count, out, width, 0)) if count else 0


def _form_bits(count: int, out: int, width: int, narrow: bool) -> int:
    if narrow:
        return 24 * count + 8 * out * -(-width // SEGMENT)
    return 32 * count + 16 * out


def _narrow(count: int, out: int, width: int, fullest: int) -> bool:
    if fullest >= SEGMENT:
        if width >= _WIDEST:
            raise FormatError(
                f"{fullest} outliers among {SEGMENT} neighbouring weights of a row of {width}: fewer outliers are "
                "expected; raise outlier_threshold"
            )
        return False
    return width >= _WIDEST or _form_bits(count, out, width, True) < _form_bits(count, out, width, False)
