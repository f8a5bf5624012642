"""A weight's integers in the words of GPTQ's and AWQ's files; model/stored/integers.py has the layouts, and reads them.

The first version of GPTQ's format stores zero points less one, and has no word for zero: some readers add the one to
packed words, where the carry goes into the neighbour's bits, some to unpacked codes, without cutting off what is
beyond the largest. Such groups are written upside down: with n = 2^b - 1,

    s (q - z) = (-s) ((n - q) - (n - z)),

which is the same weight, bit for bit, and has the zero point n. Kernels multiply by scales of either sign.
"""

from dataclasses import replace

import torch

from roundel.formats.shards import Tensors
from roundel.formats.written_groups import repeat_groups
from roundel.grid.packing import pack
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.model.stored.integers import AWQ_ORDER

_AWQ_BITS = 4


def rows_of(weight: QuantizedWeight, rows: slice | torch.Tensor) -> QuantizedWeight:
    """Some rows of a plain grid, as a weight."""
    assert isinstance(weight.scale, torch.Tensor)
    zero = weight.zero[rows] if isinstance(weight.zero, torch.Tensor) else None
    return replace(weight, codes=weight.codes[rows], scale=weight.scale[rows], zero=zero)


def gptq_tensors(weight: QuantizedWeight, width: int, *, less_one: bool, index: bool) -> Tensors:
    """The tensors of a weight `[out, in]` in GPTQ's layout.

    Args:
        weight: on a plain grid.
        width: of a written group.
        less_one: zero points are stored less one, as in the format's first version.
        index: write the group of each input, which an order of the columns needs.

    Returns:
        `qweight` int32 `[in b / 32, out]`, `qzeros` int32 `[G, out b / 32]`, `scales` `[G, out]` in the scheme's type,
        and `g_idx` int32 `[in]`.
    """
    bits, in_features = weight.scheme.bits, weight.shape[1]
    codes, scale, zero = _written(weight, width)
    groups = torch.arange(in_features) // width
    if less_one:
        codes, scale, zero = _without_zeros(codes, scale, zero, groups, weight.scheme.levels)
        zero = zero - 1
    if weight.order is not None:
        codes = torch.empty_like(codes).index_copy_(1, weight.order, codes)
        groups = torch.empty_like(groups).index_copy_(0, weight.order, groups)
    tensors = {
        "qweight": pack(codes, bits).t().contiguous(),
        "qzeros": pack(zero.t(), bits),
        "scales": scale.t().contiguous(),
    }
    return tensors | ({"g_idx": groups.int()} if index else {})


def awq_tensors(weight: QuantizedWeight, width: int) -> Tensors:
    """The tensors of a weight `[out, in]` of 4 bits in the layout of AWQ's matrix kernel.

    Args:
        weight: on a plain grid, its columns in their own order.
        width: of a written group.

    Returns:
        `qweight` int32 `[in, out / 8]`, `qzeros` int32 `[G, out / 8]`, `scales` `[G, out]` in the scheme's type.
    """
    codes, scale, zero = _written(weight, width)
    return {
        "qweight": pack(_mixed(codes.t()), _AWQ_BITS),
        "qzeros": pack(_mixed(zero.t()), _AWQ_BITS),
        "scales": scale.t().contiguous(),
    }


def _written(weight: QuantizedWeight, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes `[out, in]`, scales and zero points `[out, in / width]`; those of a symmetric grid are 2^(b-1)."""
    assert isinstance(weight.scale, torch.Tensor)
    scale = repeat_groups(weight.scale, weight, width)
    if isinstance(weight.zero, torch.Tensor):
        return weight.codes, scale, repeat_groups(weight.zero, weight, width)
    return weight.codes, scale, torch.full(scale.shape, weight.scheme.midpoint, dtype=torch.uint8)


def _without_zeros(
    codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, groups: torch.Tensor, levels: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same weights with no zero point of zero."""
    none = zero == 0
    if not none.any():
        return codes, scale, zero
    codes = torch.where(none[:, groups], levels - codes, codes)
    return codes, torch.where(none, -scale, scale), torch.where(none, levels, zero)


def _mixed(codes: torch.Tensor) -> torch.Tensor:
    """Outputs `[rows, out]` in the order in which a word has them."""
    rows, out = codes.shape
    return codes.reshape(rows, out // len(AWQ_ORDER), -1)[:, :, list(AWQ_ORDER)].reshape(rows, out)
