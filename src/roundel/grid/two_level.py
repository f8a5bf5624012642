"""Two-level statistics: scales and zero points that lie on a grid of their own.

Groups of 16 weights with a 16-bit scale and zero point each would spend 2 bits per weight on statistics. SpQR
(arXiv 2306.03078, section 3.1) quantizes the statistics again: those of `rows` consecutive rows in the same
column group form a tile with codes of a few bits and one scale and zero point in 16 bit,

    statistic = tile_scale * (code - tile_zero).

The tile's zero point is a real number, so a tile may lie anywhere.
"""

from dataclasses import dataclass

import torch

from roundel.errors import FormatError
from roundel.grid.super_blocks import SuperBlocks


@dataclass(frozen=True)
class Tiles:
    """One statistic of every group, on two levels.

    Attributes:
        codes: `[out, G]` uint8, each in [0, 2^bits - 1].
        scale: `[ceil(out / rows), G]`, 16- or 32-bit float.
        zero: `[ceil(out / rows), G]`, of the same type; real, may lie outside the codes.
        bits: of one code.
        rows: rows of a tile; the last one may have fewer.

    Raises:
        FormatError: the tensors do not fit together.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    bits: int
    rows: int

    def __post_init__(self) -> None:
        out, groups = self.codes.shape
        wanted = (-(-out // self.rows), groups)
        if self.scale.shape != wanted or self.zero.shape != wanted:
            found = f"{tuple(self.scale.shape)} and {tuple(self.zero.shape)}"
            raise FormatError(
                f"tile statistics are {found}; {out}x{groups} in tiles of {self.rows} want {wanted}"
            )

    def values(self) -> torch.Tensor:
        """The statistics themselves, `[out, G]` fp32."""
        out = self.codes.shape[0]
        scale = self.scale.float().repeat_interleave(self.rows, 0)[:out]
        zero = self.zero.float().repeat_interleave(self.rows, 0)[:out]
        return (self.codes.float() - zero) * scale

    def to(self, device: torch.device) -> "Tiles":
        """The same on another device."""
        return Tiles(self.codes.to(device), self.scale.to(device), self.zero.to(device), self.bits, self.rows)


Level = Tiles | SuperBlocks
"""The stored form of a statistic on two levels."""

Statistic = torch.Tensor | Level
"""One number per group, `[out, G]`: stored plainly, or on two levels."""


def statistic_values(statistic: Statistic) -> torch.Tensor:
    """`[out, G]` fp32."""
    return statistic.float() if isinstance(statistic, torch.Tensor) else statistic.values()


def concatenate(levels: list[Level]) -> Level:
    """Statistics of neighbouring groups, `[out, G_i]` each, all of one form, as one `[out, sum G_i]`."""
    codes, scale = torch.cat([x.codes for x in levels], 1), torch.cat([x.scale for x in levels], 1)
    tiles = [level for level in levels if isinstance(level, Tiles)]
    if tiles:
        return Tiles(codes, scale, torch.cat([t.zero for t in tiles], 1), tiles[0].bits, tiles[0].rows)
    return SuperBlocks(codes, scale, levels[0].bits)


def stack_levels(levels: list[Level]) -> Level:
    """Statistics of rows below each other, `[out_i, G]` each, all of one form, as one `[sum out_i, G]`.

    Raises:
        FormatError: a tile would hold rows of two of them.
    """
    codes, scale = torch.cat([x.codes for x in levels]), torch.cat([x.scale for x in levels])
    tiles = [level for level in levels if isinstance(level, Tiles)]
    if not tiles:
        return SuperBlocks(codes, scale, levels[0].bits)
    rows = tiles[0].rows
    if any(len(tile.codes) % rows for tile in tiles[:-1]):
        raise FormatError(f"pieces of whole tiles of {rows} rows are expected")
    return Tiles(codes, scale, torch.cat([tile.zero for tile in tiles]), tiles[0].bits, rows)


def equal(one: Statistic | None, other: Statistic | None) -> bool:
    """Same numbers in the same stored form, bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Tiles) and isinstance(other, Tiles):
        same_form = (one.bits, one.rows) == (other.bits, other.rows)
        return same_form and all(
            torch.equal(a, b)
            for a, b in ((one.codes, other.codes), (one.scale, other.scale), (one.zero, other.zero))
        )
    if isinstance(one, SuperBlocks) and isinstance(other, SuperBlocks):
        same_form = (one.bits, one.codes.dtype) == (other.bits, other.codes.dtype)
        return same_form and torch.equal(one.codes, other.codes) and torch.equal(one.scale, other.scale)
    return one is None and other is None
