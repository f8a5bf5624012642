"""Products with packed weights by torch's operators: where there are no kernels, and what they are held against.

The kernels take activations as integers, with a scale for each block of columns (layout.py):

    x = scale * (digit_0 + 254 digit_1 + 254^2 digit_2),   digits in [-127, 127]

Three hold 23 bits of the largest of a block, as a float holds 24 of each, and sums of integers are exact: no more
is lost than in products of floats. They are left out here, since a product in float32 has an activation for what it is.
`round_activations` is the rounding of fast mode: one digit, which is what llama.cpp calls Q8. Where the largest of a
block is far above its token's root mean square, one would be too coarse for all the others, and a few such blocks make
nearly all of a token's error: these have two.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F

from roundel.runtime.layout import UNIT, Layout
from roundel.runtime.modes import Mode
from roundel.runtime.packed_weight import PackedWeight

# Activations that are told apart on one side of zero, with one digit and with two.
_ONE_DIGIT = 127
_TWO_DIGITS = 127 * 254 + 126
# A block stands out if its largest is more than 3 times the root mean square of its token.
_STANDS_OUT = 3**2


def decode(weight: PackedWeight, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight, `[rows, columns]`."""
    return weight.unpack().dequantize(dtype)


def multiply(x: torch.Tensor, weight: PackedWeight, mode: Mode) -> torch.Tensor:
    """`x W^T` in float32.

    Args:
        x: `[..., columns]`, floating point.
        weight: `[rows, columns]`, on the device of x.
        mode: how activations are held.

    Returns:
        `[..., rows]` float32.
    """
    x, found = x.float(), weight.unpack()
    if mode == "exact":
        return F.linear(x, found.dequantize())
    # Outliers are few and large: they meet activations as they are.
    grid = replace(found, outliers=None).dequantize()
    y = F.linear(round_activations(x, weight.layout, found.order), grid)
    if found.outliers is None:
        return y
    y += F.linear(x, found.dequantize() - grid)
    # Infinity times the zeros of either matrix would be no number.
    finite = x.isfinite().all(-1, keepdim=True)
    return y if finite.all() else torch.where(finite, y, F.linear(x, found.dequantize()))


def round_activations(x: torch.Tensor, layout: Layout, order: torch.Tensor | None = None) -> torch.Tensor:
    """`x [..., columns]` float32 as fast mode holds it, in the same type and order."""
    columns = x if order is None else x[..., order.long()]
    width = UNIT * layout.block_units
    blocks = layout.with_padding(columns).unflatten(-1, (-1, width))
    largest = blocks.abs().amax(-1, keepdim=True)
    most = torch.full_like(largest, _TWO_DIGITS)
    if layout.scheme.bits <= 4:  # others are finer than what one digit would add
        limit = _STANDS_OUT * x.double().square().mean(-1)[..., None, None]
        most.masked_fill_(largest.double().square() <= limit, _ONE_DIGIT)
    empty = largest < 1e-30
    codes = (blocks * (most / largest).masked_fill(empty, 0)).round_()
    rounded = layout.without_padding((codes * (largest / most).masked_fill(empty, 0)).flatten(-2))
    finite = x.isfinite().all(-1, keepdim=True)
    if order is not None:
        rounded = torch.empty_like(rounded).index_copy_(-1, order.long(), rounded)
    return torch.where(finite, rounded, x)
