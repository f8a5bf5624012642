"""Columns rounded one after the other, each from what those before it missed: the inner loop of GPTQ and SpQR.

By a kernel, or by torch's operators, which find the same bits.
"""

import torch

from roundel.compiled import columns as kernel
from roundel.compiled.columns import Columns
from roundel.grid.affine import decode_, round_codes_, zero_in_codes
from roundel.grid.scheme import Scheme

# Columns that torch's operators round one by one before their errors travel in a matrix product.
_BY_OPERATORS = 16


def most_columns(columns: Columns) -> int:
    """How many are best rounded by one call."""
    return kernel.MOST_COLUMNS if kernel.serve(columns) else _BY_OPERATORS


def round_columns(columns: Columns, scheme: Scheme, first: int, last: int) -> None:
    """Round columns `[first, last)`: `present`, `error`, `codes` and `residual` of them are then what they remain.

    Args:
        columns: those before `first` have left their errors in `present`; those from `last` on are not touched.
        scheme: which grid.
        first, last: at most `most_columns` of them.
    """
    if kernel.serve(columns):
        kernel.round_columns(columns, scheme, first, last)
        return
    for position in range(first, last):
        _round_column(columns, scheme, position)
        rest = slice(position + 1, last)
        # Product and sum are rounded both, as the kernel does it everywhere.
        columns.present[rest] += columns.update[rest, position, None] * columns.error[position]


def _round_column(columns: Columns, scheme: Scheme, position: int) -> None:
    weight, group = columns.present[position], columns.group_of[position]
    scale, zero = columns.scale[group], columns.zero[group]
    value = round_codes_(weight / scale, zero_in_codes(scale, zero, scheme), scheme)
    columns.codes[position].copy_(value)
    decode_(value, scale, zero, scheme)
    if columns.mask is not None and columns.residual is not None:
        # As it will be stored, so that later columns make up for the rounding to 16 bits as well.
        columns.residual[position].copy_((weight - value).mul_(columns.mask[position]))
        value.add_(columns.residual[position])
    torch.sub(columns.original[position], value, out=columns.error[position])
