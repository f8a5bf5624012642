import math

import pytest
import torch

from roundel.errors import FormatError
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme


def make(sym: bool = False, bits: int = 3) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(0)
    scheme = Scheme(bits=bits, group_size=4, sym=sym)
    codes = torch.randint(0, 2**bits, (2, 10), generator=generator, dtype=torch.uint8)
    zero = None if sym else torch.randint(0, 2**bits, (2, 3), generator=generator, dtype=torch.uint8)
    return QuantizedWeight(codes, torch.randn(2, 3, generator=generator).half(), zero, scheme)


@pytest.mark.parametrize("sym", [False, True])
def test_dequantize_is_scale_times_distance_from_zero(sym: bool) -> None:
    weight = make(sym)
    for row in range(2):
        for column in range(10):
            group = column // 4
            zero = 4 if weight.zero is None else int(weight.zero[row, group])
            wanted = float(weight.scale[row, group]) * (int(weight.codes[row, column]) - zero)
            assert float(weight.dequantize()[row, column]) == pytest.approx(wanted, rel=1e-7)


def test_dequantize_rounds_once() -> None:
    weight = make()
    assert torch.equal(weight.dequantize(torch.bfloat16), weight.dequantize().bfloat16())


@pytest.mark.parametrize(("sym", "bits"), [(False, 2), (True, 2), (False, 5), (True, 8)])
def test_bits_count_codes_scales_and_zeros(sym: bool, bits: int) -> None:
    def words(count: int) -> int:
        return 32 * math.ceil(count * bits / 32)

    assert make(sym, bits).stored_bits() == words(20) + 6 * 16 + (0 if sym else words(6))


def test_papers_bit_count() -> None:
    codes = torch.zeros(4, 256, dtype=torch.uint8)
    zero = torch.zeros(4, 2, dtype=torch.uint8)
    weight = QuantizedWeight(codes, torch.ones(4, 2).half(), zero, Scheme(bits=4, group_size=128))
    assert weight.bits_per_weight() == 4 + 20 / 128


def test_tensors_that_do_not_fit_are_refused() -> None:
    good = make()
    with pytest.raises(FormatError, match="scales are"):
        QuantizedWeight(good.codes, good.scale[:, :2], good.zero, good.scheme)
    with pytest.raises(FormatError, match="float16"):
        QuantizedWeight(good.codes, good.scale.float(), good.zero, good.scheme)
    with pytest.raises(FormatError, match="symmetric"):
        QuantizedWeight(good.codes, good.scale, None, good.scheme)
    with pytest.raises(FormatError, match="zero points"):
        QuantizedWeight(good.codes, good.scale, good.codes, good.scheme)


def test_equals_sees_every_part() -> None:
    weight = make()
    assert weight.equals(make())
    for field in ("codes", "scale", "zero"):
        parts = {"codes": weight.codes, "scale": weight.scale, "zero": weight.zero}
        changed = parts[field].clone()
        changed[0, 0] += 1
        assert not weight.equals(QuantizedWeight(**{**parts, field: changed}, scheme=weight.scheme))
