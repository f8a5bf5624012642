"""QuantizedWeights as named tensors, everything in its real size: for files, and for the way from rank to rank.

Parts of a Linear [out, in]:

    codes                 int32 [w]         all codes, row after row, in one little-endian bit stream (packing.py)
    scale                 [out, G]          plain; or on two levels:
    scale.codes           int32 [w]         one stream as well
    scale.scale, .zero    [T, G]            T = ceil(out / tile_rows)
    scale.scale           [out, S]          in super-blocks, whose codes are shifted to be unsigned
    zero                  int32 [w]         integers, one stream; [out, G] where real; or two levels as above
    outliers.values       float16 [n]       weight minus dequantized code, row after row
    outliers.positions    uint16 or uint8   column, or column modulo 256
    outliers.counts       uint16 [out], or uint8 [out, ceil(in / 256)] with 8-bit positions
    order                 uint16 [in]       column k of the codes belongs to input channel order[k]
"""

import torch

from roundel.grid.outliers import SEGMENT, Outliers
from roundel.grid.packing import pack, unpack
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.grid.super_blocks import SuperBlocks, code_limits
from roundel.grid.two_level import Statistic, Tiles


def pack_weight(weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    """The tensors of one weight, by the part of their name behind the layer's."""
    parts = {"codes": _stream(weight.codes, weight.scheme.bits)}
    parts |= _pack_statistic("scale", weight.scale, weight.scheme.bits)
    if weight.zero is not None:
        parts |= _pack_statistic("zero", weight.zero, weight.scheme.bits)
    if weight.outliers is not None:
        outliers, narrow = weight.outliers, weight.outliers.narrow()
        small = torch.uint8 if narrow else torch.uint16
        counts = outliers.segment_counts() if narrow else outliers.counts
        parts["outliers.values"] = outliers.values
        parts["outliers.positions"] = (outliers.columns % SEGMENT if narrow else outliers.columns).to(small)
        parts["outliers.counts"] = counts.to(small)
    if weight.order is not None:
        parts["order"] = weight.order.to(torch.uint16 if weight.shape[1] <= 2**16 else torch.int32)
    return {name: tensor.cpu().contiguous() for name, tensor in parts.items()}


def unpack_weight(
    tensors: dict[str, torch.Tensor], name: str, shape: list[int], scheme: Scheme
) -> QuantizedWeight:
    """Undo `pack_weight`, taking the tensors of layer `name` out of `tensors`."""
    out, width = shape
    groups = scheme.groups(width)
    codes = unpack(tensors.pop(f"{name}.codes")[None], scheme.bits, out * width).view(out, width)
    scale = _unpack_statistic(tensors, f"{name}.scale", (out, groups), scheme, scheme.scale_bits)
    zero = None
    if not scheme.sym:
        zero = _unpack_statistic(tensors, f"{name}.zero", (out, groups), scheme, scheme.zero_bits)
    outliers = _unpack_outliers(tensors, name, width) if f"{name}.outliers.values" in tensors else None
    order = tensors.pop(f"{name}.order", None)
    return QuantizedWeight(
        codes, scale, zero, scheme, outliers, None if order is None else order.to(torch.int64)
    )


def _stream(codes: torch.Tensor, bits: int) -> torch.Tensor:
    return pack(codes.reshape(1, -1), bits)[0]


def _pack_statistic(name: str, statistic: Statistic, bits: int) -> dict[str, torch.Tensor]:
    if isinstance(statistic, Tiles):
        codes = _stream(statistic.codes, statistic.bits)
        return {f"{name}.codes": codes, f"{name}.scale": statistic.scale, f"{name}.zero": statistic.zero}
    if isinstance(statistic, SuperBlocks):
        codes = statistic.codes.to(torch.int16) - statistic.limits[0]
        return {f"{name}.codes": _stream(codes, statistic.bits), f"{name}.scale": statistic.scale}
    return {name: _stream(statistic, bits) if statistic.dtype is torch.uint8 else statistic}


def _unpack_statistic(
    tensors: dict[str, torch.Tensor], name: str, shape: tuple[int, int], scheme: Scheme, bits: int | None
) -> Statistic:
    count, block = shape[0] * shape[1], scheme.block_type
    if block is not None and block.groups > 1:
        codes = unpack(tensors.pop(f"{name}.codes")[None], block.scale_bits, count).view(shape)
        if not block.minima:
            codes = (codes.to(torch.int16) + code_limits(block.scale_bits, True)[0]).to(torch.int8)
        return SuperBlocks(codes, tensors.pop(f"{name}.scale"), block.scale_bits)
    if bits is not None:
        codes = unpack(tensors.pop(f"{name}.codes")[None], bits, count).view(shape)
        return Tiles(codes, tensors.pop(f"{name}.scale"), tensors.pop(f"{name}.zero"), bits, scheme.tile_rows)
    stored = tensors.pop(name)
    if stored.dtype is torch.int32:
        return unpack(stored[None], scheme.bits, count).view(shape)
    return stored


def _unpack_outliers(tensors: dict[str, torch.Tensor], name: str, width: int) -> Outliers:
    values = tensors.pop(f"{name}.outliers.values")
    columns = tensors.pop(f"{name}.outliers.positions").to(torch.int32)
    counts = tensors.pop(f"{name}.outliers.counts").to(torch.int32)
    if counts.ndim == 2:
        first = torch.arange(counts.shape[1], dtype=torch.int32) * SEGMENT
        columns = columns + first.repeat(counts.shape[0]).repeat_interleave(counts.flatten().long())
        counts = counts.sum(1, dtype=torch.int32)
    return Outliers(counts, columns.to(torch.int32), values, width)
