"""Words of GPTQ's and AWQ's files say what the integers say, by plain formulas that share no code with the writer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.kernel_words import (
    FIRST_VERSION,
    ReadZeros,
    as_stored,
    awq_weight,
    gptq_weight,
    stream,
    three_bits,
)
from roundel.formats.integer_layouts import awq_tensors, gptq_tensors, rows_of
from roundel.formats.kernel_layout import multiple_of_words
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.model.stored.integers import Awq, Gptq


def drawn(out: int, width: int, seed: int, *, order: bool = False, **scheme: object) -> QuantizedWeight:
    """A weight of random integers, with zero points of both ends and scales of either sign."""
    draw = torch.Generator().manual_seed(seed)
    grid = Scheme.model_validate(scheme)
    groups = grid.groups(width)
    codes = torch.randint(grid.levels + 1, (out, width), generator=draw, dtype=torch.uint8)
    scale = torch.randn(out, groups, generator=draw).to(grid.torch_dtype)
    zero = None
    if not grid.sym:
        scale = scale.abs()
        zero = torch.randint(grid.levels + 1, (out, groups), generator=draw, dtype=torch.uint8)
        zero.view(-1)[0], zero.view(-1)[-1] = 0, grid.levels
    columns = torch.randperm(width, generator=draw) if order else None
    return QuantizedWeight(codes, scale, zero, grid, None, columns)


@given(
    bits=st.sampled_from([2, 3, 4, 5, 6, 7, 8]),
    sym=st.booleans(),
    out=st.integers(1, 3),
    inputs=st.integers(1, 4),
    group=st.sampled_from([-1, 8, 16, 24, 32]),
    dtype=st.sampled_from(["float16", "bfloat16"]),
    order=st.booleans(),
    less_one=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_gptq_words_say_what_the_integers_say(
    bits: int,
    sym: bool,
    out: int,
    inputs: int,
    group: int,
    dtype: str,
    order: bool,
    less_one: bool,
    seed: int,
) -> None:
    unit = multiple_of_words(bits)
    # Inputs fill words and groups; a group may be split by what fills no row.
    width = unit * inputs if group == -1 else 96 * inputs
    weight = drawn(
        unit * out, width, seed, order=order, bits=bits, sym=sym, group_size=group, scale_dtype=dtype
    )
    written = weight.scheme.width(width)
    tensors = gptq_tensors(weight, written, less_one=less_one, index=True)
    assert tensors["qweight"].shape == (width * bits // 32, unit * out)
    assert tensors["qzeros"].shape == (-(-width // written), unit * out * bits // 32)
    assert tensors["scales"].dtype == weight.scheme.torch_dtype
    assert {name: t.dtype for name, t in tensors.items() if name != "scales"} == dict.fromkeys(
        ("qweight", "qzeros", "g_idx"), torch.int32
    )
    for read in FIRST_VERSION if less_one else (as_stored,):
        assert torch.equal(gptq_weight(tensors, bits, read, written), weight.dequantize())
    ours = Gptq({"bits": bits}, int(less_one)).decode("w", tensors, torch.float32)
    assert torch.equal(ours, weight.dequantize())


@pytest.mark.parametrize("read", FIRST_VERSION)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zero", ["none", "largest", "one"])
def test_no_zero_point_is_misread_in_the_first_version(bits: int, zero: str, read: ReadZeros) -> None:
    """Less one, a zero point of zero would be -1, which no word holds: it becomes the largest code, or carries."""
    weight = drawn(32, 64, 0, bits=bits, group_size=16)
    assert isinstance(weight.zero, torch.Tensor)
    weight.zero.fill_({"none": 0, "one": 1, "largest": weight.scheme.levels}[zero])
    tensors = gptq_tensors(weight, 16, less_one=True, index=True)
    assert torch.equal(gptq_weight(tensors, bits, read, 16), weight.dequantize())
    stored = {code for row in tensors["qzeros"].tolist() for code in stream(row, bits)}
    assert weight.scheme.levels not in stored  # which would carry
    assert (tensors["scales"] < 0).all() == (zero == "none")


def test_naive_words_would_be_misread() -> None:
    """That the trap is one: the same groups, less one in words of their own."""
    weight = drawn(32, 64, 0, bits=4, group_size=16)
    assert isinstance(weight.zero, torch.Tensor)
    weight.zero.zero_()
    tensors = gptq_tensors(weight, 16, less_one=False, index=True)
    tensors["qzeros"] = torch.full_like(tensors["qzeros"], -1)  # 15, eight times
    wrong = [not torch.equal(gptq_weight(tensors, 4, r, 16), weight.dequantize()) for r in FIRST_VERSION]
    assert wrong == [True, False, True]


def test_the_second_version_keeps_scales_and_zero_points_as_they_are() -> None:
    weight = drawn(16, 64, 0, bits=4, group_size=16)
    assert isinstance(weight.zero, torch.Tensor)
    tensors = gptq_tensors(weight, 16, less_one=False, index=False)
    assert [stream(row, 4) for row in tensors["qzeros"].tolist()] == weight.zero.t().tolist()
    assert torch.equal(tensors["scales"], weight.scale.t())
    assert "g_idx" not in tensors


def test_three_bits_are_packed_as_the_kernels_of_three_bits_read_them() -> None:
    weight = drawn(32, 128, 0, bits=3, group_size=32)
    tensors = gptq_tensors(weight, 32, less_one=False, index=False)
    for column, codes in zip(tensors["qweight"].t().tolist(), weight.codes.tolist(), strict=True):
        assert three_bits(column) == codes
    for row, zeros in zip(tensors["qzeros"].tolist(), weight.zero.t().tolist(), strict=True):
        assert three_bits(row) == zeros


@given(
    sym=st.booleans(),
    out=st.integers(1, 5),
    width=st.integers(1, 12),
    group=st.sampled_from([-1, 8, 12]),
    dtype=st.sampled_from(["float16", "bfloat16"]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40)
def test_awq_words_say_what_the_integers_say(
    sym: bool, out: int, width: int, group: int, dtype: str, seed: int
) -> None:
    inputs = width if group == -1 else 24 * width
    weight = drawn(8 * out, inputs, seed, bits=4, sym=sym, group_size=group, scale_dtype=dtype)
    written = weight.scheme.width(inputs)
    tensors = awq_tensors(weight, written)
    assert tensors["qweight"].shape == (inputs, out)
    assert tensors["qzeros"].shape == tensors["scales"][:, ::8].shape
    assert torch.equal(awq_weight(tensors, written), weight.dequantize())
    assert torch.equal(Awq({"bits": 4}).decode("w", tensors, torch.float32), weight.dequantize())


@pytest.mark.parametrize("less_one", [False, True])
def test_groups_are_split_without_changing_a_weight(less_one: bool) -> None:
    """Groups of 64 of 96 inputs: the last is shorter, and written are three of 32."""
    weight = drawn(16, 96, 0, bits=4, group_size=64)
    tensors = gptq_tensors(weight, 32, less_one=less_one, index=True)
    assert tensors["scales"].shape == (3, 16)
    read = FIRST_VERSION[0] if less_one else as_stored
    assert torch.equal(gptq_weight(tensors, 4, read, 32), weight.dequantize())
    assert torch.equal(awq_weight(awq_tensors(weight, 32), 32), weight.dequantize())


@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("rows", [slice(8, 24), torch.tensor([3, 0, 30, 9, 9, 1, 2, 4])])
def test_parts_of_a_layer_are_layers(rows: slice | torch.Tensor, sym: bool) -> None:
    weight = drawn(32, 64, 0, bits=4, group_size=16, sym=sym, order=True)
    tensors = gptq_tensors(rows_of(weight, rows), 16, less_one=False, index=True)
    assert torch.equal(gptq_weight(tensors, 4, as_stored, 16), weight.dequantize()[rows])
