"""Products with packed weights by torch's operators: where there are no kernels, and what they are held against.

The kernels take activations as integers, with a scale for each block of columns (layout.py):

    x = scale * (digit_0 + 254 digit_1 + 254^2 digit_2),   digits in [-127, 127]

One digit is what llama.cpp calls Q8. Three hold 23 bits of the largest of a block, as a float holds 24 of each, and
sums of integers are exact: no more is lost than in products of floats. `round_activations` is that rounding; with
three digits it is left out here, since a product in float32 has it for what it is.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F

from roundel.runtime.layout import UNIT, Layout
from roundel.runtime.packed_weight import PackedWeight

_BASE = 254
_LARGEST = {1: 127, 2: 127 * _BASE + 126}
EXACT_DIGITS = 3


def decode(weight: PackedWeight, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight, `[rows, columns]`."""
    return weight.unpack().dequantize(dtype)


def multiply(x: torch.Tensor, weight: PackedWeight, digits: int = EXACT_DIGITS) -> torch.Tensor:
    """`x W^T` in float32.

    Args:
        x: `[..., columns]`, floating point.
        weight: `[rows, columns]`, on the device of x.
        digits: of activations, 1 to 3.

    Returns:
        `[..., rows]` float32.
    """
    x, found = x.float(), weight.unpack()
    if digits == EXACT_DIGITS:
        return F.linear(x, found.dequantize())
    # Outliers are few and large: they meet activations as they are.
    grid = replace(found, outliers=None).dequantize()
    y = F.linear(round_activations(x, weight.layout, digits, found.order), grid)
    if found.outliers is None:
        return y
    y += F.linear(x, found.dequantize() - grid)
    # Infinity times the zeros of either matrix would be no number.
    finite = x.isfinite().all(-1, keepdim=True)
    return y if finite.all() else torch.where(finite, y, F.linear(x, found.dequantize()))


def round_activations(
    x: torch.Tensor, layout: Layout, digits: int, order: torch.Tensor | None = None
) -> torch.Tensor:
    """`x [..., columns]` float32 as so many digits hold it, in the same type and order."""
    columns = x if order is None else x[..., order.long()]
    width = UNIT * layout.block_units
    blocks = layout.with_padding(columns).unflatten(-1, (-1, width))
    largest = blocks.abs().amax(-1, keepdim=True)
    most = float(_LARGEST[digits])
    empty = largest < 1e-30
    # Divided as the kernels do it: a number over a tensor is that number times the inverse, to torch.
    inverse = torch.full_like(largest, most) / largest
    codes = (blocks * inverse.masked_fill(empty, 0)).round_()
    rounded = layout.without_padding((codes * (largest / most).masked_fill(empty, 0)).flatten(-2))
    finite = x.isfinite().all(-1, keepdim=True)
    if order is not None:
        rounded = torch.empty_like(rounded).index_copy_(-1, order.long(), rounded)
    return torch.where(finite, rounded, x)
