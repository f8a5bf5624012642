"""A weight's integers in the words of GPTQ's and AWQ's files; model/stored/integers.py has the layouts, and reads them.

The first version of GPTQ's format stores zero points less one, and has no word for zero: some readers add the one to
packed words, where the carry goes into the neighbour's bits, some to unpacked codes, without cutting off what is
beyond the largest. Such groups are written upside down: with n = 2^b - 1,

    s (q - z) = (-s) ((n - q) - (n - z)),

which is the same weight, bit for bit, and has the zero point n. Kernels multiply by scales of either sign.
"""

from dataclasses import replace

import torch

from roundel.errors import FormatError
from roundel.formats.shards import Tensors
from roundel.formats.written_groups import repeat_groups
from roundel.grid.groups import join_statistic
from roundel.grid.packing import pack, unpack
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.model.stored.integers import AWQ_ORDER, unmixed

_AWQ_BITS = 4
_WORD = 32


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


def gptq_weight(tensors: Tensors, scheme: Scheme, *, less_one: bool) -> QuantizedWeight:
    """Undo `gptq_tensors`; of columns in an order of their own those of one group stand in the channels' order.

    Args:
        tensors: of a Linear.
        scheme: in which it was tuned.
        less_one: as it was written.

    Raises:
        FormatError: the tensors are of another scheme.
    """
    bits, out = scheme.bits, tensors["qweight"].shape[1]
    in_features = tensors["qweight"].shape[0] * _WORD // bits
    width = in_features // len(tensors["scales"])
    codes = unpack(tensors["qweight"].t().contiguous(), bits, in_features)
    scale = tensors["scales"].t().contiguous()
    zero = unpack(tensors["qzeros"].contiguous(), bits, out).t().contiguous()
    groups, order = torch.arange(in_features) // width, None
    index = tensors.get("g_idx")
    if index is not None and (index.diff() < 0).any():
        order = index.argsort(stable=True)
        codes = codes[:, order].contiguous()
    if less_one:
        zero = zero + 1
        if not scheme.sym:
            turned = (scale < 0) & (zero == scheme.levels)
            codes = torch.where(turned[:, groups], scheme.levels - codes, codes)
            scale, zero = torch.where(turned, -scale, scale), torch.where(turned, 0, zero).to(torch.uint8)
    return joined_weight(codes, scale, zero, scheme, order)


def awq_weight(tensors: Tensors, scheme: Scheme) -> QuantizedWeight:
    """Undo `awq_tensors`.

    Raises:
        FormatError: the tensors are of another scheme.
    """
    codes, zero = (unmixed(tensors[part]).t().contiguous() for part in ("qweight", "qzeros"))
    return joined_weight(codes, tensors["scales"].t().contiguous(), zero, scheme)


def joined_weight(
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    scheme: Scheme,
    order: torch.Tensor | None = None,
) -> QuantizedWeight:
    """A weight from its written groups, which may be parts of the tuned ones.

    Args:
        codes: `[out, in]`.
        scale: `[out, in / width]` of written groups.
        zero: the same; what a symmetric grid has of them is left.
        scheme: in which it was tuned.
        order: of the columns.

    Raises:
        FormatError: the tensors are of another scheme.
    """
    in_features = codes.shape[1]
    width = in_features // scale.shape[1]
    tuned = scale.to(scheme.torch_dtype)
    if not torch.equal(tuned.to(scale.dtype), scale):
        raise FormatError(f"scales in {scale.dtype} are no {scheme.scale_dtype} numbers")
    points = None if scheme.sym or zero is None else join_statistic(zero, scheme, in_features, width)
    scales = join_statistic(tuned, scheme, in_features, width)
    return QuantizedWeight(codes, scales, points, scheme, order=order)


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
