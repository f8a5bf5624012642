"""What fits into a budget of bits per weight, known before anything is quantized.

Codes, statistics and the order of columns have fixed sizes; what they leave is for outliers, whose size is known
too. So a budget is kept exactly, weight by weight.
"""

from roundel.errors import RecipeError
from roundel.grid.outliers import outlier_bits
from roundel.grid.quantized_weight import order_bits
from roundel.grid.scheme import Scheme

# Second levels to fall back on, from fine to coarse: bits of scales, bits of zero points, rows of a tile.
_COARSER = ((4, 4, 16), (4, 4, 32), (3, 3, 16), (3, 3, 32), (2, 2, 16), (2, 2, 32), (2, 2, 64))


def scheme_within(
    target_bits: float, scheme: Scheme, name: str, shape: tuple[int, int], *, permuted: bool
) -> Scheme:
    """The scheme, or if it is too large the one with the finest second level that fits.

    Args:
        target_bits: stored bits per weight.
        scheme: what is expected.
        name: of the layer, for the message.
        shape: (out, in).
        permuted: whether the order of columns is stored too.

    Raises:
        RecipeError: no second level makes it fit.
    """
    choices = [scheme]
    for scale_bits, zero_bits, rows in _COARSER if scheme.two_level else ():
        coarser = {"tile_rows": rows}
        if scheme.scale_bits is not None:
            coarser["scale_bits"] = scale_bits
        if scheme.zero_bits is not None:
            coarser["zero_bits"] = zero_bits
        choices.append(scheme.model_copy(update=coarser))
    sizes = [_fixed_bits(choice, shape, permuted) for choice in choices]
    room = _room(target_bits, shape)
    fitting = [(size, choice) for size, choice in zip(sizes, choices, strict=True) if size <= room]
    if not fitting:
        least = min(sizes) / (shape[0] * shape[1])
        raise RecipeError(
            f"{name} takes at least {least:.3f} bits per weight with {scheme.bits}-bit codes in groups of "
            f"{scheme.width(shape[1])}, and target_bits is {target_bits:g}: fewer bits, larger groups or a larger "
            "target are expected"
        )
    return scheme if fitting[0][1] is scheme else max(fitting, key=lambda pair: pair[0])[1]


def outliers_within(target_bits: float, scheme: Scheme, shape: tuple[int, int], *, permuted: bool) -> int:
    """The largest number of outliers with which a weight takes at most `target_bits` bits per weight."""
    out, width = shape
    room = _room(target_bits, shape) - _fixed_bits(scheme, shape, permuted)
    fewest, most = 0, out * width // 2
    while fewest < most:
        middle = (fewest + most + 1) // 2
        if outlier_bits(middle, out, width) <= room:
            fewest = middle
        else:
            most = middle - 1
    return fewest


def _room(target_bits: float, shape: tuple[int, int]) -> int:
    """Whole bits of the budget; a product that misses one by its own rounding has it, if the quotient is in it."""
    weights = shape[0] * shape[1]
    bits = int(target_bits * weights + 1e-6)
    return bits if bits / weights <= target_bits else bits - 1


def _fixed_bits(scheme: Scheme, shape: tuple[int, int], permuted: bool) -> int:
    return scheme.stored_bits(*shape) + (order_bits(shape[1]) if permuted else 0)
