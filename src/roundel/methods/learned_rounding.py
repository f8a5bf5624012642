"""Weights on a grid with rounding offsets, and signed steps of these: the inner loop of SignRound and AutoRound.

    W^ = s (clamp(round(W / s + V) + z, 0, n) - z)            V <- V - step sign(dL/dV)

A step reads every weight and every offset twice, once to round it and once to move it: by a kernel in one pass each, or
by torch's operators (`fake_quantize` says with which gradients), which find the same bits.
"""

import torch
import torch.nn.functional as F

from roundel.compiled import grids
from roundel.grid.groups import from_groups
from roundel.grid.scheme import Scheme
from roundel.methods.fake_quantize import Wanted, fake_quantize, rounding_gradients

# Of scale and zero point, `[out, G, 1]` each.
OfRanges = tuple[torch.Tensor, torch.Tensor] | None


def round_learned(
    groups: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    scheme: Scheme,
    offset: torch.Tensor,
    in_features: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The weights on their grid, `[out, in]` of `dtype`.

    Args:
        groups: `[out, G, g]` fp32.
        scale, zero: `[out, G, 1]`, as stored.
        scheme: which grid.
        offset: V, `[out, G, g]` in codes.
        in_features: without the padding of the last group.
        dtype: to which they are rounded, to nearest.
    """
    if grids.serve(groups, weights=dtype):
        return grids.round_learned(groups, scale, zero, offset, scheme, in_features, dtype)
    return from_groups(fake_quantize(groups, scale, zero, scheme, offset, None), in_features).to(dtype)


def descend(
    groups: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    scheme: Scheme,
    offset: torch.Tensor,
    gradient: torch.Tensor,
    step: float,
    *,
    ranges: bool,
) -> OfRanges:
    """Move the offsets against the signs of their gradients, in place.

    Args:
        groups, scale, zero, scheme, offset: as they were rounded.
        gradient: of the rounded weights, `[out, in]`.
        step: how far, in codes.
        ranges: return the gradients of scale and zero point.
    """
    if grids.serve(groups, weights=gradient.dtype):
        return grids.descend(groups, scale, zero, offset, scheme, gradient, step, ranges=ranges)
    of_offset, of_ranges = offset_gradients(groups, scale, zero, scheme, offset, gradient, ranges=ranges)
    offset.sub_(of_offset.sign_(), alpha=step)
    return of_ranges


def offset_gradients(
    groups: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    scheme: Scheme,
    offset: torch.Tensor,
    gradient: torch.Tensor,
    *,
    ranges: bool,
) -> tuple[torch.Tensor, OfRanges]:
    """The gradients of the offsets, `[out, G, g]`, and of the ranges; arguments as for `descend`."""
    padding = groups.shape[1] * groups.shape[2] - gradient.shape[1]
    grad = F.pad(gradient.float(), (0, padding)).view_as(groups)
    wanted = Wanted(scale=ranges, zero=ranges, offset=True)
    found = rounding_gradients(groups, scale, zero, scheme, offset, None, grad, wanted)
    assert found.offset is not None
    if found.scale is None or found.zero is None:
        return found.offset, None
    return found.offset, (found.scale, found.zero)
