"""Statistics of packed weights: plain, or codes on a second level, `[tiles, groups, 16]` each.

    P             plain, in its stored type
    P.codes       uint8 or int8; where those of scales and zero points have at most 4 bits, both in one byte of
                  scale.codes: scales in its low half, zero points in its high one
    P.step        [T, groups] for tiles of a multiple of 16 rows, else [tiles, groups or super-blocks, 16]
    P.shift       like it; super-blocks have none

A statistic on the second level is (code - shift) * step.
"""

import torch
import torch.nn.functional as F

from roundel.grid.super_blocks import SuperBlocks
from roundel.grid.two_level import Statistic, Tiles
from roundel.runtime.layout import TILE_ROWS, Layout

_NIBBLE = 4


def pack_statistics(layout: Layout, scale: Statistic, zero: Statistic | None) -> dict[str, torch.Tensor]:
    """Scales and zero points by the names of their parts."""
    parts = _pack(layout, "scale", scale)
    if zero is not None:
        parts |= _pack(layout, "zero", zero)
    if share_bytes(layout):
        parts["scale.codes"] = parts["scale.codes"] | (parts.pop("zero.codes") << _NIBBLE)
    return parts


def unpack_statistics(layout: Layout, parts: dict[str, torch.Tensor]) -> tuple[Statistic, Statistic | None]:
    """Undo `pack_statistics`."""
    if share_bytes(layout):
        both = parts["scale.codes"]
        parts = {**parts, "scale.codes": both & 15, "zero.codes": both >> _NIBBLE}
    scale = _unpack(layout, "scale", parts, layout.scheme.scale_bits)
    zero = None if layout.scheme.sym else _unpack(layout, "zero", parts, layout.scheme.zero_bits)
    return scale, zero


def share_bytes(layout: Layout) -> bool:
    """Whether codes of scales and zero points are two halves of a byte."""
    bits = (layout.scheme.scale_bits, layout.scheme.zero_bits)
    return all(b is not None and b <= _NIBBLE for b in bits)


def nibble_bits(layout: Layout) -> int:
    """Bits of the wider ones of those; 0: they do not share bytes."""
    scheme = layout.scheme
    return max(scheme.scale_bits or 0, scheme.zero_bits or 0) if share_bytes(layout) else 0


def level_rows(layout: Layout) -> int:
    """Rows that share a step, where they are whole tiles of the layout; else 0."""
    rows = layout.scheme.tile_rows
    return rows if rows % TILE_ROWS == 0 else 0


def level_groups(layout: Layout) -> int:
    """Neighbouring groups that share a step."""
    block = layout.scheme.block_type
    return block.groups if block is not None and block.groups > 1 else 1


def _pack(layout: Layout, name: str, statistic: Statistic) -> dict[str, torch.Tensor]:
    if isinstance(statistic, torch.Tensor):
        return {name: layout.pack_statistic(statistic)}
    parts = {f"{name}.codes": layout.pack_statistic(statistic.codes)}
    if isinstance(statistic, SuperBlocks):
        return parts | {f"{name}.step": layout.in_tiles(statistic.scale)}
    return parts | {
        f"{name}.step": _pack_tiles(layout, statistic.scale),
        f"{name}.shift": _pack_tiles(layout, statistic.zero),
    }


def _pack_tiles(layout: Layout, of_tiles: torch.Tensor) -> torch.Tensor:
    """`[T, G]` as the kernels read it."""
    if level_rows(layout):
        return F.pad(of_tiles, (0, layout.groups - of_tiles.shape[1]))
    of_rows = of_tiles.repeat_interleave(layout.scheme.tile_rows, 0)[: layout.rows]
    return layout.pack_statistic(of_rows)


def _unpack_tiles(layout: Layout, packed: torch.Tensor) -> torch.Tensor:
    if level_rows(layout):
        return packed[:, : layout.scheme.groups(layout.columns)].contiguous()
    return layout.unpack_statistic(packed)[:: layout.scheme.tile_rows].contiguous()


def _unpack(layout: Layout, name: str, parts: dict[str, torch.Tensor], bits: int | None) -> Statistic:
    if name in parts:
        return layout.unpack_statistic(parts[name])
    codes = layout.unpack_statistic(parts[f"{name}.codes"])
    block = layout.scheme.block_type
    if block is not None:
        return SuperBlocks(codes, layout.in_rows(parts[f"{name}.step"]).contiguous(), block.scale_bits)
    assert bits is not None
    step, shift = (_unpack_tiles(layout, parts[f"{name}.{part}"]) for part in ("step", "shift"))
    return Tiles(codes, step, shift, bits, layout.scheme.tile_rows)
