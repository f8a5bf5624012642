"""The same weight on a grid of another name: not a number of it changes, or it is refused.

    symmetric, 4, 5 or 8 bits, scales in float16     is q4_0, q5_0 or q8_0           w = s (q - 2^(b-1))
    integer zero points, 4 or 5 bits                 are q4_1 or q5_1, m = -s z      w = s (q - z) = s q + m

where -s z is a float16 number in every group, and the other way round where -m / s is one of the codes. Groups become
smaller ones by repeating their statistics. All these products have fewer bits than float32 holds, so that both sides
are the same to the last bit.
"""

from dataclasses import replace

import torch

from roundel.errors import FormatError
from roundel.grid.block_types import BlockTypeName
from roundel.grid.groups import repeat_statistic
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme

_TYPES: dict[tuple[int, bool], BlockTypeName] = {
    (4, True): "q4_0",
    (5, True): "q5_0",
    (8, True): "q8_0",
    (4, False): "q4_1",
    (5, False): "q5_1",
}
_BLOCK = 32


def as_type(scheme: Scheme, in_features: int) -> Scheme:
    """The type of GGUF files that can hold weights of a scheme; the scheme itself where there is none."""
    name = _TYPES.get((scheme.bits, scheme.sym))
    plain = scheme.type is None and scheme.round_zero and not scheme.two_level
    if name is None or not plain or scheme.width(in_features) % _BLOCK or in_features % _BLOCK:
        return scheme
    return Scheme(type=name)


def as_plain(scheme: Scheme) -> Scheme:
    """A grid of scales and integer zero points that can hold weights of a type; else the scheme itself."""
    if scheme.type is None or scheme.super_block:
        return scheme
    return Scheme(bits=scheme.bits, group_size=scheme.group_size, sym=scheme.sym, scale_dtype="float16")


def on_grid(weight: QuantizedWeight, wanted: Scheme) -> QuantizedWeight:
    """The same weight by another scheme, bit for bit.

    Args:
        weight: any.
        wanted: its own scheme, or what `as_type` or `as_plain` say, or the same with scales in another type.

    Raises:
        FormatError: some number of it is none of that scheme; the message says what to set.
    """
    scheme, in_features = weight.scheme, weight.shape[1]
    if scheme == wanted:
        return weight
    scale, width = weight.scale, wanted.width(in_features)
    known = isinstance(scale, torch.Tensor) and (scheme.bits, scheme.sym) == (wanted.bits, wanted.sym)
    if not known or scheme.width(in_features) % width:
        raise FormatError(
            f"a grid of {scheme.bits} bits becomes none of {wanted.bits} bits in groups of {width}: the same codes are "
            "expected"
        )
    assert isinstance(scale, torch.Tensor)
    scale = repeat_statistic(scale, scheme, in_features, width)
    zero = None
    if isinstance(weight.zero, torch.Tensor):
        zero = _other_zero(scale, repeat_statistic(weight.zero, scheme, in_features, width), scheme, wanted)
    return replace(weight, scale=_other_scales(scale, wanted), zero=zero, scheme=wanted)


def _other_scales(scale: torch.Tensor, wanted: Scheme) -> torch.Tensor:
    found = scale.to(wanted.torch_dtype)
    if not torch.equal(found.float(), scale.float()):
        before = str(scale.dtype).removeprefix("torch.")
        raise FormatError(
            f"some of its scales, tuned in {before}, are no {wanted.scale_dtype} numbers: set "
            f"scale_dtype={wanted.scale_dtype}"
        )
    return found


def _other_zero(scale: torch.Tensor, zero: torch.Tensor, scheme: Scheme, wanted: Scheme) -> torch.Tensor:
    """Zero points or minima, `[out, G]`, for scales `[out, G]`."""
    if scheme.minima == wanted.minima:
        return zero
    scale = scale.float()
    if wanted.minima:
        exact = -(scale * zero.float())
        minima = exact.to(wanted.torch_dtype)
        if not torch.equal(minima.float(), exact):
            raise FormatError(
                f"scale times zero point is no float16 number in {_share(minima.float(), exact)} of its groups, and "
                f"{wanted.type} stores it as one: set type={wanted.type}, or sym=true"
            )
        return minima
    points = (-zero.float() / scale).round().clamp(0, wanted.levels)
    if not torch.equal(points * scale, -zero.float()):
        raise FormatError(
            f"the value of code 0 is no whole multiple of the scale in {_share(points * scale, -zero.float())} of its "
            f"groups, as {scheme.type} allows: set bits={wanted.bits} group_size={wanted.group_size} in place of the "
            "type"
        )
    return points.to(torch.uint8)


def _share(found: torch.Tensor, wanted: torch.Tensor) -> str:
    return f"{int((found != wanted).sum())} of {wanted.numel()}"
