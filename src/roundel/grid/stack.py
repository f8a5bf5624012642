"""Rows of one weight that were quantized piece by piece, put below each other."""

from collections.abc import Sequence

import torch

from roundel.errors import FormatError
from roundel.grid.outliers import Outliers
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.super_blocks import SuperBlocks
from roundel.grid.two_level import Statistic, Tiles, equal


def stack(pieces: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """One weight `[sum out_i, in]` of pieces `[out_i, in]`, all of one scheme and order.

    Raises:
        FormatError: schemes or orders differ, or a tile of two-level statistics would hold rows of two pieces.
    """
    first = pieces[0]
    if len(pieces) == 1:
        return first
    if any(piece.scheme != first.scheme or not equal(piece.order, first.order) for piece in pieces):
        raise FormatError("pieces of a weight with one scheme and one order of columns are expected")
    return QuantizedWeight(
        torch.cat([piece.codes for piece in pieces]),
        _stack([piece.scale for piece in pieces]),
        None if first.zero is None else _stack([piece.zero for piece in pieces if piece.zero is not None]),
        first.scheme,
        _stack_outliers(pieces),
        first.order,
    )


def _stack(parts: list[Statistic]) -> Statistic:
    plain = [part for part in parts if isinstance(part, torch.Tensor)]
    blocks = [part for part in parts if isinstance(part, SuperBlocks)]
    tiles = [part for part in parts if isinstance(part, Tiles)]
    if blocks:
        codes, scale = torch.cat([b.codes for b in blocks]), torch.cat([b.scale for b in blocks])
        return SuperBlocks(codes, scale, blocks[0].bits)
    if not tiles:
        return torch.cat(plain)
    rows = tiles[0].rows
    if any(len(tile.codes) % rows for tile in tiles[:-1]):
        raise FormatError(f"pieces of whole tiles of {rows} rows are expected")
    return Tiles(
        torch.cat([tile.codes for tile in tiles]),
        torch.cat([tile.scale for tile in tiles]),
        torch.cat([tile.zero for tile in tiles]),
        tiles[0].bits,
        rows,
    )


def _stack_outliers(pieces: Sequence[QuantizedWeight]) -> Outliers | None:
    if all(piece.outliers is None for piece in pieces):
        return None
    found = [piece.outliers or _none(piece) for piece in pieces]
    return Outliers(
        torch.cat([outliers.counts for outliers in found]),
        torch.cat([outliers.columns for outliers in found]),
        torch.cat([outliers.values for outliers in found]),
        pieces[0].shape[1],
    )


def _none(piece: QuantizedWeight) -> Outliers:
    mask = torch.zeros(piece.shape, dtype=torch.bool, device=piece.codes.device)
    return Outliers.where(mask, mask.to(torch.float16))
