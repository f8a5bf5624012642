"""Rows of one weight that were quantized piece by piece, put below each other."""

from collections.abc import Sequence

import torch

from roundel.errors import FormatError
from roundel.grid.outliers import Outliers
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.two_level import Statistic, equal, stack_levels


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
    levels = [part for part in parts if not isinstance(part, torch.Tensor)]
    if levels:
        return stack_levels(levels)
    return torch.cat([part for part in parts if isinstance(part, torch.Tensor)])


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
