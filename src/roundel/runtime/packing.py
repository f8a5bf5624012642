"""Codes into planes: by the extension on a CPU, else by torch's operators (layout.py), a part at a time."""

import torch

from roundel.compiled.extension import EXTENSION
from roundel.runtime.layout import TILE_ROWS, Layout

# Codes of so many weights are packed at a time by torch's operators: the way there takes several bytes for each.
_AT_ONCE = 2**22


def pack_codes(layout: Layout, codes: torch.Tensor) -> torch.Tensor:
    """Codes `[rows, columns]` uint8 as `[tiles, chunks, 64 bits]` uint8."""
    if EXTENSION is None or codes.device.type != "cpu":
        step = max(1, _AT_ONCE // (layout.columns * TILE_ROWS)) * TILE_ROWS
        return torch.cat([layout.pack_codes(rows) for rows in codes.split(step)])
    codes = codes.contiguous()
    shape = (layout.tiles, layout.chunks, TILE_ROWS * 4 * layout.scheme.bits)
    packed = torch.empty(shape, dtype=torch.uint8, device="cpu")
    EXTENSION.pack(
        **layout.dimensions,
        codes=codes.data_ptr(),
        first=0,
        last=layout.rows,
        to=packed.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return packed
