"""`PackedWeight`: a QuantizedWeight in the layout that is computed with, and back.

codes              uint8 [tiles, chunks, 64 bits]     layout.py
scale..., zero...  statistics.py
outliers.starts    int32 [rows + 1]                   where a row's begin
outliers.columns   uint16 or int32 [n]                in the order of the codes
outliers.values    float16 [n]
order              int32 [columns]                    column k of the codes belongs to input channel order[k]
"""

from dataclasses import dataclass

import torch

from roundel.grid.outliers import Outliers
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.runtime.layout import TILE_ROWS, Layout
from roundel.runtime.packing import pack_codes
from roundel.runtime.statistics import pack_statistics, unpack_statistics

# Codes of so many weights are unpacked at a time: the way there takes several bytes for each.
_AT_ONCE = 2**22


@dataclass(frozen=True)
class PackedWeight:
    """One weight `[rows, columns]`.

    Attributes:
        layout: what the parts mean.
        parts: the tensors by name (see the module), on one device.
    """

    layout: Layout
    parts: dict[str, torch.Tensor]

    @classmethod
    def pack(cls, weight: QuantizedWeight) -> "PackedWeight":
        """Of integers; nothing is lost."""
        layout = Layout(*weight.shape, weight.scheme)
        parts = {
            "codes": pack_codes(layout, weight.codes),
            **pack_statistics(layout, weight.scale, weight.zero),
        }
        if weight.outliers is not None:
            found, counts = weight.outliers, weight.outliers.counts
            small = torch.uint16 if layout.columns <= 2**16 else torch.int32
            starts = torch.zeros(layout.rows + 1, dtype=torch.int32, device=counts.device)
            starts[1:] = counts.cumsum(0)
            parts["outliers.starts"] = starts
            parts["outliers.columns"] = found.columns.to(small)
            parts["outliers.values"] = found.values
        if weight.order is not None:
            parts["order"] = weight.order.to(torch.int32)
        return cls(layout, parts)

    def unpack(self) -> QuantizedWeight:
        """The integers again, bit for bit."""
        layout, parts = self.layout, self.parts
        step = max(1, _AT_ONCE // (layout.columns * TILE_ROWS))
        codes = torch.cat([layout.unpack_codes(tiles) for tiles in parts["codes"].split(step)])
        scale, zero = unpack_statistics(layout, parts)
        outliers = None
        if "outliers.starts" in parts:
            outliers = Outliers(
                parts["outliers.starts"].diff(),
                parts["outliers.columns"].to(torch.int32),
                parts["outliers.values"],
                layout.columns,
            )
        order = parts.get("order")
        return QuantizedWeight(
            codes[: layout.rows],
            scale,
            zero,
            layout.scheme,
            outliers,
            None if order is None else order.to(torch.int64),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())
