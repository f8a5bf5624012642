"""The integers of compressed-tensors' files (compressed_tensors.py has the layout)."""

import torch

from roundel.formats.integer_layouts import joined_weight
from roundel.formats.shards import Tensors
from roundel.grid.packing import unpack
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme


def compressed_weight(tensors: Tensors, scheme: Scheme) -> QuantizedWeight:
    """A Linear from its tensors.

    Args:
        tensors: packed or not.
        scheme: in which it was tuned.

    Raises:
        FormatError: the tensors are of another scheme.
    """
    bits, scale, zero = scheme.bits, tensors["weight_scale"], tensors.get("weight_zero_point")
    if "weight_packed" in tensors:
        out, in_features = tensors["weight_shape"].tolist()
        codes = unpack(tensors["weight_packed"], bits, in_features)
    else:
        codes = _unsigned(tensors["weight"], scheme)
        out = len(codes)
    if zero is not None and zero.dtype is torch.int32:
        zero = unpack(zero.t().contiguous(), bits, out).t().contiguous()
    elif zero is not None:
        zero = _unsigned(zero, scheme)
    return joined_weight(codes, scale, zero, scheme)


def _unsigned(codes: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    return (codes.to(torch.int16) + scheme.midpoint).to(torch.uint8)
