"""Grids that are the same under another name give the same weights, by formulas that share no code with them."""

from typing import Any

import pytest
import torch

from roundel.errors import FormatError
from roundel.grid.affine import minmax_start
from roundel.grid.block_bytes import from_bytes, to_bytes
from roundel.grid.equivalent import as_plain, as_type, on_grid
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme

TYPES = {(4, True): "q4_0", (5, True): "q5_0", (8, True): "q8_0", (4, False): "q4_1", (5, False): "q5_1"}


def rounded(rows: torch.Tensor, **settings: Any) -> QuantizedWeight:
    scheme = Scheme(**settings)
    return minmax_start(rows, scheme).quantize(rows, scheme)


def gaussian(out: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, width, generator=torch.Generator().manual_seed(seed)) * 0.02


def by_hand(weight: QuantizedWeight) -> torch.Tensor:
    """s (q - z) or s q + m, number by number in float64, which holds every product exactly."""
    scheme, (out, width) = weight.scheme, weight.shape
    scale, zero = weight.scale.double(), None if weight.zero is None else weight.zero.double()
    found = torch.empty(out, width, dtype=torch.float64)
    for column in range(width):
        group = column // scheme.width(width)
        codes = weight.codes[:, column].double()
        if zero is None:
            found[:, column] = scale[:, group] * (codes - 2 ** (scheme.bits - 1))
        elif scheme.minima:
            found[:, column] = scale[:, group] * codes + zero[:, group]
        else:
            found[:, column] = scale[:, group] * (codes - zero[:, group])
    return found


@pytest.mark.parametrize("bits", [4, 5, 8])
@pytest.mark.parametrize("sym_range", ["full", "classic"])
@pytest.mark.parametrize(("group", "width"), [(32, 96), (64, 128), (64, 96), (128, 128), (-1, 96), (512, 96)])
def test_symmetric_grids_are_types_and_back(bits: int, sym_range: str, group: int, width: int) -> None:
    weight = rounded(gaussian(8, width), bits=bits, sym=True, sym_range=sym_range, group_size=group)
    wanted = as_type(weight.scheme, width)
    assert wanted.type == TYPES[bits, True]
    found = on_grid(weight, wanted)
    assert torch.equal(found.codes, weight.codes)
    assert (found.scale < 0).any() == (sym_range == "full")  # signs go along
    assert torch.equal(by_hand(found), by_hand(weight))
    assert torch.equal(found.dequantize(), weight.dequantize())
    assert from_bytes(to_bytes(found), wanted.type).equals(found)
    back = on_grid(found, as_plain(wanted))
    assert back.scheme == Scheme(bits=bits, group_size=32, sym=True)
    assert torch.equal(by_hand(back), by_hand(weight))
    assert on_grid(back, wanted).equals(found)


def exact(bits: int, zeros: list[int]) -> QuantizedWeight:
    """Scales of few bits, so that every product of them and a zero point is a float16 number."""
    scheme = Scheme(bits=bits, group_size=32)
    codes = torch.randint(0, 2**bits, (len(zeros), 64), generator=torch.Generator().manual_seed(1))
    scale = torch.tensor([[2.0**-6, 3 * 2.0**-8]] * len(zeros), dtype=torch.float16)
    zero = torch.tensor(zeros, dtype=torch.uint8)[:, None].repeat(1, 2)
    return QuantizedWeight(codes.to(torch.uint8), scale, zero, scheme)


@pytest.mark.parametrize("bits", [4, 5])
def test_whole_zero_points_are_minima_and_back(bits: int) -> None:
    weight = exact(bits, [0, 1, 7, 2**bits - 1])
    wanted = as_type(weight.scheme, 64)
    assert wanted.type == TYPES[bits, False]
    found = on_grid(weight, wanted)
    assert found.zero is not None
    assert found.zero.dtype is torch.float16
    assert (found.zero <= 0).all()
    assert torch.equal(by_hand(found), by_hand(weight))
    assert torch.equal(found.dequantize(), weight.dequantize())
    assert on_grid(found, as_plain(wanted)).equals(weight)


@pytest.mark.parametrize("bits", [4, 5])
def test_what_float16_does_not_hold_is_refused(bits: int) -> None:
    weight = exact(bits, [0, 7])
    odd = torch.full_like(weight.scale, 2047 * 2.0**-16)  # eleven bits, times seven
    other = QuantizedWeight(weight.codes, odd, weight.zero, weight.scheme)
    with pytest.raises(FormatError, match=r"no float16 number in 2 of 4 of its groups.*set type=q"):
        on_grid(other, as_type(weight.scheme, 64))


@pytest.mark.parametrize("minimum", [-0.3, 0.5, -17 * 2.0**-6])
def test_minima_between_codes_are_refused(minimum: float) -> None:
    weight = on_grid(exact(4, [3, 3]), Scheme(type="q4_1"))
    other = QuantizedWeight(weight.codes, weight.scale, torch.full_like(weight.zero, minimum), weight.scheme)
    with pytest.raises(
        FormatError, match="no whole multiple of the scale.*set bits=4 group_size=32 in place"
    ):
        on_grid(other, as_plain(weight.scheme))


def test_scales_change_their_type_only_where_all_are_exact() -> None:
    weight = exact(4, [3, 3])
    other = weight.scheme.model_copy(update={"scale_dtype": "bfloat16"})
    found = on_grid(weight, other)
    assert torch.equal(found.dequantize(), weight.dequantize())
    assert on_grid(found, weight.scheme).equals(weight)
    fine = QuantizedWeight(weight.codes, weight.scale + 2.0**-15, weight.zero, weight.scheme)
    with pytest.raises(
        FormatError, match="tuned in float16, are no bfloat16 numbers: set scale_dtype=bfloat16"
    ):
        on_grid(fine, other)
    tiny = QuantizedWeight(weight.codes, (found.scale * 2.0**-30), weight.zero, other)
    with pytest.raises(FormatError, match="set scale_dtype=float16"):
        on_grid(tiny, weight.scheme)


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 3, "sym": True, "group_size": 32},
        {"bits": 4, "sym": True, "group_size": 48},
        {"bits": 4, "sym": True, "group_size": 16},
        {"bits": 8, "group_size": 32},
        {"bits": 4, "group_size": 32, "round_zero": False},
        {"bits": 4, "sym": True, "sym_range": "classic", "group_size": 32, "scale_bits": 4},
        {"type": "q4_k"},
    ],
    ids=str,
)
def test_what_is_no_type_stays(settings: dict[str, Any]) -> None:
    scheme = Scheme(**settings)
    assert as_type(scheme, 96 if settings.get("group_size") == 48 else 256) == scheme
    assert as_plain(scheme) == scheme
